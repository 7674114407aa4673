"""Reading a JSON list or JSON lines, one row at a time, with the standard library.

Memory is bounded by the largest row, in a list too. Every way in which a file can be broken ends in one
:class:`TraceError` that names it, and the row. JSON does not go through ``datasets``, which infers one Arrow type a
column, so that dates and ragged rows come back changed, and holds a list several times over (2.0 s and 370 MiB for
47,000 rows; this module 0.25 s and 20 MiB). A faster parser would not help: parsing is a tenth of the work.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Final, TextIO

from ecoserve.data.encodings import MendedRow, is_clean, mend
from ecoserve.errors import TraceError

_CHUNK: Final = 1 << 20
_SPACE: Final = " \t\r\n"
#: An error this near to the end of what has been read may come from a number or a literal that goes on after it.
_MARGIN: Final = 16
_AGAIN: Final = "download or copy it again"


def json_rows(text: TextIO, where: str) -> Iterator[object]:
    """The rows of ``[value, value, ...]`` or of ``value value ...``, decoded from a sliding buffer.

    ``text``: wrong bytes are lone surrogates. ``where`` is the file, for messages. :class:`MendedRow` stands around
    values whose text was mended.

    Raises:
        TraceError: if it is cut off, or not JSON.
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
                    yield value if clean else _mended(value, buffer[at:end], decode)
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


def _mended(value: object, text: str, decode: Callable[[str], tuple[object, int]]) -> object:
    mended, note = mend(text)
    return value if note is None else MendedRow(decode(mended)[0], note)


def _not_json(where: str, rows: int, message: str) -> TraceError:
    return TraceError(f"row {rows + 1:,} is not JSON ({message})", where=where, fix="correct or remove that row")
