"""A metric against the accuracy of the lengths: a line per policy, and lines across for settings that use none.

A line joins errors of one kind only, because errors of different kinds do not lie on one curve. Of many loads, those
next to the main one are drawn; the table has all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from ecoserve.pages import Column, Figure, Table, plain, plots, write
from ecoserve.sweep.reporting.report_data import ReportData
from ecoserve.sweep.reporting.settings import Load, Metric, Setting, inner, level_points
from ecoserve.sweep.reporting.tables import level_cell, metric_columns


class Measure(NamedTuple):
    """A measure of how good lengths are: key of a run, axis title, value of true lengths, unit."""

    key: str
    title: str
    perfect: float
    unit: str = ""


MEASURES: Final = (
    Measure("prediction_kendall_tau", "Kendall’s τ of the lengths (1 = perfect order)", 1.0),
    Measure("prediction_within_50", "Lengths within 50 tokens", 1.0, "share"),
    Measure("prediction_mae_tokens", "Mean error of the lengths, in tokens", 0.0, "tokens"),
)
#: Kind of lengths: symbol, name, and whether its points are joined.
_FAMILIES: Final = {
    "predicted": ("diamond", "predicted lengths", True),
    "noise": ("circle", "log-normal error σ", True),
    "tau": ("square", "ranked with a given τ", True),
    "bins": ("triangle-up", "classifier of bins", False),
    "bias": ("x", "biased lengths", False),
    "true": ("star", "true lengths", True),
}
_OTHER: Final = ("x", "other errors", False)
#: The most plots of one metric.
_PANELS: Final = 2


def accuracy_figure(report: ReportData, metric: Metric, name: str) -> Figure | None:
    """One plot per load; None unless some load was run with two accuracies."""
    tight = [x for x in report.loads if x.engine == "virtual" and report.pressure(x) != "no pressure"]
    loads = [x for x in tight if sum(_accuracy(s, MEASURES[0]) is not None for s in report.under(x)) >= 2]
    if not any(s.level(metric) for x in loads for s in report.under(x)):
        return None
    several = len({x.family for x in loads}) > 1
    panels = []
    for load in _drawn(report, loads):
        here = report.tuned([s for s in report.under(load) if s.level(metric)])
        said = "; ".join(f"{s.name} {metric.write(s.mean(metric))}" for s in here)
        alt = f"{metric.title} against accuracy of the lengths at {load.title}: {said}."
        traces = _flat_lines(report, here, metric) + _curves(here, metric)
        y = plots.axis(metric.heading, rangemode="tozero" if metric.better == "lower" else "normal")
        title = load.title if several else load.rate_title
        panels.append(plots.panel(traces, alt, title, x=MEASURES[0].title, y=y, meta={"measures": _axes(here)}))
    columns = ["Setting", *(Column(m.title, unit=m.unit) for m in MEASURES), *metric_columns([metric])]
    table = Table(name, f"{metric.title} by accuracy of the lengths.", columns, group_title="Load")
    for load in loads:
        for s in report.under(load):
            table.add([s.name, *(_accuracy(s, m) for m in MEASURES), level_cell(s, metric)], load.title)
    better = "Lower" if metric.better == "lower" else "Higher"
    text = (
        "Each point is one setting; its whisker runs from the lowest to the highest seed. Lines across are settings "
        f"that use no prediction, and the oracle. {better} is better."
    )
    choices = {measure.key: measure.title for measure in MEASURES}
    return Figure(name, f"Accuracy versus {inner(metric.title)}", text, panels, table, choices, "Accuracy as")


def _drawn(report: ReportData, loads: Sequence[Load]) -> list[Load]:
    """As many loads as fit: those nearest to the main load, slowest first."""
    main = report.load
    rate, family = (main.rate_rps or 0.0, main.family) if main else (0.0, ())
    near = sorted(loads, key=lambda x: (x.family != family, abs((x.rate_rps or 0.0) - rate)))
    return sorted(near[:_PANELS], key=lambda x: (x.others_title, x.rate_rps or 0.0))


def _flat_lines(report: ReportData, here: Sequence[Setting], metric: Metric) -> list[plots.Trace]:
    """Settings without an accuracy, and the oracle: a line across with a band from the lowest to the highest seed."""
    traces = []
    about = {(s.policy, s.lengths) for s in report.cast}
    for s in here:
        level = s.level(metric)
        if level is None or not (s.blind or s.kind in ("none", "true")):
            continue
        if not s.blind and (s.policy, s.lengths) not in about:
            continue  # with several policies, lines across are of the one that the answer is about
        low, mean, high = (metric.column_scale * v for v in (level.low, level.mean, level.high))
        ends = ["low", "high"]
        if s.kind != "true":
            traces.append(plots.band(ends, [low, low], [high, high], s.slot))
        hover = f"{plain(s.name)}<br>{plain(metric.write_level(level))}"
        look: plots.Trace = {"dash": s.dash, "width": 2, "meta": {"across": 1}}
        traces.append(plots.line(ends, [mean, mean], s.slot, s.name, hover=hover, **look))
    return traces


def _curves(here: Sequence[Setting], metric: Metric) -> list[plots.Trace]:
    """For each policy that uses lengths, a line or points for each kind of error."""
    traces = []
    for policy in dict.fromkeys(s.policy for s in here if not s.blind):
        mine = [s for s in here if s.policy == policy and s.kind != "none"]
        truth = [s for s in mine if s.kind == "true"]
        kinds = list(dict.fromkeys(_family(s) for s in mine))
        for kind in kinds:
            if kind == "true" and any(_FAMILIES.get(k, _OTHER)[2] for k in kinds if k != "true"):
                continue  # the other lines end there
            symbol, name, joined = _FAMILIES.get(kind, _OTHER)
            points = [s for s in mine if _family(s) == kind] + (truth if joined and kind != "true" else [])
            by = {measure.key: _points(points, measure, metric) for measure in MEASURES}
            draw = plots.line if joined else plots.points
            label = f"{policy}: {name}"
            traces.append(draw([], [], mine[0].slot, label, by=by, symbol=symbol, hover="%{text}"))
            if truth and joined and kind != "true":
                traces.append(plots.points([], [], mine[0].slot, f"{policy}: true lengths", symbol="star"))
    return traces


def _family(setting: Setting) -> str:
    return setting.lengths.partition(":")[0]


def _points(settings: Sequence[Setting], measure: Measure, metric: Metric) -> plots.Trace:
    known = [(x, s) for s in settings if (x := _accuracy(s, measure)) is not None]
    known.sort(key=lambda item: item[0])
    symbols = [_FAMILIES.get(_family(s), _OTHER)[0] for _, s in known]
    sizes = [{"star": 14, "diamond": 12}.get(symbol, 9) for symbol in symbols]
    text = [
        f"{plain(s.name)}<br>{plain(metric.write_level(s.level(metric)))}<br>{plain(measure.title)}: "
        f"{write(x, measure.unit)}"
        for x, s in known
    ]
    return {**level_points(known, metric), "marker": {"symbol": symbols, "size": sizes}, "text": text}


def _axes(here: Sequence[Setting]) -> dict[str, Any]:
    """Range and title of the x axis for every measure; errors run backwards, so that better is always to the right."""
    axes = {}
    for measure in MEASURES:
        known = [x for s in here if (x := _accuracy(s, measure)) is not None]
        if len(known) < 2:
            continue
        margin = 0.06 * ((max(known) - min(known)) or 1.0)
        ends = [min(known) - margin, max(known) + margin]
        tick = ".0%" if measure.unit == "share" else ""
        ends = ends[::-1] if measure.perfect == 0 else ends
        axes[measure.key] = {"title": measure.title, "range": ends, "tickformat": tick}
    return axes


def _accuracy(setting: Setting, measure: Measure) -> float | None:
    """Where a setting stands on the axis of accuracy; None if it uses no lengths."""
    if setting.blind or setting.kind == "none":
        return None
    return measure.perfect if setting.kind == "true" else setting.mean(measure.key)
