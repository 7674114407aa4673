"""What a trace format is.

Rule: a format turns one row into exchanges and says nothing about token lengths, duplicates or limits; those
are the loader's. A row it cannot use becomes a :class:`Reject` with a reason to be counted, never an exception.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from ecoserve.data.records import Record

Row = Mapping[str, Any]

#: A whole number as tables (CSV) write it; columns with gaps in them become ``12.0``.
_WHOLE: Final = re.compile(r"[+-]?[0-9]{1,18}(?:\.0*)?")


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request as the row has it.

    Attributes:
        record: without lengths, unless the row itself counts tokens.
        answer: the answer as found, whatever its type.
        fields: where ``length_field`` and ``sample_field`` are looked up.
        notes: peculiarities to be counted if the record is kept.
        missing: the reason to count where there is neither an answer's text nor its length; ``None`` lets the
            loader name it.
        counts_turn: the file says which conversation this is, but not which turn: the loader counts.
    """

    record: Record
    answer: object
    fields: Row
    notes: tuple[str, ...] = ()
    missing: str | None = None
    counts_turn: bool = False


@dataclass(frozen=True, slots=True)
class Reject:
    """An exchange that cannot be used, and why."""

    reason: str


class Format(Protocol):
    """A trace format."""

    @property
    def name(self) -> str:
        """What ``--format`` calls it."""

    @property
    def looks_like(self) -> str:
        """The fields by which a person knows it."""

    @property
    def own_ids(self) -> bool:
        """Whether conversation and turn are the file's own, so that they tell equal exchanges apart."""

    def matches(self, row: Row) -> bool:
        """Whether ``row`` has this format's fields."""

    def read(self, row: Row, index: int) -> Iterator[Exchange | Reject]:
        """The exchanges of row number ``index`` (0-based in the file)."""


def first_of(row: Row, *names: str) -> Any:
    """The first of the fields ``names`` that the row has, else ``None``."""
    return next((row[n] for n in names if row.get(n) is not None), None)


def whole(value: object) -> int | None:
    """``value`` as a whole number, ``None`` if it is not one.

    Readers widen whole columns to float, and tables (CSV) hold nothing but text.
    """
    if isinstance(value, str):
        return int(value.partition(".")[0]) if _WHOLE.fullmatch(value.strip()) else None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return int(value) if value == value and value not in (float("inf"), float("-inf")) and value == int(value) else None


def text_or_none(value: object) -> str | None:
    """``value`` if it is a text with something in it, else ``None``."""
    return value if isinstance(value, str) and value.strip() else None


def unusable_text(value: object, what: str) -> str | None:
    """Why ``value`` cannot be a prompt or an answer (``what``), or ``None`` if it can.

    Lone surrogates are no text: neither UTF-8 nor a tokenizer takes them.
    """
    if value is None:
        return f"no {what}"
    if not isinstance(value, str):
        return f"{what} is not text"
    if not value.strip():
        return f"empty {what}"
    try:
        value.encode()
    except UnicodeEncodeError:
        return f"{what} is not valid Unicode"
    return None
