"""Rows of JSON and CSV text, one at a time, with the standard library; rows with bytes that are not UTF-8 are mended.

Such bytes are lone surrogates (Python's ``surrogateescape``) until their row is read. If it has nothing else beyond
ASCII, they are read as Windows-1252; if it also has right UTF-8, each is replaced by U+FFFD.

Memory is bounded by the largest row, also in a JSON list. Every way in which a file can be broken ends in one
:class:`TraceError` that names it, and the row. JSON does not go through ``datasets``, which infers one Arrow type a
column, so that dates and ragged rows come back changed, and holds a list several times over (2.0 s and 370 MiB for
47,000 rows; this module 0.25 s and 20 MiB). A faster parser would not help: parsing is a tenth of the work.

The first line of CSV names the columns. The separator (comma, tab, semicolon, bar) is the one that cuts most of the
first lines into as many pieces as the first. A row is a ``dict`` of texts, ``None`` where a cell is empty; a row with
another number of cells is counted as bad, an empty line is nothing.
"""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final, TextIO

from ecoserve.errors import TraceError

#: What is counted for a row that was mended.
READ_AS_WINDOWS: Final = "not UTF-8, read as Windows-1252"
REPLACED: Final = "not UTF-8, wrong bytes replaced"
#: What is counted for a row with more or fewer cells than there are columns.
RAGGED: Final = "row has another number of cells than there are columns"

_DELIMITERS: Final = (",", "\t", ";", "|")
#: Lines looked at to find what separates the columns.
_LOOK: Final = 20
_CONTROL: Final = re.compile(r"[\x00-\x08\x0e-\x1f]")
#: Longest cell, in characters: an unclosed quote must not swallow the whole file.
_LONGEST: Final = 1 << 24
#: A byte that is not UTF-8.
ESCAPED: Final = re.compile("[\udc80-\udcff]")
_CHUNK: Final = 1 << 20
_SPACE: Final = " \t\r\n"
#: An error this near to the end of what has been read may come from a number or a literal that goes on after it.
_MARGIN: Final = 16
_AGAIN: Final = "download or copy it again"


@dataclass(frozen=True, slots=True)
class MendedRow:
    """A row that was read after its text was mended, and what is counted for it if the row is kept."""

    row: object
    note: str


def is_clean(text: str) -> bool:
    """Whether ``text`` came from right bytes only (half a second a gigabyte)."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def mend(text: str) -> tuple[str, str | None]:
    """``text`` without escaped bytes, and what to count for it; ``None`` if it had none."""
    wrong = len(ESCAPED.findall(text))
    if not wrong:
        return text, None
    if sum(c > "\x7f" for c in text) > wrong:
        return ESCAPED.sub("\ufffd", text), REPLACED
    windows = ESCAPED.sub(lambda wrong: bytes([ord(wrong[0]) - 0xDC00]).decode("cp1252", "replace"), text)
    return windows, READ_AS_WINDOWS


def json_rows(text: TextIO, where: str) -> Iterator[object]:
    """The rows of ``[value, value, ...]`` or of ``value value ...``, decoded from a sliding buffer.

    ``text``: wrong bytes are lone surrogates. ``where`` is the file, for messages. :class:`MendedRow` stands around
    values whose text was mended. Raises TraceError if it is cut off, or not JSON.
    """
    decode = json.JSONDecoder().raw_decode
    buffer = ""
    while not (buffer := buffer.lstrip(_SPACE)) and (more := text.read(_CHUNK)):
        buffer = more
    if not buffer:
        return
    in_list = buffer[0] == "["
    at, rows, expects = int(in_list), 0, "value or ]"
    ended, clean = False, is_clean(buffer)
    while True:
        while at < len(buffer) and buffer[at] in _SPACE:
            at += 1
        if at < len(buffer):
            sign = buffer[at]
            if in_list and sign == "]" and expects != "value":
                if (buffer[at + 1 :] + text.read(_CHUNK)).strip(_SPACE):
                    raise _not_json(where, rows, "text after the end of the list")
                return
            if in_list and expects == ", or ]":
                if sign != ",":
                    raise _not_json(where, rows, f"',' or ']' expected, found {sign!r}")
                at, expects = at + 1, "value"
                continue
            try:
                value, end = decode(buffer, at)
                if end < len(buffer) or ended:
                    mended, note = ("", None) if clean else mend(buffer[at:end])
                    yield value if note is None else MendedRow(decode(mended)[0], note)
                    at, rows, expects = end, rows + 1, ", or ]"
                    continue
            except json.JSONDecodeError as e:
                if not (e.msg.startswith("Unterminated") or e.pos >= len(buffer) - (0 if ended else _MARGIN)):
                    raise _not_json(where, rows, e.msg) from e
            except (ValueError, RecursionError) as e:
                raise _not_json(where, rows, "a number is too long, or it is nested too deeply") from e
        elif ended and not in_list:
            return
        if ended:
            raise TraceError(f"JSON is cut off after {rows:,} rows", where=where, fix=_AGAIN)
        # Read as much again as the unfinished row already takes: so a long row is decoded a few times, not many.
        more = text.read(max(_CHUNK, len(buffer) - at))
        # At the end, spaces go: what is wrong with the last value is then wrong at the very end.
        buffer, at, ended = (buffer[at:] + more).rstrip(_SPACE) if not more else buffer[at:] + more, 0, not more
        clean = is_clean(buffer)


def _not_json(where: str, rows: int, message: str) -> TraceError:
    return TraceError(f"row {rows + 1:,} is not JSON ({message})", where=where, fix="correct or remove that row")


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that could not be read, and why; it is counted as dropped."""

    reason: str


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a CSV file is written: the names of its columns (one that comes again as ``name.1``), and the separator."""

    columns: tuple[str, ...]
    delimiter: str


def sniff(head: str) -> Dialect | None:
    """The dialect of a file that begins with ``head``, ``None`` if it is no CSV; one column is a name and numbers."""
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

    ``lines`` keep their ends, wrong bytes are lone surrogates. A :class:`TraceError` ends what is no CSV any more.
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
