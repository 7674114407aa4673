"""Figures over the arrival rate or the scale of the SLO: latency, attainment, and latency against throughput.

With ``slo_scale`` a deadline is that many times the request's time on an idle engine: so the slowdown of every request
is known, and from it the attainment at any other scale. The schedulers knew only the scale of their run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from ecoserve.pages import NOTHING, Cell, Column, Figure, Panel, Table, plain, plots, write
from ecoserve.sweep.reporting.report_data import Details, ReportData, Values
from ecoserve.sweep.reporting.settings import (
    GOODPUT,
    JCT,
    NORMALIZED,
    NORMALIZED_P99,
    SLO,
    THROUGHPUT,
    TPOT_P99,
    TTFT_P99,
    Load,
    Metric,
    Setting,
    level_points,
    setting_line,
    y_choices,
)
from ecoserve.sweep.reporting.tables import level_cell, metric_columns

Lines = Sequence[Sequence[Setting]]
_LATENCIES: Final = (NORMALIZED, NORMALIZED_P99, JCT, TTFT_P99, TPOT_P99, THROUGHPUT)


def latency_figure(report: ReportData) -> Figure | None:
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


_SCALES: Final = tuple(float(s) for s in np.round(np.geomspace(1.0, 40.0, 41), 2))
_SHOWN: Final = (1.5, 2.0, 3.0, 4.0, 5.0, 7.0, 10.0, 15.0, 20.0)
_PANELS: Final = 2
_TITLE: Final = "SLO attainment against the scale of the SLO"


def scale_figure(report: ReportData) -> Figure | None:
    """Attainment by scale: from runs at several scales if the sweep varied it, else computed from the slowdowns."""
    if report.load is None:
        return None
    if any(name == "slo_scale" for name, _ in report.load.variant):
        return _run_scales(report)
    return _computed_scales(report, report.load)


def _computed_scales(report: ReportData, load: Load) -> Figure | None:
    """Under the main load and the next lower rate; None if no run had deadlines."""
    details, rows = report.details, report.cast
    rates = sorted({s.load.rate_rps or 0.0 for one in rows for s in report.along(one)})
    caption = "Share of requests done within so many times their time on an idle engine."
    shares = (Column(f"{scale:g}×", unit="share") for scale in _SHOWN)
    table = Table("slo-scale", caption, ["Setting", *shares], group_title="Load")
    panels, of_runs = [], set[float]()
    for rate in [r for r in rates if r <= (load.rate_rps or 0.0)][-_PANELS:] or [load.rate_rps or 0.0]:
        here = [s for one in rows for s in (report.along(one) or [one]) if (s.load.rate_rps or 0.0) == rate]
        traces, spoken = [], []
        for s in here:
            taken = slowdowns(s, details)
            if not len(taken):
                continue
            of_runs |= {float(scale) for run in s.runs if (scale := details.settings(run).get("slo_scale")) is not None}
            met = [round(_within(taken, scale), 4) for scale in _SCALES]
            hover = f"{plain(s.name)}<br>%{{x}} times: %{{y:.0%}}"
            traces.append(plots.line(_SCALES, met, s.slot, s.name, hover=hover, dash=s.dash))
            table.add([s.name, *(_within(taken, scale) for scale in _SHOWN)], s.load.title)
            spoken.append(f"{s.name}: {write(_within(taken, 5.0), 'share')} within 5 times")
        if traces:
            title = here[0].load.title
            alt = f"SLO attainment against the scale of the SLO at {title}. {'; '.join(spoken)}."
            x = plots.axis("SLO scale (times an idle engine)", type="log", tickvals=[1, 2, 5, 10, 20, 40])
            y = plots.axis("SLO attainment", share=True, range=[0, 1.02])
            panels.append(plots.panel(traces, alt, title, x=x, y=y))
    if not panels:
        return None
    scales = ", ".join(f"{scale:g}" for scale in sorted(of_runs))
    text = (
        "Share of requests done within so many times their time on an idle engine; all seeds together. The schedulers "
        f"used an SLO of {scales} times; other scales are computed afterwards."
    )
    return Figure("slo-scale", _TITLE, text, panels, table)


def _run_scales(report: ReportData) -> Figure | None:
    traces, spoken = [], []
    caption = "SLO attainment by the scale of the run."
    table = Table("slo-scale", caption, ["SLO scale", *metric_columns([SLO])], group_title="Setting")
    for one in report.cast:
        line = sorted(
            ((float(dict(s.load.variant)["slo_scale"]), s) for s in report.settings if _same(s) == _same(one)),
            key=lambda item: item[0],
        )
        line = [(scale, s) for scale, s in line if s.level(SLO) is not None]
        if len(line) < 2:
            continue
        traces.append(setting_line(one, {SLO.key: level_points(line, SLO, "times an idle engine")}))
        for scale, s in line:
            table.add([Cell(scale, f"{scale:g}"), level_cell(s, SLO)], one.name)
        spoken.append(f"{one.name}: {table.rows[-1][1].text} at {line[-1][0]:g}")
    if not traces:
        return None
    alt = f"SLO attainment against the scale of each run. {'; '.join(spoken)}."
    y = plots.axis(SLO.heading, range=[0, 102])
    panel = plots.panel(traces, alt, report.cast[0].load.rate_title, x="SLO scale (times an idle engine)", y=y)
    text = "Each scale is a run of its own: the schedulers knew it. Whiskers run from the lowest to the highest seed."
    return Figure("slo-scale", _TITLE, text, [panel], table)


def _same(s: Setting) -> tuple[object, ...]:
    """Equal for settings that differ in the scale only."""
    others = tuple(item for item in s.load.variant if item[0] != "slo_scale")
    return (*s.choice, s.load.engine, s.load.condition, s.load.rate_rps, others)


def slowdowns(setting: Setting, details: Details) -> Values:
    """Time of each accepted request over its time on an idle engine (infinity: not finished); empty if unknown."""
    found = []
    for run in setting.runs:
        scale, rows = details.settings(run).get("slo_scale"), details.requests(run)
        if scale is None or rows is None or np.isnan(rows["deadline_s"]).any():
            continue
        alone = (rows["deadline_s"] - rows["arrival_s"]) / float(scale)
        taken = np.where(np.isnan(rows["finish_s"]), np.inf, rows["finish_s"] - rows["arrival_s"])
        found.append(taken / alone)
    return np.concatenate(found) if found else np.zeros(0)


def _within(taken: Values, scale: float) -> float:
    # A request that ends exactly at its deadline meets it, whatever the division left.
    return float(np.mean(taken <= scale * (1 + 1e-9)))
