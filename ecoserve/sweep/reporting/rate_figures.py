"""Figures over the arrival rate: latency, SLO attainment, and the trade of latency for throughput."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from ecoserve.pages import NOTHING, Figure, Panel, Table, plain, plots
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
from ecoserve.sweep.reporting.report_data import ReportData
from ecoserve.sweep.reporting.settings import Setting
from ecoserve.sweep.reporting.tables import level_cell, metric_columns
from ecoserve.sweep.reporting.traces import level_points, setting_line, y_choices

Lines = Sequence[Sequence[Setting]]
_LATENCIES: Final = (NORMALIZED, NORMALIZED_P99, JCT, TTFT_P99, TPOT_P99, THROUGHPUT)


def latency_figure(report: ReportData) -> Figure | None:
    """Latency against rate; None with fewer than two rates."""
    lines = report.lines(NORMALIZED)
    if not lines:
        return None
    shown = [metric for metric in _LATENCIES if any(s.level(metric) for line in lines for s in line)]
    text = (
        "One line per setting; whiskers run from the lowest to the highest seed. Lines part where the KV cache begins "
        "to be short."
    )
    table = _table("rate-latency", "Latency by arrival rate.", lines, shown)
    choices = {metric.key: metric.title for metric in shown}
    title = "Latency against the arrival rate"
    return Figure("rate-latency", title, text, [_panel("", lines, shown)], table, choices)


def attainment_figure(report: ReportData) -> Figure | None:
    """SLO attainment and goodput against rate; None without SLOs or with fewer than two rates."""
    lines = report.lines(SLO)
    if not lines:
        return None
    shown = [SLO, GOODPUT]
    text = "Left: the share of requests that met their SLO. Right: how many did, per second."
    table = _table("rate-slo", "SLO attainment and goodput by arrival rate.", lines, shown)
    panels = [_panel(metric.title, lines, [metric]) for metric in shown]
    return Figure("rate-slo", "SLO attainment and goodput against the arrival rate", text, panels, table)


def _panel(title: str, lines: Lines, metrics: Sequence[Metric]) -> Panel:
    first = metrics[0]
    traces, spoken = [], []
    for line in lines:
        points = [(s.load.rate_rps or 0.0, s) for s in line]
        by = {metric.key: level_points(points, metric, "requests/s") for metric in metrics}
        traces.append(setting_line(line[0], by))
        said = (f"{first.write(s.mean(first))} at {s.load.rate_title}" for s in line if s.level(first))
        spoken.append(f"{line[0].name}: {', '.join(said)}")
    alt = f"{first.title} against the arrival rate. {'; '.join(spoken)}."
    axes = {"x": plots.from_zero("Arrival rate (requests/s)"), "y": plots.from_zero("")}
    return plots.panel(traces, alt, title, **axes, meta=y_choices(metrics), height=420)


def _table(name: str, caption: str, lines: Lines, metrics: Sequence[Metric]) -> Table:
    table = Table(name, caption, ["Load", *metric_columns(metrics)], group_title="Setting")
    for s in (s for line in lines for s in line):
        table.add([s.load.title, *(level_cell(s, metric) for metric in metrics)], s.name)
    return table


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
    caption = "Latency and throughput of every point; no setting that could be run beats a point on the front in both."
    columns = ["Setting", *metric_columns([NORMALIZED, *metrics]), *(f"Front ({m.title.lower()})" for m in metrics)]
    table = Table("pareto", caption, columns, group_title="Load")
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
