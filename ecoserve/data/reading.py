"""Rows of a trace: from a file (JSON list, JSON lines, CSV, Parquet) or from the Hugging Face hub.

The content of a file, not its name, decides what it is. Rows come one batch at a time; nothing is left on disk or
printed. The hub goes through ``datasets``, streaming. Files do not (:mod:`ecoserve.data.plain_json` says why; for
Parquet ``datasets`` takes a path for a glob pattern and fails on a file without rows).
"""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from ecoserve.data.opening import BLOCK, kind_of, opened
from ecoserve.data.plain_csv import Dialect, csv_rows, sniff
from ecoserve.data.plain_json import json_rows
from ecoserve.errors import TraceError

#: Called with the bytes of a file read so far, and with its size in bytes.
Progress = Callable[[int, int], None]
_BATCH: Final = 1000
_WORKLOADS: Final = (".yaml", ".yml")


def is_workload(source: str | Path) -> bool:
    """Whether ``source`` is a workload file, by its suffix."""
    return str(source).lower().endswith(_WORKLOADS)


def read_file(path: Path) -> Iterator[object]:
    """The rows of a trace file (:class:`FileRows`)."""
    return iter(FileRows(path))


class FileRows:
    """The rows of a trace file as Python values, in the order of the file.

    An object is a ``dict``, from CSV ``dict[str, str | None]``. :class:`MendedRow` comes around a row that was not
    UTF-8, :class:`BadRow` in place of one that cannot be used.

    Raises:
        TraceError: if it is missing; while iterating, if it is cut off, damaged, or of a kind that cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.kind = kind_of(path)
        #: Bytes on the disk.
        self.size = path.stat().st_size
        #: The encoding, known when all was read.
        self.encoding = "utf-8"
        self._position: Callable[[], int] = lambda: 0

    def position(self) -> int:
        """Bytes of the file read so far."""
        return self._position()

    def __iter__(self) -> Iterator[object]:
        return self._parquet() if self.kind == "parquet" else self._text()

    def _text(self) -> Iterator[object]:
        where = str(self.path)
        with opened(self.path, self.kind) as data:
            self._position = data.position
            buffered = io.BufferedReader(data, BLOCK)
            dialect = _dialect_of(buffered.peek(BLOCK), where)
            try:
                with io.TextIOWrapper(buffered, encoding="utf-8", errors="surrogateescape", newline="") as text:
                    yield from json_rows(text, where) if dialect is None else csv_rows(text, dialect, where)
            finally:
                end = data.position()
                self._position, self.encoding = (lambda: end), data.encoding

    def _parquet(self) -> Iterator[object]:
        import pyarrow as pa  # type: ignore[import-untyped]
        import pyarrow.parquet as pq  # type: ignore[import-untyped]

        done = 0
        try:
            with pq.ParquetFile(self.path) as file:
                share = self.size / max(1, file.metadata.num_rows)
                self._position = lambda: int(done * share)
                for batch in file.iter_batches(_BATCH):
                    rows = batch.to_pylist()
                    done += len(rows)
                    yield from rows
        except (OSError, pa.ArrowException) as e:
            reason = " ".join(str(e).split())[:120]
            what = f"is not a readable Parquet file ({reason})"
            raise TraceError(what, where=str(self.path), fix="download or copy it again") from e


def _dialect_of(head: bytes, where: str) -> Dialect | None:
    """How the CSV file that begins with ``head`` is written; ``None`` if it is JSON, or there is nothing at all.

    Raises:
        TraceError: if it is neither.
    """
    text = head.decode("utf-8", "surrogateescape")
    begin = text.lstrip()
    if not begin or begin[0] in "[{":
        return None
    if dialect := sniff(text):
        return dialect
    fix = "traces are JSON lists, JSON lines, CSV with a first line of names (all also compressed), or Parquet"
    raise TraceError(f"is neither JSON nor CSV nor Parquet, it starts with {begin[:20]!r}", where=where, fix=fix)


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
