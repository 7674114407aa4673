"""Figures of a report: short functions that make Plotly traces, axes and plots as plain dictionaries.

``meta.slot`` of a trace is a place of the palette; the page's script fills in the theme (page.css). A trace may carry
its points several times (``by``), once for each of the figure's ``choices``.
"""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, TypeAlias

from ecoserve.pages.tables import Table

#: Colours of the palette (page.css); slot 0 is the baseline of a comparison.
SLOTS: Final = 7
Trace: TypeAlias = dict[str, Any]
Values: TypeAlias = Sequence[Any]
_LAYOUT: Final = {"template": {}, "margin": {"l": 64, "r": 16, "t": 28, "b": 56}, "hovermode": "closest"}
_TICKS: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000, 500000)


class LegendEntry(NamedTuple):
    """A line of the legend; ``dash`` and ``symbol`` are drawn as in the plot, so that colour is never needed."""

    label: str
    slot: int
    dash: str = ""
    symbol: str = ""


@dataclass(frozen=True, slots=True)
class Panel:
    """One plot: a Plotly figure as JSON, what it shows in words, its title, and its part of the legend."""

    spec: dict[str, Any]
    alt: str
    title: str
    legend: tuple[LegendEntry, ...]


@dataclass(slots=True)
class Figure:
    """A group of plots with one explanation, one legend and one table.

    ``choices`` (key -> title) is what the x axis may show, or the y axis if ``meta.axis`` of the layout is ``y``.
    """

    id: str
    title: str
    text: str
    panels: list[Panel]
    table: Table
    choices: Mapping[str, str] = field(default_factory=dict)
    choice_label: str = "Show"

    @property
    def legend(self) -> list[LegendEntry]:
        return list(dict.fromkeys(entry for panel in self.panels for entry in panel.legend))


def panel(
    traces: Sequence[Trace], alt: str, title: str = "", *, x: str | Trace, y: str | Trace, **layout: Any
) -> Panel:
    """A plot; an axis is its title or made by :func:`axis`. Plotly's own model refuses what it does not know."""
    import plotly.graph_objects as go

    legend = [trace["legend"] for trace in traces if trace.get("legend")]
    data = [{"showlegend": False, **{k: v for k, v in trace.items() if k != "legend"}} for trace in traces]
    axes = {f"{name}axis": axis(a) if isinstance(a, str) else a for name, a in (("x", x), ("y", y))}
    figure = go.Figure(data=data, layout={**_LAYOUT, **axes, **layout})
    return Panel(json.loads(figure.to_json()), alt, title, tuple(dict.fromkeys(legend)))


def line(
    x: Values, y: Values, slot: int, name: str = "", *, dash: str = "solid", width: float = 2.2, symbol: str = "",
    size: float = 8, steps: bool = False, **more: Any,
) -> Trace:  # fmt: skip
    """A line, with points if ``symbol`` is given; a ``name`` puts it into the legend. See :func:`_scatter`."""
    shape = {"shape": "hv"} if steps else {}
    look = {"mode": "lines+markers" if symbol else "lines", "line": {"width": width, "dash": dash, **shape}}
    look |= {"marker": {"size": size, "symbol": symbol}} if symbol else {}
    return _scatter(x, y, look, LegendEntry(name, slot, dash, symbol), **more)


def points(
    x: Values, y: Values, slot: int, name: str = "", *, symbol: str = "circle", size: float = 9, key: str = "",
    opacity: float = 1, **more: Any,
) -> Trace:  # fmt: skip
    """Points without a line; ``key`` is the symbol of the legend, if it is another."""
    marker = {"size": size, "symbol": symbol, "opacity": opacity, "line": {"width": 2 * ("open" in symbol)}}
    look = {"mode": "markers", "marker": marker}
    return _scatter(x, y, look, LegendEntry(name, slot, "", key or symbol), **more)


