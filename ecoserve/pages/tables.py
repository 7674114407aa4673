"""Tables of a report, for the page, for the terminal and as CSV with full precision; and how numbers are written."""

from __future__ import annotations

import csv
import io
from base64 import b64encode
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, TypeAlias

#: Shown where there is no number.
NOTHING: Final = "–"
_MINUS: Final = "−"


def write(value: float | None, unit: str = "") -> str:
    """A number with its unit: ``11.1 s``, ``34.2 ms/token``, ``1,234``, ``67 %`` (unit ``share``), ``–`` for None."""
    if value is None:
        return NOTHING
    if unit == "share":
        return f"{digits(100 * value)} %"
    if unit == "ms" and abs(value) >= 1000:
        value, unit = value / 1000, "s"
    return f"{digits(value, count=not unit)} {unit}".rstrip()


def write_range(low: float | None, high: float | None, unit: str = "") -> str:
    """An interval: ``76.1 % to 78.9 %``; empty where it is unknown."""
    return "" if low is None or high is None else f"{write(low, unit)} to {write(high, unit)}"


def write_change(relative: float, *, sign: bool = True) -> str:
    """A relative difference: ``−71 %``, ``+3.2 %``; from +200 % on as a factor: ``12.0×``."""
    if relative >= 2:
        return f"{digits(1 + relative)}×"
    percent = 100 * relative
    text = f"{abs(percent):.0f}" if abs(percent) >= 9.95 else f"{abs(percent):.1f}"
    if float(text) == 0:
        return "0 %"
    mark = (_MINUS if percent < 0 else "+") if sign else ""
    return f"{mark}{text} %"


def signed(value: float) -> str:
    """A difference with its sign: ``+12``."""
    text = write(abs(value))
    return text if value == 0 else f"{'+' if value > 0 else _MINUS}{text}"


def digits(value: float, *, count: bool = False) -> str:
    """Three significant digits, at least the integer part, thousands separated; whole counts without decimals."""
    size = abs(value)
    if size == 0:
        return "0"
    if count and value == int(value) and size < 1e15:
        return f"{int(value):,}".replace("-", _MINUS)
    if size >= 99.95:
        text = f"{size:,.0f}"
    elif size >= 9.995:
        text = f"{size:.1f}"
    elif size >= 0.9995:
        text = f"{size:.2f}"
    elif size >= 0.0005:
        text = f"{size:.3f}"
    else:
        text = f"{size:.1e}"
    return f"{_MINUS if value < 0 else ''}{text}"


Tone = Literal["", "good", "bad", "quiet"]


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell: value (for the CSV), text shown (else the number in its column's unit), smaller second line, tone."""

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
    """A table with a caption and the ``name`` of its CSV file; the first cell of each row is its header.

    ``group_title``: title of the groups in the CSV (:meth:`add`). ``folded``: hidden on the page until it is opened.
    """

    def __init__(
        self, name: str, caption: str, columns: Iterable[Any], rows: Iterable[Row] = (), *, group_title: str = "Group"
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
