"""The request rows of a run: their table, its file, and the hash that says whether two tables are the same.

Rule: equal tables have equal hashes, whatever wrote them, when, or where. So a hash is taken of the values as the
columns hold them, not of the file's bytes, which change with the version of the library that writes them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

from ecoserve.errors import InputError
from ecoserve.files import write_atomically
from ecoserve.serving.runs import RequestRow
from ecoserve.sweep.identity import canonical

_DERIVED: Final = ("ttft_s", "tpot_s", "e2el_s", "normalized_latency_s", "met_deadline")
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
#: Columns that came later: a file of before reads as if they were empty, and empty ones are no part of the hash.
_LATER: Final = frozenset({"pit"})


def request_record(key: str, row: RequestRow) -> dict[str, Any]:
    """One request as a flat record, derived times included."""
    given = {f.name: getattr(row, f.name) for f in fields(RequestRow)}
    return {"run": key, **given, **{name: getattr(row, name) for name in _DERIVED}}


def request_table(key: str, rows: Iterable[RequestRow]) -> Any:
    """The rows of run ``key`` as a ``pyarrow.Table``, in their order."""
    import pyarrow as pa  # type: ignore[import-untyped]

    schema = pa.schema([(name, pa.type_for_alias(kind)) for name, kind in _COLUMNS.items()])
    return pa.Table.from_pylist([request_record(key, row) for row in rows], schema=schema)


def table_sha256(table: Any) -> str:
    """SHA-256 of the values of a request table, in the order of its rows."""
    columns = {name: table[name].to_pylist() for name in _COLUMNS if name != "run"}
    columns = {
        name: values for name, values in columns.items() if name not in _LATER or any(v is not None for v in values)
    }
    return hashlib.sha256(canonical(columns).encode()).hexdigest()


def write_requests(path: Path, table: Any) -> None:
    """Write a request table as Parquet, whole or not at all."""
    import pyarrow as pa
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    write_atomically(path, sink.getvalue().to_pybytes())


def read_requests(path: Path) -> Any:
    """Read what :func:`write_requests` wrote.

    Raises:
        InputError: if it is missing, damaged, or lacks a column.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except FileNotFoundError as error:
        raise InputError("there is no such file", where=str(path), fix="run again with --resume") from error
    except (OSError, pa.ArrowException) as error:
        words = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"is damaged ({words})", where=str(path), fix="delete it and run with --resume") from error
    for name in _LATER - set(table.column_names):
        table = table.append_column(name, pa.nulls(table.num_rows, pa.type_for_alias(_COLUMNS[name])))
    missing = [name for name in _COLUMNS if name not in table.column_names]
    if missing:
        raise InputError(f"lacks the column {missing[0]}", where=str(path))
    return table
