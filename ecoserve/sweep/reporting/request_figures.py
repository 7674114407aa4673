"""Figures of single requests, under the main load: latency by length, and calibration of the lengths."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Final

import numpy as np

from ecoserve.pages import Cell, Column, Figure, Table, plain, plots, write, write_range
from ecoserve.sweep.reporting.details import Details, Values
from ecoserve.sweep.reporting.metrics import JCT, NORMALIZED, TTFT
from ecoserve.sweep.reporting.report_data import ReportData
from ecoserve.sweep.reporting.settings import Setting, lengths_name
from ecoserve.sweep.reporting.traces import setting_line, y_choices
from ecoserve.sweep.statistics import Spread, spread

#: Bands hold these shares of the requests, shortest first.
_CUTS: Final = (0.25, 0.5, 0.75, 0.9)
#: Metric, the column of a request, and what turns it into the metric's column unit.
_SHOWN: Final = ((NORMALIZED, "normalized_latency_s", 1e3), (JCT, "e2el_s", 1.0), (TTFT, "ttft_s", 1e3))
_LENGTHS: Final = (("output_tokens", "the answer"), ("prompt_tokens", "the prompt"))


def fairness_figure(report: ReportData) -> Figure | None:
    """One line per setting; None without rows of requests."""
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
    """Mean of a column in each band, seed by seed."""
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
