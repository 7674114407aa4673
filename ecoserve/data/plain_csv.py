"""Reading CSV and its relatives, one row at a time, with the standard library.

The first line names the columns. The separator (comma, tab, semicolon, bar) is the one that cuts most of the first
lines into as many pieces as the first. A row is a ``dict`` of texts, ``None`` where a cell is empty; a row with another
number of cells is counted as bad, an empty line is nothing.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

from ecoserve.data.encodings import MendedRow, is_clean, mend
from ecoserve.errors import TraceError

#: What is counted for a row with more or fewer cells than there are columns.
RAGGED: Final = "row has another number of cells than there are columns"

_DELIMITERS: Final = (",", "\t", ";", "|")
#: Lines looked at to find what separates the columns.
_LOOK: Final = 20
_CONTROL: Final = re.compile(r"[\x00-\x08\x0e-\x1f]")
#: Longest cell, in characters: an unclosed quote must not swallow the whole file.
_LONGEST: Final = 1 << 24


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that could not be read, and why; it is counted as dropped."""

    reason: str


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a CSV file is written.

    Attributes:
        columns: the names in its first line; a name that comes again is numbered (``name.1``).
        delimiter: the character between two cells.
    """

    columns: tuple[str, ...]
    delimiter: str


def sniff(head: str) -> Dialect | None:
    """The dialect of a file that begins with ``head``; ``None`` if it is no CSV.

    One column is CSV too if it has a name and numbers under it.
    """
    if _CONTROL.search(head):
        return None
    lines = [line for line in head.splitlines(keepends=True) if line.strip()]
    best: tuple[int, Dialect] | None = None
    for delimiter in _DELIMITERS:
        try:
            table = [row for row in csv.reader(lines[: _LOOK + 1], delimiter=delimiter) if row]
        except csv.Error:
            continue
        if not table or len(table[0]) < 2 or all(_is_number(cell) for cell in table[0]):
            continue
        fitting = sum(len(row) == len(table[0]) for row in table[1:])
        if fitting * 2 >= len(table) - 1 and (best is None or len(table[0]) > best[0]):
            best = (len(table[0]), Dialect(_names(table[0]), delimiter))
    if best is not None:
        return best[1]
    cells = [line.strip().strip('"') for line in lines]
    if len(cells) > 1 and re.fullmatch(r"[A-Za-z]\w*", cells[0]) and all(map(_is_number, cells[1:_LOOK])):
        return Dialect((cells[0],), ",")
    return None


def _names(cells: Sequence[str]) -> tuple[str, ...]:
    seen: Counter[str] = Counter()
    names = []
    for name in map(str.strip, cells):
        names.append(f"{name}.{seen[name]}" if seen[name] else name)
        seen[name] += 1
    return tuple(names)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def csv_rows(lines: Iterable[str], dialect: Dialect, where: str) -> Iterator[object]:
    """The rows after the line of column names: ``dict[str, str | None]``, maybe in a MendedRow, or :class:`BadRow`.

    ``lines`` keep their ends, wrong bytes are lone surrogates; ``where`` is the file, for messages.

    Raises:
        TraceError: if the file cannot go on being read as CSV.
    """
    if csv.field_size_limit() < _LONGEST:
        csv.field_size_limit(_LONGEST)
    columns, count = dialect.columns, len(dialect.columns)
    reader = csv.reader(lines, delimiter=dialect.delimiter)
    header, rows = True, 0
    try:
        for cells in reader:
            if not cells or (count > 1 and cells == [""]):
                continue
            if header:
                header = False
                continue
            rows += 1
            if len(cells) != count:
                yield BadRow(RAGGED)
                continue
            note = None
            if not is_clean(joined := "".join(cells)):
                # One character for one, so that the cells are where they were.
                joined, note = mend(joined)
                ends = list(accumulate(map(len, cells)))
                cells = [joined[end - len(cell) : end] for cell, end in zip(cells, ends, strict=True)]
            row = {name: cell or None for name, cell in zip(columns, cells, strict=True)}
            yield row if note is None else MendedRow(row, note)
    except csv.Error as e:
        raise TraceError(f"row {rows + 1:,} is not CSV ({e})", where=where, fix="correct or remove that row") from e
