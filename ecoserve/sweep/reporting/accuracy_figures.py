"""Figures of accuracy and differences: a metric against the accuracy of lengths; differences to the baseline.

A line joins errors of one kind only, because errors of different kinds do not lie on one curve. A cell of a map is the
paired difference of normalized latency to a reference at the same rate.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from ecoserve.pages import Column, Figure, Table, plain, plots, write, write_change
from ecoserve.sweep.reporting.report_data import PRESSURES, ReportData
from ecoserve.sweep.reporting.settings import (
    NORMALIZED,
    Load,
    Metric,
    Setting,
    inner,
    lengths_name,
    level_points,
    write_comparison,
)
from ecoserve.sweep.reporting.tables import comparison_cell, level_cell, metric_columns
from ecoserve.sweep.statistics import Comparison


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


#: The most settings that are all shown.
_MOST: Final = 30
_WORDS: Final = {"pressure": "KV cache short", "no pressure": "KV cache plentiful", "between": "KV cache nearly full"}


def pressure_figure(report: ReportData) -> Figure | None:
    """Difference to the baseline under every load of the virtual sweep, those without pressure last."""
    compared = _compared(report)
    if not compared:
        return None
    columns: list[Column | str] = [
        "Setting",
        Column(NORMALIZED.heading, NORMALIZED.note),
        Column(f"Baseline ({NORMALIZED.unit})", report.baseline_name),
        Column("Difference", "Mean over seeds of the relative difference, with its 95 % interval."),
    ]
    caption = f"{NORMALIZED.title} against {report.baseline_name}, with and without pressure on the KV cache."
    table = Table("pressure", caption, columns, group_title="Load")
    ticks: dict[float, str] = {}
    traces, spoken = [], []
    y = 0.0
    last: Load | None = None
    for s, base, c in compared:
        if s.load != last:
            y -= 0.9 if last is None else 1.3
            ticks[y] = f"<b>{plain(f'{s.load.rate_title}, {_pressure_words(report, s.load)}')}</b>"
            last = s.load
        y -= 1.0
        ticks[y] = plain(s.name)
        relative, low, high = (100 * ((c.relative or 0.0) if v is None else v) for v in (c.relative, c.low, c.high))
        center, interval = write_comparison(c)
        words = [plain(s.name), plain(s.load.title), f"{center}, {c.verdict}", f"95 % interval: {interval or 'none'}"]
        bars = plots.whiskers([relative], [low], [high], 2)
        symbol = "circle" if c.shown else "circle-open"
        looks: plots.Trace = {"symbol": symbol, "key": "circle", "size": 11, "error_x": bars}
        traces.append(plots.points([relative], [y], s.slot, s.policy, hover="<br>".join(words), **looks))
        table.add([s.name, level_cell(s, NORMALIZED), level_cell(base, NORMALIZED), comparison_cell(c)], s.load.title)
        spoken.append(f"{s.name} at {s.load.title}: {write_change(c.relative or 0.0)}, {c.verdict}")
    alt = f"Difference in normalized latency to {report.baseline_name}. {'; '.join(spoken)}."
    title = f"normalized latency against {report.baseline_name}, in % (left of 0 is better)"
    named: plots.Trace = {
        "tickvals": list(ticks),
        "ticktext": list(ticks.values()),
        "range": [y - 0.8, -0.2],
        "showgrid": False,
    }
    axes: plots.Trace = {"x": plots.axis(title, percent=True, zeroline=True), "y": plots.axis(zeroline=False, **named)}
    panel = plots.panel(traces, alt, **axes, height=int(110 + 30 * -y))
    text = (
        f"Zero is {report.baseline_name}. Whiskers are 95 % intervals of the differences, paired by seed. A hollow "
        "point is a difference that is not shown."
    )
    return Figure("pressure", "With and without pressure on the KV cache", text, [panel], table)


def _compared(report: ReportData) -> list[tuple[Setting, Setting, Comparison]]:
    virtual = [x for x in report.loads if x.engine == "virtual" and report.baseline_of(x)]
    rows: list[Setting] = []
    for load in sorted(virtual, key=lambda x: (PRESSURES.index(report.pressure(x)), -(x.rate_rps or 0.0))):
        others = [s for s in report.under(load) if s.policy != report.baseline]
        predicted = any(s.kind == "predicted" for s in others)
        rows += [s for s in others if not (predicted and s.kind == "noise")]
    if len(rows) > _MOST:
        # Too many to read: those that the other plots show; the table of all settings has the rest.
        shown = {s.choice for s in report.cast}
        rows = [s for s in rows if s.choice in shown]
    found = [(s, base, s.against(base, NORMALIZED)) for s in rows if (base := report.baseline_of(s.load))]
    return [(s, base, c) for s, base, c in found if c is not None and c.relative is not None]


def _pressure_words(report: ReportData, load: Load) -> str:
    named = _WORDS.get(report.pressure(load), load.condition or "load not classified")
    peak = report.demand_peak(load)
    return f"{named} (peak demand {write(peak)}×)" if peak is not None else named


Cells = list[list[Comparison | None]]
#: Colours end here, in per cent.
_END: Final = 80.0


def accuracy_map(report: ReportData) -> Figure | None:
    """Accuracy × rate, one map per policy that uses lengths; None with fewer than two rates or accuracies."""
    if report.load is None:
        return None
    family = report.load.family
    same = [x for x in report.loads if x.family == family and x.rate_rps is not None and report.baseline_of(x)]
    loads = sorted(same, key=lambda x: x.rate_rps or 0.0)
    here = [s for x in loads for s in report.tuned(report.under(x)) if not s.blind and s.policy != report.baseline]
    kinds = sorted(dict.fromkeys(s.lengths for s in here), key=lambda lengths: _worth(here, lengths))
    if len(loads) < 2 or len(kinds) < 2:
        return None
    found = {(s.load, s.policy, s.lengths): s for s in reversed(here)}
    maps = []
    for policy in dict.fromkeys(s.policy for s in here):
        rows = [[_against(found.get((x, policy, k)), report.baseline_of(x)) for x in loads] for k in kinds]
        maps.append((policy, [lengths_name(k) for k in kinds], rows))
    rates = [x.rate_rps or 0.0 for x in loads]
    return _figure("map-accuracy", "Accuracy of the lengths", report.baseline_name, rates, maps, "Lengths")


def knob_map(report: ReportData) -> Figure | None:
    """Knobs and conditions × rate for the setting that the answer is about; None with fewer than two of them."""
    load, ours = report.load, report.ours
    if load is None or ours is None:
        return None
    mine = (ours.policy, ours.lengths, load.engine)
    same = [s for s in report.settings if (s.policy, s.lengths, s.load.engine) == mine]
    rates = sorted({s.load.rate_rps for s in same if s.load.rate_rps is not None})
    found = {(_row_name(s), s.load.rate_rps): s for s in same}
    names = list(dict.fromkeys(_row_name(s) for s in same))
    shown = [n for n in names if any((names[0], r) in found and (n, r) in found for r in rates)]
    if len(shown) < (2 if any(s.knobs for s in same) else 3):
        return None  # two conditions are with and without pressure, which has a plot of its own
    rows = [[_against(found.get((name, r)), found.get((shown[0], r))) for r in rates] for name in shown]
    maps = [(f"{ours.policy}, {lengths_name(ours.lengths)}", shown, rows)]
    return _figure("map-knob", "Knobs and conditions", f"“{shown[0]}”", rates, maps, "Knobs")


def _row_name(setting: Setting) -> str:
    return ", ".join(part for part in (setting.load.others_title, setting.knobs_title) if part) or "as planned"


def _worth(here: Sequence[Setting], lengths: str) -> tuple[float, str]:
    """True lengths first, then by how well they rank, none last."""
    if lengths == "true":
        return -2.0, lengths
    taus = [tau for s in here if s.lengths == lengths and (tau := s.mean("prediction_kendall_tau")) is not None]
    return -taus[0] if taus else 2.0, lengths


def _against(setting: Setting | None, reference: Setting | None) -> Comparison | None:
    if setting is None or reference is None or setting is reference:
        return None
    return setting.against(reference, NORMALIZED)


def _figure(
    name: str,
    title: str,
    reference: str,
    rates: Sequence[float],
    maps: Sequence[tuple[str, list[str], Cells]],
    head: str,
) -> Figure:
    panels = []
    caption = f"Normalized latency against {reference}, by arrival rate."
    shown = [f"{rate:g}" for rate in rates]
    table = Table(name, caption, [head, *(f"{rate} requests/s" for rate in shown)], group_title="Policy")
    for policy, rows, cells in maps:
        texts, bounded = ([[_map_cell(c)[i] for c in row] for row in cells] for i in (0, 1))
        looks: plots.Trace = {"text": texts, "texttemplate": "%{text}", "zmin": -_END, "zmax": _END, "xgap": 2}
        hover = "%{y} at %{x} requests/s: %{text}"
        names, meta = [plain(row) for row in rows], {"diverging": 1}
        trace = plots.heatmap(shown, names, bounded, 1, hover=hover, ygap=2, meta=meta, **looks)
        spoken = []
        for row, line, texts_of_row in zip(rows, cells, texts, strict=True):
            table.add([row, *(comparison_cell(c) for c in line)], policy)
            said = (f"{text} at {rate}" for text, rate in zip(texts_of_row, shown, strict=True) if text)
            spoken.append(f"{row}: {', '.join(said)}")
        alt = f"Normalized latency of {policy} against {reference} by rate. {'; '.join(spoken)}."
        x = plots.axis("Arrival rate (requests/s)", type="category", showgrid=False)
        y = plots.axis(type="category", autorange="reversed", showgrid=False, ticks="")
        panels.append(plots.panel([trace], alt, policy, x=x, y=y, height=130 + 30 * len(rows)))
    text = (
        f"Each cell: normalized latency against {reference} at the same rate, paired by seed. Green is lower, red is "
        "higher; a cell in brackets is a difference that is not shown."
    )
    return Figure(name, f"{title} × arrival rate", text, panels, table)


def _map_cell(comparison: Comparison | None) -> tuple[str, float | None]:
    if comparison is None or comparison.relative is None:
        return "", None
    text = write_change(comparison.relative)
    return text if comparison.shown else f"({text})", max(-_END, min(_END, 100 * comparison.relative))
