"""Latency by the length of the answer and of the prompt, under the main load."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Final

import numpy as np

from ecoserve.pages import Cell, Figure, Table, plain, plots, write, write_range
from ecoserve.sweep.reporting.details import Column, Details
from ecoserve.sweep.reporting.metrics import JCT, NORMALIZED, TTFT
from ecoserve.sweep.reporting.report_data import ReportData
from ecoserve.sweep.reporting.settings import Setting
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
    table = Table(
        "fairness",
        "Latency by the length of the answer and of the prompt; below, from the lowest to the highest seed.",
        ["Setting", "Metric", *(f"Band {i + 1}" for i in range(5))],
        group_title="Bands",
    )
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


def _edges(lengths: Column) -> list[float]:
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
