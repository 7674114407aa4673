"""Who pays: latency by the length of the answer and of the prompt, under the main load."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Final

import numpy as np

from ecoserve.pages import Cell, Column, Figure, Panel, Table, plain, spec, write
from ecoserve.sweep.reporting.choice import cast
from ecoserve.sweep.reporting.details import Column as Values
from ecoserve.sweep.reporting.details import Details
from ecoserve.sweep.reporting.figures import Style, choosable, dash_of, whiskers
from ecoserve.sweep.reporting.metrics import JCT, NORMALIZED, TTFT, Metric
from ecoserve.sweep.reporting.settings import Setting, Settings
from ecoserve.sweep.statistics import Spread, spread

#: Bands hold these shares of the requests, shortest first.
_CUTS: Final = (0.25, 0.5, 0.75, 0.9)
#: Metric, the column of a request, and what turns it into the metric's column unit.
_SHOWN: Final[tuple[tuple[Metric, str, float], ...]] = (
    (NORMALIZED, "normalized_latency_s", 1e3),
    (JCT, "e2el_s", 1.0),
    (TTFT, "ttft_s", 1e3),
)
_LENGTHS: Final = (("output_tokens", "the answer"), ("prompt_tokens", "the prompt"))


def fairness_figure(settings: Settings, style: Style, details: Details) -> Figure | None:
    """Latency by length band, one line per setting; None where the requests are not there."""
    rows = [s for s in cast(settings) if any(details.requests(run) is not None for run in s.runs)]
    if not rows:
        return None
    table = Table(
        "fairness",
        "Latency by the length of the answer and of the prompt; beneath, from the lowest to the highest seed.",
        [Column("Setting", number=False), Column("Metric", number=False), *(Column(f"Band {i + 1}") for i in range(5))],
        group_title="Bands",
    )
    panels = []
    for number, (key, title) in enumerate(_LENGTHS):
        edges = _edges(details.together([run for s in rows for run in s.runs], key))
        if len(edges) < 3:
            continue
        names = [f"{int(a) + 1:,}–{int(b):,}" for a, b in pairwise(edges)]
        group = f"Tokens of {title}: {'; '.join(names)}"
        traces, spoken = [], []
        for s in rows:
            by = {}
            for metric, column, scale in _SHOWN:
                levels = _bands(s, details, key, edges, column, scale)
                known = [(name, level) for name, level in zip(names, levels, strict=True) if level is not None]
                means = [level.mean for _, level in known]
                by[metric.key] = {
                    "x": [name for name, _ in known],
                    "y": means,
                    "error_y": whiskers(means, [x.low for _, x in known], [x.high for _, x in known]),
                    "text": [f"{plain(s.name)}<br>{name} tokens: {write(x.mean)}" for name, x in known],
                }
                table.groups.append(group)
                padded = [*levels, *([None] * (5 - len(levels)))]
                table.rows.append([Cell(s.name), Cell(metric.heading), *(_cell(x) for x in padded)])
                if metric is NORMALIZED:
                    spoken.append(f"{s.name}: " + ", ".join(f"{write(x.mean)} ({name})" for name, x in known))
            trace = {
                "mode": "lines+markers",
                "line": {"width": 2.2, "dash": dash_of(s)},
                "hovertemplate": "%{text}<extra></extra>",
                "meta": {"slot": style.slots[s.policy]},
            }
            traces.append(choosable(trace, by))
        layout = {
            "xaxis": {"title": {"text": f"tokens of {title}"}, "type": "category"},
            "yaxis": {"title": {"text": NORMALIZED.heading}, "rangemode": "tozero"},
            "meta": {
                "axis": "y",
                "measures": {m.key: {"title": m.heading, "tickformat": ""} for m, _, _ in _SHOWN},
            },
            "height": 380,
        }
        alt = f"Normalized latency by tokens of {title}, in ms a token. {'; '.join(spoken)}."
        panels.append(Panel(f"fairness-{number}", f"By tokens of {title}", spec(traces, layout), alt))
    if not panels:
        return None
    return Figure(
        "fairness",
        "Who pays",
        f"At {rows[0].load.title}. The bands hold the shortest quarter, the next two quarters, the next 15 %, and the "
        "longest tenth. A scheduler that puts short answers first must take it from somebody.",
        panels,
        [style.legend(s) for s in rows],
        table,
        choices=tuple((m.key, m.title) for m, _, _ in _SHOWN),
        choice_label="Show",
    )


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
        return Cell("–")
    beneath = "" if level.low == level.high else f"{write(level.low)} to {write(level.high)}"
    return Cell(write(level.mean), beneath, level.mean)
