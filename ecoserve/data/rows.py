"""What a reader hands on besides plain rows.

Rule: a row that cannot be used, or had to be mended, says so itself, so that whoever counts needs no second channel.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that could not be read, and why; it is counted as dropped."""

    reason: str


@dataclass(frozen=True, slots=True)
class MendedRow:
    """A row that was read after its text was mended.

    Attributes:
        row: the row.
        note: what was wrong, to be counted if the row is kept.
    """

    row: object
    note: str
