"""ShareGPT: one conversation a row (``conversations`` of ``from`` and ``value``, or of ``role`` and ``content``).

Its exchanges are those of :mod:`ecoserve.data.formats.turns`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from ecoserve.data.fields import Row
from ecoserve.data.formats.base import Exchange, Format, Reject
from ecoserve.data.formats.turns import conversation


def _matches(row: Row) -> bool:
    turns = row.get("conversations")
    if turns is None:
        return "conversations" in row and "id" in row
    return isinstance(turns, list) and all(
        isinstance(t, dict) and ("from" in t or "role" in t) and ("value" in t or "content" in t) for t in turns
    )


def _read(row: Row, index: int) -> Iterator[Exchange | Reject]:
    return conversation(row.get("conversations"), row, index)


FORMAT: Final = Format(
    "sharegpt",
    looks_like="id, conversations[].from, conversations[].value",
    about="exports of ShareGPT and data sets in its layout: counts, model, time, finish reason of each message",
    matches=_matches,
    read=_read,
)
