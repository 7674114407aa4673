"""Trace formats: which there are, and which one a file is.

Rule: a new format is one module with one class and one entry in :data:`FORMATS`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from ecoserve.data.fields import describe
from ecoserve.data.formats.alpaca import Alpaca
from ecoserve.data.formats.base import Exchange, Format, Reject, Row
from ecoserve.data.formats.records import Records, save_trace
from ecoserve.data.formats.sharegpt import ShareGPT
from ecoserve.errors import TraceError

__all__ = ["FORMATS", "Exchange", "Format", "Reject", "Row", "detect", "get_format", "save_trace"]

#: Every format, in the order in which they are tried.
FORMATS: Final[tuple[Format, ...]] = (Records(), ShareGPT(), Alpaca())


def get_format(name: str) -> Format:
    """The format called ``name``.

    Raises:
        TraceError: if there is none.
    """
    for form in FORMATS:
        if form.name == name:
            return form
    known = ", ".join(f.name for f in FORMATS)
    raise TraceError(f"there is no trace format {name!r}", fix=f"use one of: auto, {known}")


def detect(rows: Sequence[object], where: str) -> Format:
    """The format that most of ``rows`` (the first of a file) have.

    Raises:
        TraceError: if no format knows any of them; says what was seen and what is known.
    """
    objects = [r for r in rows if isinstance(r, dict)]
    votes = [(sum(f.matches(r) for r in objects), f) for f in FORMATS]
    best, form = max(votes, key=lambda v: v[0])
    if best:
        return form
    seen = f"fields {describe(objects[0])}" if objects else f"rows that are no objects ({type(rows[0]).__name__})"
    known = "; ".join(f"{f.name}: {f.looks_like}" for f in FORMATS)
    raise TraceError(f"unknown trace format, it has {seen}", where=where, fix=f"known formats are {known}")
