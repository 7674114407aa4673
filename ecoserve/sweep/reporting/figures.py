"""The report's plots as Plotly figures without colours: the page fills those in for its light or dark theme.

Each trace says in ``meta.slot`` which colour of the palette it takes. A plot over the accuracy of the lengths carries
its points once for every way to measure accuracy, and the page switches between them.
"""

from __future__ import annotations

import html
import json
from dataclasses import dataclass, field
from typing import Any, Final

from ecoserve.sweep.reporting.settings import Settings
from ecoserve.sweep.reporting.tables import Table

#: Colours of the palette (see report.css); the baseline has the first, and the last is reused beyond.
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
    """A group of plots with one explanation, one legend and one table of data."""

    id: str
    title: str
    text: str
    panels: list[Panel]
    legend: list[LegendEntry]
    table: Table
    switches_measure: bool = False
    wide: bool = False


@dataclass(slots=True)
class Style:
    """Which colour each policy has, in all plots."""

    slots: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, settings: Settings) -> Style:
        others = dict.fromkeys(s.policy for s in settings.all if s.policy != settings.baseline)
        slots = {policy: min(i, SLOTS - 1) for i, policy in enumerate(others, start=1)}
        return cls({settings.baseline: 0, **slots})


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
