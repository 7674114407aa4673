"""The rows of a run: its flat row of the summary, and its Parquet tables (requests, KV over time).

Equal results have equal hashes: a hash is of values, not of a file's bytes, which change with the library that writes
them; and it leaves out wall-clock times.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Final

import numpy as np

from ecoserve.accuracy import kendall_tau, point_accuracy
from ecoserve.deprecations import REQUEST_COLUMNS
from ecoserve.errors import InputError
from ecoserve.files import write_atomically
from ecoserve.serving.runs import KVPoint, RequestRow, RunResult
from ecoserve.sweep.identity import PlannedRun, canonical
from ecoserve.sweep.summary import WALL_CLOCK_KEYS, RunRow

#: Columns and their types; ``run`` names the table and is no part of its content.
_COLUMNS: Final[Mapping[str, str]] = {
    "run": "string",
    "request_id": "string",
    "arrival_s": "double",
    "prompt_tokens": "int64",
    "status": "string",
    "output_tokens": "int64",
    "first_token_s": "double",
    "finish_s": "double",
    "predicted_tokens": "double",
    "preemptions": "int64",
    "pauses": "int64",
    "deadline_s": "double",
    "error": "string",
    "ttft_s": "double",
    "tpot_s": "double",
    "e2el_s": "double",
    "normalized_latency_s": "double",
    "met_deadline": "bool",
    "pit": "double",
}
#: Columns that older files lack: they read as if they were empty, and empty ones are no part of the hash.
_LATER: Final = frozenset({"pit"})
#: A column's name in the hash, if files of before have it under that name: equal rows keep equal hashes.
_HASHED_AS: Final = {new: old for old, new in REQUEST_COLUMNS.items()}
#: Version of the layout of KV over time, in the file's metadata.
_KV_VERSION: Final = (b"ecoserve_kv_version", b"1")


def request_table(key: str, rows: Iterable[RequestRow]) -> Any:
    """The rows of run ``key`` as a ``pyarrow.Table``, in their order; derived times included."""
    import pyarrow as pa  # type: ignore[import-untyped]

    schema = pa.schema([(name, pa.type_for_alias(kind)) for name, kind in _COLUMNS.items()])
    records = [{name: key if name == "run" else getattr(row, name) for name in _COLUMNS} for row in rows]
    return pa.Table.from_pylist(records, schema=schema)


def table_sha256(table: Any) -> str:
    """SHA-256 of the values of a request table, in the order of its rows."""
    columns = {name: table[name].to_pylist() for name in _COLUMNS if name != "run"}
    known = {name: c for name, c in columns.items() if name not in _LATER or any(v is not None for v in c)}
    named = {_HASHED_AS.get(name, name): values for name, values in known.items()}
    return hashlib.sha256(canonical(named).encode()).hexdigest()


def read_requests(path: Path) -> Any:
    """A request table; raises InputError if it is missing, damaged, or lacks a column."""
    import pyarrow as pa

    table = _read(path, "delete it and run with --resume")
    if table is None:
        raise InputError("there is no such file", where=str(path), fix="run again with --resume")
    table = table.rename_columns([REQUEST_COLUMNS.get(name, name) for name in table.column_names])
    for name in _LATER - set(table.column_names):
        table = table.append_column(name, pa.nulls(table.num_rows, pa.type_for_alias(_COLUMNS[name])))
    if missing := [name for name in _COLUMNS if name not in table.column_names]:
        raise InputError(f"lacks the column {missing[0]}", where=str(path))
    return table


def write_kv(path: Path, points: Sequence[KVPoint]) -> None:
    """Write KV over time, one row an interval, shares of the usable KV; nothing is written if there are none."""
    if not points:
        return
    import pyarrow as pa

    kinds = {"replica": pa.int64()}
    columns = [(f.name, kinds.get(f.name, pa.float64())) for f in fields(KVPoint)]
    schema = pa.schema(columns, metadata=dict([_KV_VERSION]))
    write_table(path, pa.Table.from_pylist([asdict(p) for p in points], schema=schema))


def read_kv(path: Path) -> list[KVPoint]:
    """What :func:`write_kv` wrote, if anything; raises InputError if it is damaged or of another version."""
    table = _read(path, "delete it")
    if table is None:
        return []
    if (table.schema.metadata or {}).get(_KV_VERSION[0]) != _KV_VERSION[1]:
        raise InputError("is of another version", where=str(path), fix="delete it, or run again")
    try:
        return [KVPoint(**row) for row in table.to_pylist()]
    except TypeError as error:
        raise InputError(f"is damaged ({error})", where=str(path), fix="delete it") from error


def write_table(path: Path, table: Any) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    write_atomically(path, sink.getvalue().to_pybytes())


def _read(path: Path, fix: str) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(path)
    except FileNotFoundError:
        return None
    except (OSError, pa.ArrowException) as error:
        words = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"is damaged ({words})", where=str(path), fix=fix) from error


def run_row(run: PlannedRun, result: RunResult, wall_s: float | None = None) -> dict[str, Any]:
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
    """The ``prediction_*`` keys of a run, over its completed requests; None without predictions."""
    pairs = [(r.predicted_tokens, r.output_tokens) for r in rows if r.status == "completed" and r.predicted_tokens]
    found: dict[str, float | None] = dict.fromkeys(("mae_tokens", "within_50", "within_100", "kendall_tau"))
    if pairs:
        predicted, true = np.asarray(pairs, dtype=np.float64).T
        found = {**point_accuracy(predicted, true), "kendall_tau": kendall_tau(predicted, true)}
    return {f"prediction_{name}": value for name, value in found.items()}


def hashes(rows: Iterable[Mapping[str, Any]]) -> dict[str, str | None]:
    """``runs_sha256`` and ``tables_sha256`` of the run rows: without and with their request rows."""
    rows = list(rows)
    plain = [{k: v for k, v in row.items() if k != "requests_sha256"} for row in rows]
    whole = all(row.get("requests_sha256") for row in rows)
    return {"runs_sha256": runs_sha256(plain), "tables_sha256": runs_sha256(rows) if whole else None}


def runs_sha256(rows: Iterable[Mapping[str, Any]]) -> str:
    """Hash of run rows without wall-clock times: equal results have equal hashes, in whatever order they were run."""
    texts = sorted(canonical({k: v for k, v in row.items() if k not in WALL_CLOCK_KEYS}) for row in rows)
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()
