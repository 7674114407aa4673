"""Latency and SLO attainment against the arrival rate, one line per setting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from ecoserve.pages import Figure, Panel, Table, plots
from ecoserve.sweep.reporting import metrics as m
from ecoserve.sweep.reporting.report_data import ReportData
from ecoserve.sweep.reporting.settings import Setting
from ecoserve.sweep.reporting.tables import level_cell, metric_columns
from ecoserve.sweep.reporting.traces import level_points, setting_line, y_choices

Lines = Sequence[Sequence[Setting]]
_LATENCIES: Final = (m.NORMALIZED, m.NORMALIZED_P99, m.JCT, m.TTFT_P99, m.TPOT_P99, m.THROUGHPUT)


def latency_figure(report: ReportData) -> Figure | None:
    """Latency against rate; None with fewer than two rates."""
    lines = report.lines(m.NORMALIZED)
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
    lines = report.lines(m.SLO)
    if not lines:
        return None
    shown = [m.SLO, m.GOODPUT]
    text = "Left: the share of requests that met their SLO. Right: how many did, per second."
    table = _table("rate-slo", "SLO attainment and goodput by arrival rate.", lines, shown)
    panels = [_panel(metric.title, lines, [metric]) for metric in shown]
    return Figure("rate-slo", "SLO attainment and goodput against the arrival rate", text, panels, table)


def _panel(title: str, lines: Lines, metrics: Sequence[m.Metric]) -> Panel:
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


def _table(name: str, caption: str, lines: Lines, metrics: Sequence[m.Metric]) -> Table:
    table = Table(name, caption, ["Load", *metric_columns(metrics)], group_title="Setting")
    for s in (s for line in lines for s in line):
        table.add([s.load.title, *(level_cell(s, metric) for metric in metrics)], s.name)
    return table
