"""Rows of a trace: from a file (JSON list, JSON lines, Parquet) or from the Hugging Face hub.

Rule: a file's content, not its name, says what it is; rows come one batch at a time, and nothing is left on disk or
printed. The hub goes through ``datasets``, streaming, so that no cache grows in the home directory. Files do not: JSON
for the reasons in :mod:`ecoserve.data.plain_json`, Parquet because ``datasets`` takes a path for a glob pattern and
fails on a file without rows; it is read with the library that ``datasets`` itself uses.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from ecoserve.data.plain_json import json_rows
from ecoserve.errors import TraceError

_MAGIC: Final = {
    b"\x1f\x8b": "gzip",
    b"PAR1": "parquet",
    b"PK\x03\x04": "zip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
}
_BATCH: Final = 1000


def read_file(path: Path) -> Iterator[object]:
    """The rows of a trace file as Python values (objects as ``dict``), in the order of the file.

    Raises:
        TraceError: if it is missing, empty, cut off, damaged, or of a kind that cannot be read.
    """
    try:
        with path.open("rb") as f:
            head = f.read(8)
    except FileNotFoundError:
        raise TraceError("no such file", where=str(path), fix="check the path") from None
    except IsADirectoryError:
        raise TraceError("is a folder, not a trace file", where=str(path), fix="give one file in it") from None
    except OSError as e:
        raise TraceError(f"cannot be read ({e.strerror or e})", where=str(path)) from e
    kind = next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), "text")
    if kind == "parquet":
        return _parquet_rows(path)
    if kind in ("gzip", "text"):
        return json_rows(path, gz=kind == "gzip")
    raise TraceError(f"is compressed with {kind}", where=str(path), fix="unpack it, or compress it with gzip")


def _parquet_rows(path: Path) -> Iterator[object]:
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(_BATCH):
                yield from batch.to_pylist()
    except (OSError, pa.ArrowException) as e:
        reason = " ".join(str(e).split())[:120]
        what = f"is not a readable Parquet file ({reason})"
        raise TraceError(what, where=str(path), fix="download or copy it again") from e


def table_rows(dataset: Any) -> Iterator[object]:
    """The rows of a streaming ``datasets`` dataset, its JSON-encoded columns decoded."""
    for table in dataset.with_format("arrow").iter(batch_size=_BATCH):
        encoded = [f.name for f in table.schema if "json" in str(f.type)]
        for row in table.to_pylist():
            for name in encoded:
                if isinstance(row[name], str):
                    row[name] = json.loads(row[name])
            yield row


@contextmanager
def quiet_datasets() -> Iterator[Any]:
    """The ``datasets`` module, its progress bars and log lines off for so long."""
    import datasets

    log = datasets.utils.logging
    level, quiet = log.get_verbosity(), datasets.are_progress_bars_disabled()
    log.set_verbosity(logging.CRITICAL)
    datasets.disable_progress_bars()
    try:
        yield datasets
    finally:
        log.set_verbosity(level)
        if not quiet:
            datasets.enable_progress_bars()
