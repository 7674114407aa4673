"""Cutting the text of a trace into blocks of whole rows, which can be parsed apart from each other.

Rule: cutting only looks for a pattern, at the speed of memory, and may be mistaken: a line end may stand inside a row,
a pattern inside a text. So each block says how many rows it seems to have, and whoever parses it must find just as
many, the last one whole. As the first block begins where a row begins, so then does every next one; where it does not
come out, the file is read on in one piece from there (:func:`read_on`), with the same result.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final, NamedTuple, Protocol

from ecoserve.data.opening import BLOCK, TraceBytes
from ecoserve.data.plain_csv import END, Dialect, csv_rows
from ecoserve.data.plain_json import json_rows
from ecoserve.data.reading import AS_TEXT, dialect_of

#: A row longer than this is not waited for.
LONGEST_ROW: Final = 1 << 25
_SPACE: Final = " \t\r\n"
_QUOTED: Final = re.compile(rb'"[^"]*"')
#: From the end of one object of a list over the comma to the first name in the next.
_BETWEEN: Final = re.compile(r'\}\s*,\s*\{\s*"(?:[^"\\]|\\.)*"')


class Block(NamedTuple):
    """Some rows of a file.

    Attributes:
        data: their text, UTF-8.
        first: number of the first row in the file.
        rows: how many there seem to be; ``None``: where a row ends was not found.
        opens: it is the first block of the file.
        ends: it is the last.
        position: bytes of the file on the disk read with it.
    """

    data: bytes
    first: int
    rows: int | None
    opens: bool
    ends: bool
    position: int


class Layout(Protocol):
    """How the rows of a file follow each other."""

    def plain(self) -> tuple[Any, ...]:
        """The layout as plain values, for :func:`layout_of`."""

    def end_of_rows(self, data: bytearray) -> int:
        """Where the last whole row in ``data`` ends, and the next begins; 0 if nowhere."""

    def count(self, data: bytes, *, opens: bool, ends: bool) -> int:
        """How many rows a block seems to have."""

    def parse(self, text: io.TextIOBase, where: str, *, opens: bool, ends: bool, rows: int) -> Iterator[object]:
        """The rows of a block, or of the rest of a file (``ends``); raises TraceError if it does not end with one."""


@dataclass(frozen=True, slots=True)
class Lines:
    """JSON lines, an object in each."""

    def plain(self) -> tuple[Any, ...]:
        """See :class:`Layout`."""
        return ("lines",)

    def end_of_rows(self, data: bytearray) -> int:
        """See :class:`Layout`."""
        return data.rfind(b"\n") + 1

    def count(self, data: bytes, *, opens: bool, ends: bool) -> int:
        """See :class:`Layout`."""
        return sum(1 for line in data.split(b"\n") if line and not line.isspace())

    def parse(self, text: io.TextIOBase, where: str, *, opens: bool, ends: bool, rows: int) -> Iterator[object]:
        """See :class:`Layout`."""
        return json_rows(text, where, in_list=False, rows=rows)


@dataclass(frozen=True, slots=True)
class Listed:
    """A JSON list of objects that all begin alike.

    Attributes:
        between: the bytes from the end of one object to the first name in the next.
        comma: where in them the comma is.
    """

    between: bytes
    comma: int

    def plain(self) -> tuple[Any, ...]:
        """See :class:`Layout`."""
        return ("list", self.between, self.comma)

    def end_of_rows(self, data: bytearray) -> int:
        """See :class:`Layout`."""
        return data.rfind(self.between) + self.comma + 1 if self.between in data else 0

    def count(self, data: bytes, *, opens: bool, ends: bool) -> int:
        """See :class:`Layout`."""
        # Behind the last row of a block the pattern is cut by the block's end.
        return data.count(self.between) + 1

    def parse(self, text: io.TextIOBase, where: str, *, opens: bool, ends: bool, rows: int) -> Iterator[object]:
        """See :class:`Layout`."""
        return json_rows(text, where, in_list=None if opens else True, goes_on=not ends, rows=rows)


@dataclass(frozen=True, slots=True)
class Table:
    """CSV.

    Attributes:
        dialect: how it is written.
    """

    dialect: Dialect

    def plain(self) -> tuple[Any, ...]:
        """See :class:`Layout`."""
        return ("table", self.dialect.columns, self.dialect.delimiter)

    def end_of_rows(self, data: bytearray) -> int:
        """See :class:`Layout`."""
        end = data.rfind(b"\n") + 1
        inside = data.count(b'"', 0, end) % 2
        while end and inside:
            # Within quotes: on to the last line end before they were opened.
            quote = data.rfind(b'"', 0, end)
            before = data.rfind(b"\n", 0, quote) + 1
            inside ^= data.count(b'"', before, end) % 2
            end = before
        return end

    def count(self, data: bytes, *, opens: bool, ends: bool) -> int:
        """See :class:`Layout`."""
        if b'"' in data:
            data = _QUOTED.sub(b'"', data)
        lines = data.split(b"\n")
        return sum(1 for line in lines if line not in (b"", b"\r")) - opens

    def parse(self, text: io.TextIOBase, where: str, *, opens: bool, ends: bool, rows: int) -> Iterator[object]:
        """See :class:`Layout`."""
        return csv_rows(text, self.dialect, where, header=opens, rows=rows)


def layout_of(plain: tuple[Any, ...]) -> Layout:
    """The layout that :meth:`Layout.plain` describes."""
    if plain[0] == "lines":
        return Lines()
    if plain[0] == "list":
        return Listed(plain[1], plain[2])
    return Table(Dialect(tuple(plain[1]), plain[2]))


def find_layout(head: bytes, where: str) -> Layout | None:
    """The layout of a file that begins with ``head``; ``None`` if it can only be read in one piece.

    Raises:
        TraceError: if it is no trace file at all.
    """
    dialect = dialect_of(head, where)
    if dialect is not None:
        return Table(dialect)
    text = head.decode("utf-8", "surrogateescape").lstrip(_SPACE)
    decode = json.JSONDecoder().raw_decode
    try:
        if text[:1] == "{":
            value, end = decode(text)
            return Lines() if text[end:].lstrip(" \t\r")[:1] == "\n" else None
        start = len(text) - len(text[1:].lstrip(_SPACE))
        value, end = decode(text, start)
    except (ValueError, RecursionError):
        return None
    found = _BETWEEN.match(text, end - 1)
    if not isinstance(value, dict) or found is None:
        return None
    between = found[0].encode("utf-8", "surrogateescape")
    return Listed(between, between.index(b","))


def parse_block(block: Block, layout: Layout, where: str) -> list[object] | None:
    """The rows of ``block``; ``None`` if it is not what it seemed to be, or broken."""
    # What goes wrong is said by who reads on from here in one piece.
    from ecoserve.errors import TraceError

    text = io.StringIO(block.data.decode("utf-8", "surrogateescape"), newline="")
    lines: Any = text
    if isinstance(layout, Table):
        broken_off = [] if block.data.endswith(b"\n") else ["\n"]
        lines = chain(text, broken_off, [layout.dialect.end_line()])
    try:
        rows = list(layout.parse(lines, where, opens=block.opens, ends=block.ends, rows=block.first))
    except TraceError:
        return None
    if isinstance(layout, Table) and (not rows or rows.pop() is not END):
        return None
    return rows if len(rows) == block.rows else None


class BlockReader:
    """Reads a file block by block.

    Args:
        data: the file.
        layout: how its rows follow each other.
        head: what has been read of it already.
        size: bytes of a block, unless a row is longer.
    """

    def __init__(self, data: TraceBytes, layout: Layout, head: bytes = b"", size: int = BLOCK) -> None:
        self._data, self._layout, self._size = data, layout, size
        self._buffer = bytearray(head)
        self._first = 0
        self._opens, self._ended = True, False

    def next(self) -> Block | None:
        """The next block; ``None`` behind the last."""
        if self._ended and not self._buffer:
            return None
        wanted = self._size
        while True:
            while not self._ended and len(self._buffer) < wanted:
                more = self._data.read(self._size)
                self._ended = not more
                self._buffer += more or b""
            end = len(self._buffer) if self._ended else self._layout.end_of_rows(self._buffer)
            if end or self._ended:
                return self._cut(end) if end else None
            if wanted > LONGEST_ROW:
                return self._cut(len(self._buffer), whole=False)
            wanted *= 2

    def _cut(self, end: int, *, whole: bool = True) -> Block:
        data = bytes(self._buffer[:end])
        del self._buffer[:end]
        ends = self._ended and not self._buffer
        rows = self._layout.count(data, opens=self._opens, ends=ends) if whole else None
        block = Block(data, self._first, rows, self._opens, ends, self._data.position())
        self._first += rows or 0
        self._opens = False
        return block

    def rest(self) -> Iterator[bytes]:
        """What was not given out yet."""
        yield bytes(self._buffer)
        while more := self._data.read(BLOCK):
            yield more


class _Joined(io.RawIOBase):
    """Pieces of bytes as one file."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter(pieces)
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, target: Any) -> int:
        while not self._ready:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._ready = memoryview(piece)
        count = min(len(target), len(self._ready))
        target[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count


def read_on(first: Block, pieces: Iterable[bytes], layout: Layout, where: str) -> Iterator[object]:
    """The rows from ``first`` on to the end of the file, whose further bytes are ``pieces``, read in one piece.

    Raises:
        TraceError: if the file is broken.
    """
    raw = io.BufferedReader(_Joined(chain([first.data], pieces)), BLOCK)
    with io.TextIOWrapper(raw, **AS_TEXT) as text:
        yield from layout.parse(text, where, opens=first.opens, ends=True, rows=first.first)
