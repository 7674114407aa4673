"""Tables of a report: for the page, for the terminal, and as CSV with full precision."""

from __future__ import annotations

import csv
import io
from base64 import b64encode
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

from ecoserve.pages.numbers import write

Tone = Literal["", "good", "bad", "quiet"]


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell: its value (the CSV has it), the text shown, a smaller second line, and a tone.

    Without ``text`` a number is written in the unit of its column.
    """

    value: float | str | None
    text: str | None = None
    beneath: str = ""
    tone: Tone = ""


@dataclass(frozen=True, slots=True)
class Column:
    """A column: its title, an explanation shown on hover, and the unit of its numbers (not shown in the title)."""

    title: str
    note: str = ""
    unit: str = ""


#: Values (numbers, text, None) or cells.
Row: TypeAlias = Sequence[Any]


class Table:
    """A table with a caption; the first cell of each row is its header.

    Args:
        name: the name of its CSV file.
        caption: one or two sentences.
        columns: titles, or columns with a note or a unit.
        rows: values or cells.
        group_title: title of the groups in the CSV, if rows have one (:meth:`add`).

    Attributes:
        folded: hidden on the page until it is opened.
    """

    def __init__(
        self,
        name: str,
        caption: str,
        columns: Iterable[Any],
        rows: Iterable[Row] = (),
        *,
        group_title: str = "Group",
    ) -> None:
        self.name, self.caption, self.group_title = name, caption, group_title
        self.columns = [Column(c) if isinstance(c, str) else c for c in columns]
        self.rows: list[list[Cell]] = []
        self.groups: list[str] = []
        self.folded = False
        for row in rows:
            self.add(row)

    def add(self, row: Row, group: str | None = None) -> None:
        """Append a row; its group is a heading on the page and the first column of the CSV."""
        self.rows.append([self._cell(value, column) for value, column in zip(row, self.columns, strict=True)])
        if group is not None:
            self.groups.append(group)

    @staticmethod
    def _cell(value: Cell | float | str | None, column: Column) -> Cell:
        cell = value if isinstance(value, Cell) else Cell(value)
        if cell.text is not None:
            return cell
        return replace(cell, text=cell.value if isinstance(cell.value, str) else write(cell.value, column.unit))

    @property
    def numeric(self) -> list[bool]:
        """For each column, whether it holds numbers, which are right-aligned; the first one holds row headers."""
        columns = ([row[i].value for row in self.rows] for i in range(1, len(self.columns)))
        known = ([value for value in column if value is not None] for column in columns)
        return [False, *(not values or any(isinstance(v, float | int) for v in values) for values in known)]

    def grouped(self) -> list[tuple[str, list[Cell]]]:
        """Every row with the name of its group ("" if there are none)."""
        return list(zip(self.groups or [""] * len(self.rows), self.rows, strict=True))

    def csv(self) -> str:
        """The table with full precision."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        titles = [column.title for column in self.columns]
        writer.writerow([_harmless(text) for text in ([self.group_title, *titles] if self.groups else titles)])
        for group, row in self.grouped():
            values = [cell.text or "" if cell.value is None else cell.value for cell in row]
            writer.writerow([_harmless(value) for value in ([group, *values] if self.groups else values)])
        return out.getvalue()

    @property
    def csv_uri(self) -> str:
        """The CSV as a ``data:`` URI, so that a download needs no request."""
        return f"data:text/csv;charset=utf-8;base64,{b64encode(self.csv().encode()).decode()}"


def _harmless(value: float | str) -> float | str:
    """Text that a spreadsheet would run as a formula is marked as text."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value
