"""Plots of a metric against the accuracy of the lengths: a line per policy, lines across for those that use none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from ecoserve.pages import Cell, Column, Figure, LegendEntry, Panel, Table, plain, spec, write
from ecoserve.sweep.plan import LENGTH_BLIND
from ecoserve.sweep.reporting.figures import Style
from ecoserve.sweep.reporting.metrics import NORMALIZED, THROUGHPUT, Metric
from ecoserve.sweep.reporting.settings import Load, Setting, Settings
from ecoserve.sweep.reporting.tables import level_cell


@dataclass(frozen=True, slots=True)
class Measure:
    """A way to measure how good the lengths are: key of a run, axis title, value of perfect lengths."""

    key: str
    title: str
    perfect: float
    unit: str = ""


MEASURES: Final = (
    Measure("prediction_kendall_tau", "Kendall’s τ of the lengths (1 = perfect order)", 1.0),
    Measure("prediction_within_50", "Lengths within 50 tokens", 1.0, "share"),
    Measure("prediction_mae_tokens", "Mean error of the lengths, in tokens", 0.0, "tokens"),
)


def accuracy_figures(settings: Settings, style: Style) -> list[Figure]:
    """Latency and throughput against accuracy, where there are runs for it."""
    found = [
        accuracy_figure(settings, style, NORMALIZED, "accuracy-latency"),
        accuracy_figure(settings, style, THROUGHPUT, "accuracy-throughput"),
    ]
    return [figure for figure in found if figure is not None]


def accuracy_figure(settings: Settings, style: Style, metric: Metric, name: str) -> Figure | None:
    """A metric against the accuracy of the lengths, one plot per load; None without two accuracies at some load."""
    tight = [x for x in settings.loads if x.engine == "virtual" and settings.pressure(x) != "no pressure"]
    loads = [x for x in tight if sum(_accuracy(s, MEASURES[0]) is not None for s in settings.under(x)) >= 2]
    if not loads:
        return None
    several = len({x.condition for x in loads}) > 1
    panels, legend = [], dict[str, LegendEntry]()
    for number, load in enumerate(sorted(loads, key=lambda x: (x.condition or "", x.rate_rps or 0.0))):
        here = [s for s in settings.under(load) if s.level(metric)]
        traces = _flat_lines(here, settings, style, metric, legend) + _curves(here, style, metric, legend)
        layout = {
            "yaxis": {
                "title": {"text": f"{metric.title} ({metric.unit})"},
                "rangemode": "tozero" if metric.better == "lower" else "normal",
            },
            "xaxis": {"title": {"text": MEASURES[0].title}},
            "meta": {"measures": _axes(here)},
        }
        title = load.title if several else load.rate_title
        panels.append(Panel(f"{name}-{number}", title, spec(traces, layout), _accuracy_alt(here, load, metric)))
    table = Table(
        name,
        f"{metric.title} by accuracy of the lengths.",
        [
            Column("Setting", number=False),
            *(Column(m.title) for m in MEASURES),
            Column(metric.heading, metric.note),
        ],
        [
            [
                Cell(s.name),
                *(_accuracy_cell(s, measure) for measure in MEASURES),
                level_cell(s, metric),
            ]
            for load in loads
            for s in settings.under(load)
        ],
        [load.title for load in loads for _ in settings.under(load)],
        "Load",
    )
    return Figure(
        name,
        f"Accuracy versus {metric.title.lower()}",
        f"Each point is one setting, its whisker runs from the lowest to the highest seed. Lines across are settings "
        f"that use no prediction, and the oracle. {'Lower' if metric.better == 'lower' else 'Higher'} is better.",
        panels,
        list(legend.values()),
        table,
        choices=tuple((measure.key, measure.title) for measure in MEASURES),
        choice_label="Accuracy as",
    )


def _flat_lines(
    here: Sequence[Setting], settings: Settings, style: Style, metric: Metric, legend: dict[str, LegendEntry]
) -> list[dict[str, Any]]:
    """Settings without an accuracy, and the oracle: a line across with a band from the lowest to the highest seed."""
    traces = []
    for s in here:
        level = s.level(metric)
        if level is None or not (s.policy in LENGTH_BLIND or s.kind in ("none", "true")):
            continue
        dash = "dash" if s.policy in LENGTH_BLIND else "dot" if s.kind == "none" else "longdashdot"
        slot = style.slots[s.policy]
        legend.setdefault(s.name, LegendEntry(s.name, slot, dash))
        band = {"x": ["low", "high", "high", "low"], "y": [level.low, level.low, level.high, level.high]}
        if s.kind != "true":
            traces.append(
                {**band, "mode": "none", "fill": "toself", "hoverinfo": "skip", "meta": {"slot": slot, "band": 1}}
            )
        hover = f"{plain(s.name)}<br>{_hover_level(s, metric)}"
        traces.append(
            {
                "x": ["low", "high"],
                "y": [level.mean, level.mean],
                "mode": "lines",
                "line": {"dash": dash, "width": 2},
                "hovertemplate": f"{hover}<extra></extra>",
                "meta": {"slot": slot, "across": 1},
            }
        )
    return traces


def _curves(
    here: Sequence[Setting], style: Style, metric: Metric, legend: dict[str, LegendEntry]
) -> list[dict[str, Any]]:
    """One line per policy that uses lengths, through its accuracies."""
    traces = []
    symbols = {"predicted": "diamond", "noise": "circle", "true": "star"}
    names = {"predicted": "predicted lengths", "noise": "controlled length error", "true": "true lengths"}
    for policy in dict.fromkeys(s.policy for s in here if s.policy not in LENGTH_BLIND):
        mine = [s for s in here if s.policy == policy and s.kind in symbols]
        if not mine:
            continue
        slot = style.slots[policy]
        for s in mine:
            key = f"{policy} {s.kind}"
            legend.setdefault(key, LegendEntry(f"{policy}: {names[s.kind]}", slot, "solid", symbols[s.kind]))
        by_measure = {}
        for measure in MEASURES:
            placed = [(x, s) for s in mine if (x := _accuracy(s, measure)) is not None]
            placed.sort(key=lambda item: item[0])
            levels = [level for _, s in placed if (level := s.level(metric)) is not None]
            by_measure[measure.key] = {
                "x": [x for x, _ in placed],
                "y": [level.mean for level in levels],
                "error_y": {
                    "type": "data",
                    "symmetric": False,
                    "array": [level.high - level.mean for level in levels],
                    "arrayminus": [level.mean - level.low for level in levels],
                    "thickness": 1.5,
                    "width": 4,
                },
                "marker": {
                    "symbol": [symbols[s.kind] for _, s in placed],
                    "size": [14 if s.kind == "true" else 12 if s.kind == "predicted" else 9 for _, s in placed],
                },
                "text": [
                    f"{plain(s.name)}<br>{_hover_level(s, metric)}<br>{plain(measure.title)}: {write(x, measure.unit)}"
                    for x, s in placed
                ],
            }
        trace = {
            **by_measure[MEASURES[0].key],
            "mode": "lines+markers",
            "line": {"width": 2.5},
            "hovertemplate": "%{text}<extra></extra>",
            "meta": {"slot": slot, "by": by_measure},
        }
        traces.append(trace)
    return traces


def _axes(here: Sequence[Setting]) -> dict[str, Any]:
    """Range and title of the x axis for every measure; errors run backwards, so that better is always to the right."""
    axes = {}
    for measure in MEASURES:
        known = [x for s in here if (x := _accuracy(s, measure)) is not None]
        if len(known) < 2:
            continue
        low, high = min(known), max(known)
        margin = 0.06 * ((high - low) or 1.0)
        bounds = [low - margin, high + margin]
        if measure.perfect == 0:
            bounds.reverse()
        tick = ".0%" if measure.unit == "share" else ""
        axes[measure.key] = {"title": measure.title, "range": bounds, "tickformat": tick}
    return axes


def _accuracy(setting: Setting, measure: Measure) -> float | None:
    """Where a setting stands on the axis of accuracy; None if it was told nothing."""
    if setting.policy in LENGTH_BLIND or setting.kind == "none":
        return None
    if setting.kind == "true":
        return measure.perfect
    level = setting.level(measure.key)
    return level.mean if level else None


def _accuracy_cell(setting: Setting, measure: Measure) -> Cell:
    value = _accuracy(setting, measure)
    return Cell("–") if value is None else Cell(write(value, measure.unit), raw=value)


def _accuracy_alt(here: Sequence[Setting], load: Load, metric: Metric) -> str:
    parts = [f"{s.name} {metric.write(level.mean)}" for s in here if (level := s.level(metric))]
    return f"{metric.title} against accuracy of the lengths at {load.title}: {'; '.join(parts)}."


def _hover_level(setting: Setting, metric: Metric) -> str:
    level = setting.level(metric)
    ranged = metric.write_spread(level)
    text = plain(metric.write(level.mean if level else None))
    return f"{text} (seeds: {plain(ranged)})" if ranged else text
