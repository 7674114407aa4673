"""Latency against throughput: every shown setting at every rate, and the front that no other setting beats in both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from ecoserve.pages import NOTHING, Figure, Table, plain, plots
from ecoserve.sweep.reporting.metrics import GOODPUT, NORMALIZED, THROUGHPUT, Metric
from ecoserve.sweep.reporting.report_data import ReportData
from ecoserve.sweep.reporting.settings import Setting
from ecoserve.sweep.reporting.tables import level_cell, metric_columns
from ecoserve.sweep.reporting.traces import setting_line, y_choices

_YIELDS: Final = (THROUGHPUT, GOODPUT)


def pareto_figure(report: ReportData) -> Figure | None:
    """One line per setting through its rates; None with fewer than two rates."""
    lines = report.lines(NORMALIZED)
    points = [s for line in lines for s in line]
    metrics = [m for m in _YIELDS if any(s.level(m) for s in points)]
    if not metrics:
        return None
    fronts = {m.key: front([s for s in points if s.kind != "true"], m) for m in metrics}
    traces = [setting_line(line[0], {m.key: _points(line, m) for m in metrics}, width=1.4) for line in lines]
    ring = {m.key: _points(fronts[m.key], m) for m in metrics}
    traces.append(plots.points([], [], 2, "on the front", by=ring, symbol="circle-open", size=16))
    first = metrics[0]
    spoken = "; ".join(f"{s.name} at {s.load.rate_title}" for s in fronts[first.key])
    alt = f"{first.title} against normalized latency. No other setting beats in both: {spoken}."
    x = plots.axis(f"{NORMALIZED.heading}, left is better", type="log")
    panel = plots.panel(traces, alt, x=x, y=plots.from_zero(first.heading), meta=y_choices(metrics), height=440)
    table = Table(
        "pareto",
        "Latency and throughput of every point; no setting that could be run beats a point on the front in both.",
        ["Setting", *metric_columns([NORMALIZED, *metrics]), *(f"Front ({m.title.lower()})" for m in metrics)],
        group_title="Load",
    )
    for s in points:
        marks = ["on it" if any(s is x for x in fronts[m.key]) else NOTHING for m in metrics]
        table.add([s.name, *(level_cell(s, m) for m in (NORMALIZED, *metrics)), *marks], s.load.title)
    text = (
        "Each line is a setting, each point a rate; up and to the left is better. Ringed: no setting that could be run "
        "is better in both (oracles are shown and do not count)."
    )
    choices = {m.key: m.title for m in metrics}
    return Figure("pareto", "Latency against throughput", text, [panel], table, choices)


def front(settings: Sequence[Setting], metric: Metric) -> list[Setting]:
    """The settings that no other beats: as fast and with more, or as much and faster; by means over seeds."""
    known = [
        (latency, amount, s)
        for s in settings
        if (latency := s.mean(NORMALIZED)) is not None and (amount := s.mean(metric)) is not None
    ]
    return [
        s
        for x, y, s in sorted(known, key=lambda item: item[:2])
        if not any(a <= x and b >= y and (a, b) != (x, y) for a, b, _ in known)
    ]


def _points(line: Sequence[Setting], metric: Metric) -> plots.Trace:
    known = [s for s in line if s.level(NORMALIZED) and s.level(metric)]
    text = [
        f"{plain(s.name)}<br>{s.load.rate_title}<br>{plain(NORMALIZED.write(s.mean(NORMALIZED)))}, "
        f"{plain(metric.write(s.mean(metric)))}"
        for s in known
    ]
    return {"x": [s.mean(NORMALIZED) for s in known], "y": [s.mean(metric) for s in known], "text": text}
