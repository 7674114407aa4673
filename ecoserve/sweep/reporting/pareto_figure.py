"""Latency against throughput: every shown setting at every rate, and which of them no other one beats in both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from ecoserve.pages import Cell, Column, Figure, LegendEntry, Panel, Table, plain, spec
from ecoserve.sweep.reporting.choice import along, cast
from ecoserve.sweep.reporting.figures import Style, choosable, dash_of, y_choices
from ecoserve.sweep.reporting.metrics import GOODPUT, NORMALIZED, THROUGHPUT, Metric
from ecoserve.sweep.reporting.settings import Setting, Settings
from ecoserve.sweep.reporting.tables import level_cell

_YIELDS: Final = (THROUGHPUT, GOODPUT)


def pareto_figure(settings: Settings, style: Style) -> Figure | None:
    """The trade of latency for throughput, one line per setting through its rates; None with fewer than two rates."""
    lines = [[s for s in along(settings, one) if s.level(NORMALIZED)] for one in cast(settings)]
    lines = [line for line in lines if len(line) > 1]
    metrics = [m for m in _YIELDS if any(s.level(m) for line in lines for s in line)]
    if not lines or not metrics:
        return None
    runnable = [s for line in lines for s in line if s.kind != "true"]
    fronts = {m.key: front(runnable, m) for m in metrics}
    traces: list[dict[str, Any]] = []
    for line in lines:
        trace = {
            "mode": "lines+markers",
            "line": {"width": 1.4, "dash": dash_of(line[0])},
            "marker": {"size": 8},
            "hovertemplate": "%{text}<extra></extra>",
            "meta": {"slot": style.slots[line[0].policy]},
        }
        traces.append(choosable(trace, {m.key: _points(line, m) for m in metrics}))
    ring = {
        "mode": "markers",
        "marker": {"size": 16, "symbol": "circle-open", "line": {"width": 2}},
        "hoverinfo": "skip",
        "meta": {"slot": 2},
    }
    traces.append(choosable(ring, {m.key: _points(fronts[m.key], m) for m in metrics}))
    layout = {
        "xaxis": {"title": {"text": f"{NORMALIZED.heading}, left is better"}, "type": "log"},
        "yaxis": {"title": {"text": metrics[0].heading}, "rangemode": "tozero"},
        "meta": y_choices(metrics),
        "height": 440,
    }
    first = metrics[0]
    spoken = [f"{s.name} at {s.load.rate_title}" for s in fronts[first.key]]
    alt = f"{first.title} against normalized latency. No other setting beats in both: {'; '.join(spoken)}."
    table = Table(
        "pareto",
        "Latency and throughput of every point; a point on the front is beaten in both by none that could be run.",
        [
            Column("Setting", number=False),
            Column(NORMALIZED.heading, NORMALIZED.note),
            *(Column(m.heading, m.note) for m in metrics),
            *(Column(f"Front ({m.title.lower()})", number=False) for m in metrics),
        ],
        group_title="Load",
    )
    for s in (s for line in lines for s in line):
        table.groups.append(s.load.title)
        marks = [Cell("on it" if any(s is x for x in fronts[m.key]) else "–") for m in metrics]
        table.rows.append([Cell(s.name), level_cell(s, NORMALIZED), *(level_cell(s, m) for m in metrics), *marks])
    return Figure(
        "pareto",
        "Latency against throughput",
        "Each line is a setting, each point a rate; up and to the left is better. Ringed: no setting that could be run "
        "is better in both (oracles are shown and do not count).",
        [Panel("pareto-0", "", spec(traces, layout), alt)],
        [*(style.legend(line[0]) for line in lines), LegendEntry("on the front", 2, "", "ring")],
        table,
        wide=True,
        choices=tuple((m.key, m.title) for m in metrics),
        choice_label="Show",
    )


def front(settings: Sequence[Setting], metric: Metric) -> list[Setting]:
    """The settings that none of the others beats: as fast and with more, or as much and faster; by means over seeds."""
    known = [
        (latency.mean, amount.mean, s)
        for s in settings
        if (latency := s.level(NORMALIZED)) is not None and (amount := s.level(metric)) is not None
    ]
    return [
        s
        for x, y, s in sorted(known, key=lambda item: item[:2])
        if not any(a <= x and b >= y and (a, b) != (x, y) for a, b, _ in known)
    ]


def _points(line: Sequence[Setting], metric: Metric) -> dict[str, Any]:
    known = [
        (s, latency, amount)
        for s in line
        if (latency := s.level(NORMALIZED)) is not None and (amount := s.level(metric)) is not None
    ]
    return {
        "x": [latency.mean for _, latency, _ in known],
        "y": [amount.mean for _, _, amount in known],
        "text": [
            f"{plain(s.name)}<br>{s.load.rate_title}<br>{plain(NORMALIZED.write(latency.mean))}, "
            f"{plain(metric.write(amount.mean))}"
            for s, latency, amount in known
        ],
    }
