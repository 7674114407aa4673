"""Rows of a trace: from a file (JSON list, JSON lines, CSV, Parquet) or from the Hugging Face hub.

Rule: a file's content, not its name, says what it is; rows come one batch at a time, and nothing is left on disk or
printed. The hub goes through ``datasets``, streaming, so that no cache grows in the home directory. Files do not: JSON
for the reasons in :mod:`ecoserve.data.plain_json`, Parquet because ``datasets`` takes a path for a glob pattern and
fails on a file without rows; it is read with the library that ``datasets`` itself uses.
"""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from ecoserve.data.opening import BLOCK, kind_of, opened
from ecoserve.data.plain_csv import Dialect, csv_rows, sniff
from ecoserve.data.plain_json import json_rows
from ecoserve.errors import TraceError

_BATCH: Final = 1000


def read_file(path: Path) -> Iterator[object]:
    """The rows of a trace file as Python values, in the order of the file.

    Yields:
        What stands in the file: ``dict`` for an object; from CSV ``dict[str, str | None]``. :class:`MendedRow` around a
        row that was not UTF-8, :class:`BadRow` in place of one that cannot be used.

    Raises:
        TraceError: if it is missing, cut off, damaged, or of a kind that cannot be read.
    """
    kind = kind_of(path)
    return _parquet_rows(path) if kind == "parquet" else _text_rows(path, kind)


def _text_rows(path: Path, kind: str) -> Iterator[object]:
    where = str(path)
    with opened(path, kind) as data:
        buffered = io.BufferedReader(data, BLOCK)
        head = buffered.peek(BLOCK)
        dialect = dialect_of(head, where)
        with io.TextIOWrapper(buffered, encoding="utf-8", errors="surrogateescape", newline="") as text:
            if dialect is None:
                yield from json_rows(text, where)
            else:
                yield from csv_rows(text, dialect, where)


def dialect_of(head: bytes, where: str) -> Dialect | None:
    """How the CSV file that begins with ``head`` is written; ``None`` if it is JSON, or there is nothing at all.

    Raises:
        TraceError: if it is neither.
    """
    text = head.decode("utf-8", "surrogateescape").lstrip()
    if not text or text[0] in "[{":
        return None
    if dialect := sniff(text):
        return dialect
    fix = "traces are JSON lists, JSON lines, CSV with a first line of names (all also compressed), or Parquet"
    raise TraceError(f"is neither JSON nor CSV nor Parquet, it starts with {text[:20]!r}", where=where, fix=fix)


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
