"""KV over time of a run: its table and its file, ``kv/RUN.parquet``.

One row per interval (at most :data:`~ecoserve.serving.kv_series.MOST` of a replica); shares of the usable KV. The
file's metadata carry :data:`VERSION`. A folder of before has no such files, and a run that nobody watched has none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Final

from ecoserve.errors import InputError
from ecoserve.files import write_atomically
from ecoserve.serving.kv_series import KVPoint

#: Version of the table's layout.
VERSION: Final = 1
_VERSION_KEY: Final = b"ecoserve_kv_version"


def write_kv(path: Path, points: Sequence[KVPoint]) -> None:
    """Write the points as Parquet, whole or not at all; nothing is written if there are none."""
    if not points:
        return
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    kinds = {"replica": pa.int64()}
    schema = pa.schema(
        [(f.name, kinds.get(f.name, pa.float64())) for f in fields(KVPoint)],
        metadata={_VERSION_KEY: str(VERSION).encode()},
    )
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist([asdict(p) for p in points], schema=schema), sink, compression="zstd")
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, sink.getvalue().to_pybytes())


def read_kv(path: Path) -> list[KVPoint]:
    """Read what :func:`write_kv` wrote; empty if there is no such file.

    Raises:
        InputError: if it is damaged or of another version.
    """
    if not path.exists():
        return []
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
        version = (table.schema.metadata or {}).get(_VERSION_KEY, b"")
        if version != str(VERSION).encode():
            raise InputError("is of another version", where=str(path), fix="delete it, or run again")
        return [KVPoint(**row) for row in table.to_pylist()]
    except (OSError, pa.ArrowException, TypeError) as error:
        words = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"is damaged ({words})", where=str(path), fix="delete it") from error
