"""Tables of a page: what is shown, and the same as CSV with full numbers."""

from __future__ import annotations

import csv
import io
from base64 import b64encode
from dataclasses import dataclass, field
from typing import Literal

Tone = Literal["", "good", "bad", "quiet"]


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell: the text shown, a smaller line beneath, the number behind it, and its tone."""

    text: str
    beneath: str = ""
    raw: float | str | None = None
    tone: Tone = ""


@dataclass(frozen=True, slots=True)
class Column:
    """One column; ``note`` explains it to a newcomer."""

    title: str
    note: str = ""
    number: bool = True


@dataclass(slots=True)
class Table:
    """A table with a caption; the first cell of each row is its header.

    ``groups`` names the group of every row, where rows have one: a heading in the page, a first column in the CSV,
    which is called ``group_title`` there. A ``folded`` table is shown when it is asked for, and printed never.
    """

    name: str
    caption: str
    columns: list[Column]
    rows: list[list[Cell]] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    group_title: str = "Group"
    folded: bool = False

    def csv(self) -> str:
        """The table with full numbers, for a spreadsheet."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        head = [self.group_title] if self.groups else []
        writer.writerow([*head, *(_harmless(column.title) for column in self.columns)])
        for group, row in self.grouped():
            cells = [_harmless(cell.text if cell.raw is None else cell.raw) for cell in row]
            writer.writerow([*([_harmless(group)] if self.groups else []), *cells])
        return out.getvalue()

    def grouped(self) -> list[tuple[str, list[Cell]]]:
        """Every row with the name of its group ("" where there are none)."""
        return list(zip(self.groups or [""] * len(self.rows), self.rows, strict=True))

    @property
    def csv_uri(self) -> str:
        """The CSV as a ``data:`` address, so that a download needs no network."""
        return f"data:text/csv;charset=utf-8;base64,{b64encode(self.csv().encode()).decode()}"


def _harmless(value: float | str) -> float | str:
    """Text that a spreadsheet would run as a formula is marked as text."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value
