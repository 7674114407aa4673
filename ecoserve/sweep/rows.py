"""The flat row of a run, and the hashes that say whether two sweeps came to the same."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

from ecoserve.serving.runs import RunResult
from ecoserve.sweep.accuracy import prediction_accuracy
from ecoserve.sweep.identity import PlannedRun, canonical
from ecoserve.sweep.requests import request_table, table_sha256
from ecoserve.sweep.summary import WALL_CLOCK_KEYS, RunRow


def run_row(run: PlannedRun, result: RunResult, wall_s: float | None = None) -> dict[str, Any]:
    """The flat row of a run in the summary: labels, what was asked, and every metric."""
    row = {
        "run": run.key,
        "engine": "virtual",
        "condition": None,
        **run.labels,
        **result.summary(),
        **prediction_accuracy(result.rows),
        "requests_sha256": table_sha256(request_table(run.key, result.rows)),
        "wall_s": wall_s,
    }
    return RunRow.model_validate(row).model_dump(mode="json")


def hashes(rows: Iterable[Mapping[str, Any]]) -> dict[str, str | None]:
    """``runs_sha256`` and ``tables_sha256`` of :class:`~ecoserve.sweep.summary.Meta`.

    The former is of the figures of the runs alone; the latter of their request rows too, and None where a run was
    written before these were hashed.
    """
    rows = list(rows)
    plain = [{k: v for k, v in row.items() if k != "requests_sha256"} for row in rows]
    whole = all(row.get("requests_sha256") for row in rows)
    return {"runs_sha256": runs_sha256(plain), "tables_sha256": runs_sha256(rows) if whole else None}


def runs_sha256(rows: Iterable[Mapping[str, Any]]) -> str:
    """Hash of run rows without wall-clock times: equal results have equal hashes, in whatever order they were run."""
    texts = sorted(canonical({k: v for k, v in row.items() if k not in WALL_CLOCK_KEYS}) for row in rows)
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()
