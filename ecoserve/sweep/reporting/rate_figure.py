"""Plots against the arrival rate: latency, and how many requests meet their SLO."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from ecoserve.pages import Cell, Column, Figure, Panel, Table, spec
from ecoserve.sweep.reporting.choice import along, cast
from ecoserve.sweep.reporting.figures import Style, choosable, dash_of, level_points, y_choices
from ecoserve.sweep.reporting.metrics import (
    GOODPUT,
    JCT,
    NORMALIZED,
    NORMALIZED_P99,
    SLO,
    THROUGHPUT,
    TPOT_P99,
    TTFT_P99,
    Metric,
)
from ecoserve.sweep.reporting.settings import Setting, Settings
from ecoserve.sweep.reporting.tables import level_cell

_LATENCIES: Final = (NORMALIZED, NORMALIZED_P99, JCT, TTFT_P99, TPOT_P99, THROUGHPUT)


def latency_figure(settings: Settings, style: Style) -> Figure | None:
    """Latency against rate, one line per setting; None with fewer than two rates."""
    lines = _lines(settings, NORMALIZED)
    if not lines:
        return None
    metrics = [m for m in _LATENCIES if any(s.level(m) for line in lines for s in line)]
    return Figure(
        "rate-latency",
        "Latency against the arrival rate",
        "One line per setting; whiskers run from the lowest to the highest seed. Where lines part is where the KV "
        "cache begins to be short.",
        [_panel("rate-latency-0", "", lines, style, metrics)],
        [style.legend(line[0]) for line in lines],
        _table("rate-latency", "Latency by arrival rate.", lines, metrics),
        wide=True,
        choices=tuple((m.key, m.title) for m in metrics),
        choice_label="Show",
    )


def attainment_figure(settings: Settings, style: Style) -> Figure | None:
    """SLO attainment and goodput against rate; None where nobody had an SLO or there is one rate."""
    lines = _lines(settings, SLO)
    if not lines:
        return None
    return Figure(
        "rate-slo",
        "SLO attainment and goodput against the arrival rate",
        "Left: the share of requests that met their SLO. Right: how many did, per second.",
        [_panel(f"rate-slo-{i}", m.title, lines, style, [m]) for i, m in enumerate((SLO, GOODPUT))],
        [style.legend(line[0]) for line in lines],
        _table("rate-slo", "SLO attainment and goodput by arrival rate.", lines, [SLO, GOODPUT]),
    )


def _lines(settings: Settings, metric: Metric) -> list[list[Setting]]:
    lines = [[s for s in along(settings, one) if s.level(metric)] for one in cast(settings)]
    return [line for line in lines if len(line) > 1]


def _panel(name: str, title: str, lines: Sequence[Sequence[Setting]], style: Style, metrics: Sequence[Metric]) -> Panel:
    traces = []
    for line in lines:
        points = [(s.load.rate_rps or 0.0, s) for s in line]
        trace = {
            "mode": "lines+markers",
            "line": {"width": 2.2, "dash": dash_of(line[0])},
            "hovertemplate": "%{text}<extra></extra>",
            "meta": {"slot": style.slots[line[0].policy]},
        }
        traces.append(choosable(trace, {m.key: level_points(points, m, "requests/s") for m in metrics}))
    first = metrics[0]
    layout = {
        "xaxis": {"title": {"text": "Arrival rate (requests/s)"}, "rangemode": "tozero"},
        "yaxis": {"rangemode": "tozero"},
        "meta": y_choices(metrics),
        "height": 420,
    }
    spoken = [
        f"{line[0].name}: "
        + ", ".join(
            f"{first.write(level.mean)} at {s.load.rate_title}" for s in line if (level := s.level(first)) is not None
        )
        for line in lines
    ]
    return Panel(name, title, spec(traces, layout), f"{first.title} against the arrival rate. {'; '.join(spoken)}.")


def _table(name: str, caption: str, lines: Sequence[Sequence[Setting]], metrics: Sequence[Metric]) -> Table:
    table = Table(
        name,
        caption,
        [Column("Load", number=False), *(Column(m.heading, m.note) for m in metrics)],
        group_title="Setting",
    )
    for line in lines:
        for s in line:
            table.groups.append(s.name)
            table.rows.append([Cell(s.load.title), *(level_cell(s, m) for m in metrics)])
    return table
