"""Where a stream's rows come from: read here, or parsed by worker processes.

Rule: both give the same items in the same order. Worker processes are used for a text file that is large enough to be
worth starting them; at most :func:`window` blocks are on their way, and results are handed on in the file's order.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future
from typing import Final, NamedTuple

from ecoserve.data.cleaning import Items, Wanted, clean
from ecoserve.data.measuring import Sources
from ecoserve.data.opening import BLOCK, TraceBytes, opened
from ecoserve.data.reading import FileRows
from ecoserve.data.streaming_blocks import Block, BlockReader, Layout, find_layout, read_on

#: Bytes by which the kind of a file is told.
_HEAD: Final = BLOCK
#: Bytes of text from which on worker processes are worth their start, and how much more a compressed file holds.
_WORTH_WORKERS: Final = 1 << 26
_UNPACKED: Final = 4
#: More than this many only wait for the process that hands on.
_MOST_WORKERS: Final = 4


class Parsed(NamedTuple):
    """What some rows gave.

    Attributes:
        rows: the items of each row.
        measured: whether they have their lengths, as far as no tokenizer counts them.
        position: bytes of the file on the disk that have been read for them.
    """

    rows: list[Items]
    measured: bool
    position: int


class RowSource:
    """Rows that are read here.

    Args:
        rows: the rows.
        wanted: what is read from each.
    """

    size = 0
    encoding = "utf-8"
    hashed = True

    def __init__(self, rows: Iterable[object], wanted: Wanted) -> None:
        self._rows, self._wanted = rows, wanted
        #: Where lengths come from, once that is decided.
        self.sources: Sources | None = None

    def parsed(self) -> Generator[Parsed, None, None]:
        """What the rows give."""
        for batch in clean(iter(self._rows), self._wanted):
            yield Parsed(batch, False, 0)


class FileSource:
    """The rows of a file.

    Args:
        file: the file.
        wanted: what is read from each row.
        workers: processes that parse; ``None``: as many as are worth it.
    """

    def __init__(self, file: FileRows, wanted: Wanted, workers: int | None) -> None:
        self._file, self._wanted = file, wanted
        self._workers = _workers_for(file) if workers is None else workers
        self.size = file.size
        self.encoding = "utf-8"
        #: Whether the records are going to be hashed.
        self.hashed = True
        #: Where lengths come from, once that is decided; blocks are then measured by who parses them.
        self.sources: Sources | None = None

    def parsed(self) -> Generator[Parsed, None, None]:
        """What the rows give, in the order of the file.

        Raises:
            TraceError: if the file is damaged; what comes before that was handed on.
            RunError: if a worker process was killed.
        """
        where = str(self._file.path)
        if self._workers and self._file.kind != "parquet":
            with opened(self._file.path, self._file.kind) as data:
                head = data.read(_HEAD) or b""
                layout = find_layout(head, where)
                if layout is not None:
                    yield from self._by_workers(data, layout, head)
                    self.encoding = data.encoding
                    return
        for batch in clean(iter(self._file), self._wanted, position=self._file.position):
            yield Parsed(batch, False, self._file.position())
        self.encoding = self._file.encoding

    def _by_workers(self, data: TraceBytes, layout: Layout, head: bytes) -> Iterator[Parsed]:
        # Only who starts processes needs this.
        from ecoserve.data.streaming_workers import WorkerPool, unpack

        reader = BlockReader(data, layout, head, BLOCK)
        ahead: deque[tuple[Block, Future[bytes] | None, bool]] = deque()
        problem: Exception | None = None
        with WorkerPool(self._workers, layout, self._wanted, hashed=self.hashed) as pool:
            coming: Future[Block | None] | None = pool.in_thread(reader.next)
            while True:
                while coming is not None and len(ahead) < window(self._workers):
                    try:
                        block, coming = coming.result(), None
                    except Exception as e:  # noqa: BLE001 - raised below, behind the rows that come before it
                        block, coming, problem = None, None, e
                    if block is not None and block.rows is not None:
                        ahead.append((block, pool.submit(block, self.sources), self.sources is not None))
                        coming = pool.in_thread(reader.next)
                    elif block is not None:
                        ahead.append((block, None, False))
                if not ahead:
                    break
                block, future, measured = ahead.popleft()
                answer = future.result() if future is not None else b""
                if not answer:
                    yield from self._read_on(block, _rest(ahead, coming, reader, problem), layout, data)
                    return
                yield Parsed(unpack(answer), measured, block.position)
        if problem is not None:
            raise problem

    def _read_on(self, block: Block, rest: Iterable[bytes], layout: Layout, data: TraceBytes) -> Iterator[Parsed]:
        """The file from ``block`` on, in one piece."""
        rows = read_on(block, rest, layout, str(self._file.path))
        for batch in clean(rows, self._wanted, first=block.first, position=data.position):
            yield Parsed(batch, False, data.position())


def _rest(
    ahead: Iterable[tuple[Block, Future[bytes] | None, bool]],
    coming: Future[Block | None] | None,
    reader: BlockReader,
    problem: Exception | None,
) -> Iterator[bytes]:
    """What comes behind a block: what was read ahead, then what was not."""
    for block, _, _ in ahead:
        yield block.data
    if coming is not None and (last := coming.result()) is not None:
        yield last.data
    if problem is not None:
        raise problem
    yield from reader.rest()


def window(workers: int) -> int:
    """How many blocks are on their way at most."""
    return 2 * workers + 1


def _workers_for(file: FileRows) -> int:
    text = file.size * (1 if file.kind == "text" else _UNPACKED)
    if text < _WORTH_WORKERS:
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, _MOST_WORKERS) if cores > 1 else 0
