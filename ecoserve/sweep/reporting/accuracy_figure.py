"""Plots of a metric against the accuracy of the lengths: a line per policy, lines across for those that use none.

Errors of different kinds do not lie on one curve, so a line joins errors of one kind only (with the truth at its end);
the others are points of their own shape. Where there are many loads, those next to the main one are drawn, all are in
the table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from ecoserve.pages import Cell, Column, Figure, LegendEntry, Panel, Table, plain, spec, write
from ecoserve.sweep.plan import LENGTH_BLIND
from ecoserve.sweep.reporting.choice import cast, main_load, tuned
from ecoserve.sweep.reporting.figures import Style, whiskers
from ecoserve.sweep.reporting.metrics import GOODPUT, JCT, NORMALIZED, THROUGHPUT, Metric, inner
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


#: Kind of lengths: symbol, name, and whether its points are joined.
FAMILIES: Final[dict[str, tuple[str, str, bool]]] = {
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


def accuracy_figures(settings: Settings, style: Style) -> list[Figure]:
    """Latency, JCT, throughput and goodput against accuracy, where there are runs for it."""
    found = [
        accuracy_figure(settings, style, NORMALIZED, "accuracy-latency"),
        accuracy_figure(settings, style, JCT, "accuracy-jct"),
        accuracy_figure(settings, style, THROUGHPUT, "accuracy-throughput"),
        accuracy_figure(settings, style, GOODPUT, "accuracy-goodput"),
    ]
    return [figure for figure in found if figure is not None]


def accuracy_figure(settings: Settings, style: Style, metric: Metric, name: str) -> Figure | None:
    """A metric against the accuracy of the lengths, one plot per load; None without two accuracies at some load."""
    tight = [x for x in settings.loads if x.engine == "virtual" and settings.pressure(x) != "no pressure"]
    loads = [x for x in tight if sum(_accuracy(s, MEASURES[0]) is not None for s in settings.under(x)) >= 2]
    if not loads or not any(s.level(metric) for x in loads for s in settings.under(x)):
        return None
    several = len({x.family for x in loads}) > 1
    panels, legend = [], dict[str, LegendEntry]()
    for number, load in enumerate(_drawn(settings, loads)):
        here = tuned(settings, [s for s in settings.under(load) if s.level(metric)])
        traces = _flat_lines(here, settings, style, metric, legend) + _curves(here, style, metric, legend)
        layout = {
            "yaxis": {
                "title": {"text": metric.heading},
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
        f"Accuracy versus {inner(metric.title)}",
        f"Each point is one setting, its whisker runs from the lowest to the highest seed. Lines across are settings "
        f"that use no prediction, and the oracle. {'Lower' if metric.better == 'lower' else 'Higher'} is better.",
        panels,
        list(legend.values()),
        table,
        choices=tuple((measure.key, measure.title) for measure in MEASURES),
        choice_label="Accuracy as",
    )


def _drawn(settings: Settings, loads: Sequence[Load]) -> list[Load]:
    """As many loads as fit, those nearest to the one that the answer is read off at, slowest first."""
    main = main_load(settings)
    rate = main.rate_rps or 0.0 if main else 0.0
    family = main.family if main else ()
    near = sorted(loads, key=lambda x: (x.family != family, abs((x.rate_rps or 0.0) - rate)))
    return sorted(near[:_PANELS], key=lambda x: (x.others_title, x.rate_rps or 0.0))


def _flat_lines(
    here: Sequence[Setting], settings: Settings, style: Style, metric: Metric, legend: dict[str, LegendEntry]
) -> list[dict[str, Any]]:
    """Settings without an accuracy, and the oracle: a line across with a band from the lowest to the highest seed."""
    traces = []
    about = {(s.policy, s.lengths) for s in cast(settings)}
    for s in here:
        level = s.level(metric)
        if level is None or not (s.policy in LENGTH_BLIND or s.kind in ("none", "true")):
            continue
        if s.policy not in LENGTH_BLIND and (s.policy, s.lengths) not in about:
            continue  # where there are several policies, lines across are of the one that the answer is about
        dash = "dash" if s.policy in LENGTH_BLIND else "dot" if s.kind == "none" else "longdashdot"
        slot = style.slots[s.policy]
        legend.setdefault(s.name, LegendEntry(s.name, slot, dash))
        low, mean, high = (metric.column_scale * v for v in (level.low, level.mean, level.high))
        band = {"x": ["low", "high", "high", "low"], "y": [low, low, high, high]}
        if s.kind != "true":
            traces.append(
                {**band, "mode": "none", "fill": "toself", "hoverinfo": "skip", "meta": {"slot": slot, "band": 1}}
            )
        hover = f"{plain(s.name)}<br>{_hover_level(s, metric)}"
        traces.append(
            {
                "x": ["low", "high"],
                "y": [mean, mean],
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
    """For each policy that uses lengths, a line or points for each kind of error."""
    traces = []
    for policy in dict.fromkeys(s.policy for s in here if s.policy not in LENGTH_BLIND):
        mine = [s for s in here if s.policy == policy and s.kind != "none"]
        truth = [s for s in mine if s.kind == "true"]
        slot = style.slots[policy]
        kinds = list(dict.fromkeys(_family(s) for s in mine))
        for kind in kinds:
            if kind == "true" and any(FAMILIES.get(k, _OTHER)[2] for k in kinds if k != "true"):
                continue  # it ends the others' lines
            symbol, name, joined = FAMILIES.get(kind, _OTHER)
            points = [s for s in mine if _family(s) == kind] + (truth if joined and kind != "true" else [])
            legend.setdefault(
                f"{policy} {kind}", LegendEntry(f"{policy}: {name}", slot, "solid" if joined else "", symbol)
            )
            if truth and joined:
                legend.setdefault(f"{policy} true", LegendEntry(f"{policy}: true lengths", slot, "", "star"))
            by_measure = {measure.key: _points(points, measure, metric) for measure in MEASURES}
            traces.append(
                {
                    **by_measure[MEASURES[0].key],
                    "mode": "lines+markers" if joined else "markers",
                    "line": {"width": 2.2},
                    "hovertemplate": "%{text}<extra></extra>",
                    "meta": {"slot": slot, "by": by_measure},
                }
            )
    return traces


def _family(setting: Setting) -> str:
    return setting.lengths.partition(":")[0]


def _points(settings: Sequence[Setting], measure: Measure, metric: Metric) -> dict[str, Any]:
    placed = [
        (x, s, level)
        for s in settings
        if (x := _accuracy(s, measure)) is not None and (level := s.level(metric)) is not None
    ]
    placed.sort(key=lambda item: item[0])
    scale = metric.column_scale
    means = [scale * level.mean for _, _, level in placed]
    looks = [FAMILIES.get(_family(s), _OTHER)[0] for _, s, _ in placed]
    return {
        "x": [x for x, _, _ in placed],
        "y": means,
        "error_y": whiskers(
            means, [scale * level.low for _, _, level in placed], [scale * level.high for _, _, level in placed]
        ),
        "marker": {
            "symbol": looks,
            "size": [{"star": 14, "diamond": 12}.get(look, 9) for look in looks],
        },
        "text": [
            f"{plain(s.name)}<br>{_hover_level(s, metric)}<br>{plain(measure.title)}: {write(x, measure.unit)}"
            for x, s, _ in placed
        ],
    }


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
