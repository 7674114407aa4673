"""A page's plots as Plotly figures without colours: the page fills those in for its light or dark theme.

Each trace says in ``meta.slot`` which colour of the palette it takes. A plot may carry its points several times, once
for each of the figure's ``choices``, and the page switches between them.
"""

from __future__ import annotations

import html
import json
from dataclasses import dataclass
from typing import Any, Final

from ecoserve.pages.tables import Table

#: Colours of the palette (see page.css); a report that compares with something gives that the first.
SLOTS: Final = 7


@dataclass(frozen=True, slots=True)
class LegendEntry:
    """A line of the legend; ``dash`` and ``symbol`` are drawn as in the plot, so that colour is never needed."""

    label: str
    slot: int
    dash: str = ""
    symbol: str = ""


@dataclass(frozen=True, slots=True)
class Panel:
    """One plot: its title, the Plotly figure as JSON, and what it shows in words."""

    id: str
    title: str
    spec: dict[str, Any]
    alt: str


@dataclass(slots=True)
class Figure:
    """A group of plots with one explanation, one legend and one table of data.

    ``choices`` are (key, title) of what its x axis may show (its y axis, if the layout's ``meta.axis`` says so),
    ``choice_label`` what a person is asked.
    """

    id: str
    title: str
    text: str
    panels: list[Panel]
    legend: list[LegendEntry]
    table: Table
    wide: bool = False
    choices: tuple[tuple[str, str], ...] = ()
    choice_label: str = ""


def spec(traces: list[dict[str, Any]], layout: dict[str, Any]) -> dict[str, Any]:
    """A checked Plotly figure as plain data: Plotly's own model refuses what it does not know."""
    import plotly.graph_objects as go

    figure = go.Figure(
        data=[{"type": "scatter", "showlegend": False, **trace} for trace in traces],
        layout={"template": {}, "margin": {"l": 64, "r": 16, "t": 28, "b": 56}, "hovermode": "closest", **layout},
    )
    spec: dict[str, Any] = json.loads(figure.to_json())
    return spec


def plain(text: str) -> str:
    """Text that Plotly shows as it is: it would take ``<b>`` or ``<a href>`` for markup."""
    return html.escape(text, quote=False)
