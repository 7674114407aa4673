"""A profile, and a comparison, as tables in the terminal."""

from __future__ import annotations

from typing import Final

from rich import box
from rich.console import Console
from rich.table import Table as RichTable

from ecoserve.data.profiling import Comparison, Profile
from ecoserve.data.profiling.reporting import comparison_page, tables, worth_figures
from ecoserve.data.profiling.reporting.length_figures import groups
from ecoserve.pages import NOTHING, Table

#: From this width on, a table is shown with all its columns.
_WIDE: Final = 120
#: Table -> columns that a narrower terminal goes without.
_NARROW: Final[dict[str, frozenset[str]]] = {
    "lengths": frozenset({"CV", "Min", "p1", "p5", "p25", "p75", "p99.9"}),
    "groups": frozenset({"Share", "10 %", "25 %", "75 %"}),
    "reservations": frozenset({"Wasted, answers only", "Records"}),
    "laws": frozenset({"Anderson–Darling", "AIC, above the best"}),
    "same-prompt": frozenset({"Answers", "Explained, log"}),
}


def show_profile(profile: Profile, console: Console) -> None:
    """Print the answer, then the page's tables."""
    if console.quiet:
        return
    _say(profile.answer, profile.notes, console)
    by_group = groups(profile)
    shown = (
        tables.lengths_table(profile),
        by_group.table if by_group is not None else None,
        tables.guesses_table(profile),
        tables.same_prompt_table(profile),
        tables.models_table(profile),
        worth_figures.reservations(profile).table,
        worth_figures.orders(profile).table,
        tables.laws_table(profile),
        tables.arrivals_table(profile),
    )
    for table in shown:
        if table is not None:
            _print(table, console)
    if profile.drift is not None:
        console.print(f"\n{profile.drift.verdict}", soft_wrap=False)


def show_comparison(comparison: Comparison, console: Console) -> None:
    """Print the verdict, then the page's tables."""
    if console.quiet:
        return
    console.rule(f"{comparison.a.source} against {comparison.b.source}")
    _say(comparison.answer, comparison.notes, console)
    for make in comparison_page.TABLES:
        if (table := make(comparison)) is not None:
            _print(table, console)


def _say(sentences: list[str], notes: list[str], console: Console) -> None:
    for sentence in sentences:
        console.print(f"• {sentence}", soft_wrap=False)
    for note in notes:
        console.print(f"note: {note}", soft_wrap=False)


def _print(table: Table, console: Console) -> None:
    """One of the page's tables; columns that say nothing are left out."""
    dropped = _NARROW.get(table.name, frozenset()) if console.width < _WIDE else frozenset()
    kept = [
        i
        for i, column in enumerate(table.columns)
        if column.title not in dropped and any(row[i].text not in ("", NOTHING) for row in table.rows)
    ]
    console.print(f"\n{table.caption}", style="bold", soft_wrap=False)
    shown = RichTable(box=box.SIMPLE_HEAD, pad_edge=False)
    for i in kept:
        column = table.columns[i]
        # Headings and names wrap between words, numbers do not.
        cells = [row[i].text or "" for row in table.rows]
        parts = cells if table.numeric[i] else [word for text in cells for word in text.split()]
        widest = max(len(text) for text in (*parts, *column.title.split()))
        shown.add_column(column.title, justify="right" if table.numeric[i] else "left", min_width=widest)
    last = ""
    for group, row in table.grouped():
        if group and group != last:
            shown.add_row(group, style="italic")
            last = group
        shown.add_row(*(row[i].text or "" for i in kept))
    console.print(shown, soft_wrap=False)
