"""Figures of rows behind the runs: latency by length, calibration of the lengths, the KV cache, and actions."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Final

import numpy as np

from ecoserve.pages import Cell, Column, Figure, Table, plain, plots, write, write_range
from ecoserve.sweep.reporting.report_data import Details, ReportData, Values
from ecoserve.sweep.reporting.settings import JCT, NORMALIZED, TTFT, Setting, lengths_name, setting_line, y_choices
from ecoserve.sweep.statistics import Spread, spread

#: Bands hold these shares of the requests, shortest first.
_CUTS: Final = (0.25, 0.5, 0.75, 0.9)
#: Metric, the column of a request, and what turns it into the metric's column unit.
_SHOWN: Final = ((NORMALIZED, "normalized_latency_s", 1e3), (JCT, "e2el_s", 1.0), (TTFT, "ttft_s", 1e3))
_LENGTHS: Final = (("output_tokens", "the answer"), ("prompt_tokens", "the prompt"))


def fairness_figure(report: ReportData) -> Figure | None:
    details = report.details
    rows = [s for s in report.cast if any(details.requests(run) is not None for run in s.runs)]
    caption = "Latency by the length of the answer and of the prompt; below, from the lowest to the highest seed."
    table = Table("fairness", caption, ["Setting", "Metric", *(f"Band {i + 1}" for i in range(5))], group_title="Bands")
    panels = []
    for key, title in _LENGTHS:
        edges = _edges(details.together([run for s in rows for run in s.runs], key))
        if len(edges) < 3:
            continue
        names = [f"{int(a) + 1:,}–{int(b):,}" for a, b in pairwise(edges)]
        traces, spoken = [], []
        for s in rows:
            by = {}
            for metric, column, scale in _SHOWN:
                levels = _bands(s, details, key, edges, column, scale)
                known = [(name, level) for name, level in zip(names, levels, strict=True) if level is not None]
                means = [level.mean for _, level in known]
                bars = plots.whiskers(means, [level.low for _, level in known], [level.high for _, level in known])
                text = [f"{plain(s.name)}<br>{name} tokens: {write(level.mean)}" for name, level in known]
                by[metric.key] = {"x": [name for name, _ in known], "y": means, "error_y": bars, "text": text}
                cells = [_cell(level) for level in (*levels, *([None] * (5 - len(levels))))]
                table.add([s.name, metric.heading, *cells], f"Tokens of {title}: {'; '.join(names)}")
                if metric is NORMALIZED:
                    spoken.append(f"{s.name}: " + ", ".join(f"{write(x.mean)} ({name})" for name, x in known))
            traces.append(setting_line(s, by))
        alt = f"Normalized latency by tokens of {title}, in ms per token. {'; '.join(spoken)}."
        x = plots.axis(f"tokens of {title}", type="category")
        y = plots.from_zero(NORMALIZED.heading)
        meta = y_choices([m for m, _, _ in _SHOWN])
        panels.append(plots.panel(traces, alt, f"By tokens of {title}", x=x, y=y, meta=meta, height=380))
    if not panels:
        return None
    explained = (
        f"At {rows[0].load.title}. The bands hold the shortest quarter, the next two quarters, the next 15 %, and the "
        "longest tenth. A scheduler that serves short answers first delays the long ones."
    )
    return Figure("fairness", "Latency by length", explained, panels, table, {m.key: m.title for m, _, _ in _SHOWN})


def _edges(lengths: Values) -> list[float]:
    known = lengths[np.isfinite(lengths) & (lengths > 0)]
    if not len(known):
        return []
    cuts = np.quantile(known, _CUTS, method="inverted_cdf")
    return [0.0, *(float(c) for c in np.unique(cuts) if c < known.max()), float(known.max())]


def _bands(
    setting: Setting, details: Details, key: str, edges: Sequence[float], column: str, scale: float
) -> list[Spread | None]:
    means: list[list[float]] = [[] for _ in edges[1:]]
    for run in setting.runs:
        rows = details.requests(run)
        if rows is None:
            continue
        where = np.searchsorted(edges, rows[key], side="left") - 1
        for band, found in enumerate(means):
            values = rows[column][(where == band) & np.isfinite(rows[column])]
            if len(values):
                found.append(scale * float(values.mean()))
    return [spread(found) for found in means]


def _cell(level: Spread | None) -> Cell:
    if level is None:
        return Cell(None)
    return Cell(level.mean, beneath="" if level.low == level.high else write_range(level.low, level.high))


_LEVELS: Final = tuple(round(0.05 * i, 2) for i in range(21))
_ERRORS: Final = (0, 5, 10, 20, 30, 50, 75, 100, 150, 200, 300, 400, 500, 750, 1000)
_WITHIN: Final = (50, 100, 200)
_BELOW: Final = (0.5, 0.8, 0.9)
_DASHES: Final = ("solid", "dash", "dot", "dashdot")


def calibration_figure(report: ReportData) -> Figure | None:
    """Predicted against true lengths, one line per kind of lengths; None where all lengths were true or unused."""
    details, load = report.details, report.load
    found: dict[str, Setting] = {}
    for s in report.under(load) if load else []:
        if not s.blind and s.kind in ("noise", "predicted") and any(details.requests(run) for run in s.runs):
            found.setdefault(s.lengths, s)
    if load is None or not found:
        return None
    table = Table(
        "calibration",
        "Predicted against true lengths, by kind of lengths; all seeds together.",
        [
            "Lengths",
            Column("Mean error (tokens)", "Mean distance between the predicted median and the true length."),
            Column("Kendall’s τ", "1: always in the right order; 0: chance."),
            *(Column(f"Within {e} tokens", unit="share") for e in _WITHIN),
            *(Column(f"Below its {q:.0%} quantile", "Should be that share.", "share") for q in _BELOW),
        ],
    )
    curves = [plots.line([0, 1], [0, 1], 0, dash="dash", width=1)]
    errors: list[plots.Trace] = []
    spoken, spoken_errors = [], []
    for number, (lengths, s) in enumerate(found.items()):
        rank, predicted, true = (details.together(s.runs, key) for key in ("pit", "predicted_tokens", "output_tokens"))
        error = np.abs(predicted - true)[np.isfinite(predicted) & np.isfinite(true) & (true > 0)]
        rank = rank[np.isfinite(rank)]
        if not len(error):
            continue
        name = lengths_name(lengths)
        name = name[:1].upper() + name[1:]
        slot, dash = 1 + number % 6, _DASHES[number // 6 % len(_DASHES)]
        calibrated = bool(len(rank)) and float(np.ptp(rank)) > 0
        if calibrated:
            hover = f"{plain(name)}<br>predicted %{{x:.0%}}, true %{{y:.0%}}"
            covered = [round(_share(rank, q), 4) for q in _LEVELS]
            curves.append(plots.line(_LEVELS, covered, slot, name, hover=hover, dash=dash, width=2))
            spoken.append(f"{name}: {write(_share(rank, 0.9), 'share')} below the 90 % quantile")
        hover = f"{plain(name)}<br>within %{{x}} tokens: %{{y:.0%}}"
        within = [round(_share(error, e), 4) for e in _ERRORS]
        errors.append(plots.line(_ERRORS, within, slot, name, hover=hover, dash=dash, width=2))
        spoken_errors.append(f"{name}: {write(_share(error, 100), 'share')} within 100 tokens")
        below = [_share(rank, q) if calibrated else None for q in _BELOW]
        tau = s.mean("prediction_kendall_tau")
        table.add([name, float(error.mean()), tau, *(_share(error, e) for e in _WITHIN), *below])
    if not errors:
        return None
    alt = f"Calibration: share of answers below each predicted quantile; the diagonal is perfect. {'; '.join(spoken)}."
    x = plots.axis("predicted quantile", share=True, range=[0, 1])
    y = plots.axis("share of answers below it", share=True, range=[0, 1])
    calibration = plots.panel(curves, alt, "Calibration: the dashed line is perfect", x=x, y=y, height=380)
    alt = f"Share of answers by error of the predicted median. {'; '.join(spoken_errors)}."
    x = plots.axis("error of the predicted median, in tokens, at most", range=[0, 500])
    y = plots.axis("share of answers", share=True, range=[0, 1.02])
    error_plot = plots.panel(errors, alt, "Error: up and to the left is better", x=x, y=y, height=380)
    return Figure(
        "calibration",
        "Predicted against true lengths",
        f"Over the requests served at {load.title}, all seeds. A scheduler that reserves or pools by quantiles relies "
        "on the left plot, one that orders by length on Kendall’s τ in the table.",
        [calibration, error_plot] if spoken else [error_plot],
        table,
    )


def _share(values: Values, limit: float) -> float:
    return float(np.mean(values <= limit))


#: Column of a point, name, colour, dash.
_PARTS: Final = (
    ("held", "held", 0, "solid"),
    ("reserved", "reserved beyond what is written", 1, "dash"),
    ("lent", "lent, of what is reserved", 3, "dot"),
    ("wasted", "wasted", 2, "longdashdot"),
)
_PANELS: Final = 6


def kv_figure(report: ReportData) -> Figure | None:
    panels = []
    columns = ["Seconds", *(Column(name.capitalize(), unit="share") for _, name, _, _ in _PARTS)]
    table = Table("kv", "KV cache over time, as a share of the whole.", columns, group_title="Setting")
    for s in report.cast[:_PANELS]:
        run = min(s.runs, key=lambda run: run.seed)
        points = [p for p in report.details.kv(run) if p.replica == 0]
        if not points:
            continue
        times = [round(p.at_s, 3) for p in points]
        seconds = sum(p.seconds for p in points)
        parts = {key: [getattr(p, key) for p in points] for key, *_ in _PARTS}
        shares = {key: [None if v is None else round(v, 4) for v in values] for key, values in parts.items()}
        traces, spoken = [], []
        for key, name, slot, dash in _PARTS:
            mean = sum((v or 0.0) * p.seconds for v, p in zip(parts[key], points, strict=True)) / seconds
            spoken.append(f"{name} {write(mean, 'share')}")
            hover = f"{name}: %{{y:.0%}} at %{{x:.0f}} s"
            drawn = (times, shares[key]) if any(parts[key]) else ([], [])
            traces.append(plots.line(*drawn, slot, name, hover=hover, dash=dash, width=1.8))
        x = plots.axis("seconds of the run", range=[0, points[-1].at_s + points[-1].seconds])
        y = plots.axis("share of the KV cache", share=True, range=[0, 1.05])
        alt = f"KV cache over time, {s.name} at {s.load.title}, seed {run.seed}. Averages: {', '.join(spoken)}."
        panels.append(plots.panel(traces, alt, s.name, x=x, y=y, height=280))
        for at, *row in zip(times, *shares.values(), strict=True):
            table.add([Cell(at, f"{at:.2f}"), *row], s.name)
    if not panels:
        return None
    text = (
        f"At {report.cast[0].load.title}, the lowest seed, the first replica. Reserved: kept for running answers "
        "beyond what they have written. Wasted: reserved beyond what the answer turned out to need and not lent, and "
        "held by paused requests."
    )
    return Figure("kv", "The KV cache over time", text, panels, table)


#: Counter of a run, name of the action, what it means.
ACTIONS: Final = (
    ("underprediction_own_space", "own space", "Own space that was not lent: costs nothing."),
    ("underprediction_re_reserved", "reserved again", "A new reservation from the updated prediction of its length."),
    ("underprediction_global_reserve", "global reserve", "A block of the reserve kept for such cases."),
    ("underprediction_paused", "paused", "Stopped for a while with its KV cache kept."),
    ("underprediction_guest_moved", "guest moved", "The request that borrowed its space was moved or stopped."),
    ("underprediction_recomputed", "recomputed", "A victim's KV cache was dropped: work is lost."),
)
_COUNTS: Final = (("under_predictions", "Outlived"), ("over_predictions", "Ended before"))
_WATERFALLS: Final = 4


def underprediction_figure(report: ReportData) -> Figure | None:
    """One waterfall per policy that reserves KV, under the main load; None if no action was ever taken."""
    load, ours = report.load, report.ours
    counted = [s for s in report.under(load) if _total(s)] if load else []
    if load is None or ours is None or not counted:
        return None
    shown = ([s for s in counted if s.lengths in (ours.lengths, "none")] or counted)[:_WATERFALLS]
    panels = []
    for s in shown:
        trace, spoken = _waterfall(s)
        alt = f"Actions for outlived reservations, {s.name} at {load.title}, times per run: {spoken}."
        x = plots.axis(type="category", tickangle=30)
        panels.append(plots.panel([trace], alt, s.name, x=x, y=plots.from_zero("times per run"), bargap=0.35))
    actions = (Column(title.capitalize(), note) for _, title, note in ACTIONS)
    caption = "Wrong predictions and the actions taken, times per run, mean over seeds."
    table = Table("ladder", caption, ["Setting", *(title for _, title in _COUNTS), *actions], group_title="Load")
    for s in counted:
        table.add([s.name, *(s.mean(key) for key, *_ in (*_COUNTS, *ACTIONS))], s.load.title)
    text = (
        f"At {load.title}: every time an answer outlived its reservation or the KV cache ran out, the scheduler took "
        "one of these actions. From the left, the cheapest first; the last one loses work. Mean over seeds."
    )
    return Figure("ladder", "Actions on wrong predictions", text, panels, table)


def _total(setting: Setting) -> float:
    return sum(setting.mean(key) or 0.0 for key, _, _ in ACTIONS)


def _waterfall(setting: Setting) -> tuple[plots.Trace, str]:
    """Bars that come down from all to zero, and the same in words."""
    left = _total(setting)
    names, bases, heights = ["all"], [0.0], [left]
    for key, name, _ in ACTIONS:
        height = setting.mean(key) or 0.0
        left -= height
        names.append(name)
        bases.append(max(0.0, left))
        heights.append(height)
    text = [write(height) for height in heights]
    more: plots.Trace = {"base": bases, "text": text, "textposition": "outside", "cliponaxis": False}
    trace = plots.bars(names, heights, setting.slot, setting.policy, hover="%{x}: %{text}", **more)
    return trace, ", ".join(f"{name} {height}" for name, height in zip(names, text, strict=True))
