"""The flat row of a run, and the hashes that say whether two sweeps have equal results."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ecoserve.serving.runs import RequestRow, RunResult
from ecoserve.sweep.identity import PlannedRun, canonical
from ecoserve.sweep.summary import WALL_CLOCK_KEYS, RunRow
from ecoserve.sweep.tables import request_table, table_sha256


def run_row(run: PlannedRun, result: RunResult, wall_s: float | None = None) -> dict[str, Any]:
    """The flat row of a run in the summary: labels, settings, and every metric."""
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


def prediction_accuracy(rows: Sequence[RequestRow]) -> dict[str, float | None]:
    """The ``prediction_*`` keys of a run, over its completed requests.

    All are None without predictions; tau is None where it is not defined (fewer than two requests, or equal lengths).
    """
    pairs = [(r.predicted_tokens, r.output_tokens) for r in rows if r.status == "completed" and r.predicted_tokens]
    found: dict[str, float | None] = dict.fromkeys(("mae_tokens", "within_50", "within_100", "kendall_tau"))
    if pairs:
        predicted, true = np.asarray(pairs, dtype=np.float64).T
        error = np.abs(predicted - true)
        found = {
            "mae_tokens": float(error.mean()),
            "within_50": float((error <= 50).mean()),
            "within_100": float((error <= 100).mean()),
            "kendall_tau": None,
        }
        if np.ptp(predicted) > 0 and np.ptp(true) > 0:
            from scipy.stats import kendalltau  # half a second of import, needed once a run

            tau = float(kendalltau(predicted, true).statistic)
            found["kendall_tau"] = None if math.isnan(tau) else tau
    return {f"prediction_{name}": value for name, value in found.items()}


def hashes(rows: Iterable[Mapping[str, Any]]) -> dict[str, str | None]:
    """``runs_sha256`` and ``tables_sha256`` of :class:`~ecoserve.sweep.summary.Meta`.

    The former is of the runs' figures alone; the latter of their request rows too, and None where a run was written
    before these were hashed.
    """
    rows = list(rows)
    plain = [{k: v for k, v in row.items() if k != "requests_sha256"} for row in rows]
    whole = all(row.get("requests_sha256") for row in rows)
    return {"runs_sha256": runs_sha256(plain), "tables_sha256": runs_sha256(rows) if whole else None}


def runs_sha256(rows: Iterable[Mapping[str, Any]]) -> str:
    """Hash of run rows without wall-clock times: equal results have equal hashes, in whatever order they were run."""
    texts = sorted(canonical({k: v for k, v in row.items() if k not in WALL_CLOCK_KEYS}) for row in rows)
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()
