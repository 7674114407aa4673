"""SLO attainment against the scale of the SLO.

With ``slo_scale`` the deadline of a request is that many times its time on an idle engine. So the slowdown of every
request is known, and from it the attainment at any other scale. The schedulers knew only the scale of their run.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from ecoserve.pages import Cell, Column, Figure, Table, plain, plots, write
from ecoserve.sweep.reporting.details import Details, Values
from ecoserve.sweep.reporting.metrics import SLO
from ecoserve.sweep.reporting.report_data import ReportData
from ecoserve.sweep.reporting.settings import Load, Setting
from ecoserve.sweep.reporting.tables import level_cell, metric_columns
from ecoserve.sweep.reporting.traces import level_points, setting_line

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
    """Each scale is a run of its own: attainment by scale."""
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