def _scatter(
    x: Values, y: Values, look: Trace, entry: LegendEntry, *, hover: str = "", by: Mapping[str, Trace] | None = None,
    meta: Mapping[str, Any] | None = None, **more: Any,
) -> Trace:  # fmt: skip
    """``hover`` is Plotly's template; ``by`` holds the points for each choice of the figure."""
    found = next(iter(by.values())) if by else {"x": list(x), "y": list(y)}
    shown = {"hovertemplate": f"{hover}<extra></extra>"} if hover else {"hoverinfo": "skip"}
    known = {"slot": entry.slot, **({"by": by} if by else {}), **(meta or {})}
    return {
        "type": "scatter",
        **look,
        **found,
        **shown,
        **more,
        "meta": known,
        "legend": entry if entry.label else None,
    }


def band(x: Values, low: Values, high: Values, slot: int) -> Trace:
    outline = {"x": [*x, *reversed(x)], "y": [*high, *reversed(low)], "mode": "none", "fill": "toself"}
    return {"type": "scatter", **outline, "hoverinfo": "skip", "meta": {"slot": slot, "band": 1}}


def bars(x: Values, y: Values, slot: int, name: str = "", *, hover: str, hatched: bool = False, **more: Any) -> Trace:
    """Bars; ``orientation="h"`` lays them down."""
    pattern = {"marker": {"pattern": {"shape": "/"}}} if hatched else {}
    text = {"textposition": "none"} if "text" in more else {}
    trace = {"type": "bar", "x": list(x), "y": list(y), "hovertemplate": f"{hover}<extra></extra>", **text, **pattern}
    entry = LegendEntry(name, slot, "", "hatched" if hatched else "square") if name else None
    return {**trace, **more, "meta": {"slot": slot}, "legend": entry}


def heatmap(x: Values, y: Values, z: Values, slot: int, *, hover: str, meta: Trace | None = None, **more: Any) -> Trace:
    """A heat map; rows of ``z`` run along ``y``."""
    known = {"slot": slot, **(meta or {})}
    trace = {"type": "heatmap", "x": list(x), "y": list(y), "z": z, "hovertemplate": f"{hover}<extra></extra>"}
    return {**trace, "showscale": False, "meta": known, **more}


def whiskers(middle: Sequence[float], low: Sequence[float], high: Sequence[float], width: float = 1.5) -> Trace:
    up = [max(0.0, h - m) for h, m in zip(high, middle, strict=True)]
    down = [max(0.0, m - b) for b, m in zip(low, middle, strict=True)]
    return {"type": "data", "symmetric": False, "array": up, "arrayminus": down, "thickness": width, "width": 4}


def axis(title: str = "", **more: Any) -> dict[str, Any]:
    """An axis; ``share=True`` for shares of one, ``percent=True`` for numbers in per cent."""
    share = {"tickformat": ".0%"} if more.pop("share", False) else {}
    percent = {"ticksuffix": " %"} if more.pop("percent", False) else {}
    return {**({"title": {"text": title}} if title else {}), **share, **percent, **more}


def from_zero(title: str, **more: Any) -> dict[str, Any]:
    return axis(title, rangemode="tozero", **more)


def tokens_axis(title: str, **more: Any) -> dict[str, Any]:
    texts = [str(n) if n < 1000 else f"{n // 1000}k" for n in _TICKS]
    return axis(title, type="log", tickvals=list(_TICKS), ticktext=texts, zeroline=False, **more)


def names_axis(names: Sequence[str]) -> dict[str, Any]:
    """A y axis of named rows at 0, 1, 2, ... from the top down; the names must be plain (:func:`plain`)."""
    ends = [len(names) - 0.4, -0.6]
    return axis(tickvals=list(range(len(names))), ticktext=list(names), range=ends, showgrid=False, zeroline=False)


def plain(text: str) -> str:
    """Text that Plotly shows as it is: it would take ``<b>`` or ``<a href>`` for markup."""
    return html.escape(text, quote=False)
