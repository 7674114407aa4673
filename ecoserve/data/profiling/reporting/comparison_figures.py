"""Plots of two traces side by side: histograms, survival, differences of quantiles, the same prompts."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

from ecoserve.data.profiling.comparison_model import Comparison
from ecoserve.data.profiling.reporting.length_figures import axis, span
from ecoserve.data.profiling.reporting.words import number
from ecoserve.pages import Cell, Column, Figure, LegendEntry, Panel, Table, plain, spec, write

_SIDES = (("A", 1, "solid", "circle"), ("B", 2, "dash", "diamond"))


def _legend() -> list[LegendEntry]:
    return [LegendEntry(name, slot, dash) for name, slot, dash, _ in _SIDES]


def histograms(c: Comparison) -> Figure:
    """Share of answers per doubling of length, both as lines."""
    bins = list(pairwise(c.histogram_edges))
    traces: list[dict[str, Any]] = []
    for (name, slot, dash, _), counts in zip(_SIDES, (c.histogram_a, c.histogram_b), strict=True):
        total = sum(counts)
        heights = [100 * n / total / math.log2((b + 0.5) / (a + 0.5)) for (a, b), n in zip(bins, counts, strict=True)]
        text = [
            f"{name}: {span(a, b)} tokens<br>{write(n / total, 'share')}"
            for (a, b), n in zip(bins, counts, strict=True)
        ]
        traces.append(
            {"x": [a + 0.5 for a, _ in bins] + [bins[-1][1] + 0.5], "y": [*heights, heights[-1]], "mode": "lines",
             "line": {"shape": "hv", "width": 2.2, "dash": dash}, "text": [*text, text[-1]], "meta": {"slot": slot},
             "hovertemplate": "%{text}<extra></extra>"}
        )  # fmt: skip
    layout = {
        "xaxis": axis("tokens of the answer"),
        "yaxis": {"title": {"text": "answers per doubling (%)"}, "rangemode": "tozero"},
    }
    table = Table(
        "histograms",
        "Answers by length.",
        [Column("Tokens", number=False), Column("A"), Column("B")],
        [
            [Cell(span(low, high)), number(a), number(b)]
            for (low, high), a, b in zip(bins, c.histogram_a, c.histogram_b, strict=True)
        ],
    )
    alt = f"Histograms of lengths: median {c.response_a.p50} in A, {c.response_b.p50} in B."
    return Figure(
        "histograms",
        "Answers by length",
        "The height is the share of all answers per doubling of length.",
        [Panel("histograms-0", "", spec(traces, layout), alt)],
        _legend(),
        table,
        wide=True,
    )


def survival(c: Comparison) -> Figure:
    """Share of answers longer than x."""
    traces = []
    for (name, slot, dash, _), curve in zip(_SIDES, c.survival, strict=True):
        traces.append(
            {"x": curve.x, "y": [100 * v if v else None for v in curve.y], "mode": "lines",
             "line": {"width": 2.6, "dash": dash}, "meta": {"slot": slot},
             "hovertemplate": f"{name}: %{{y:.3g}} % have more than %{{x:,.0f}} tokens<extra></extra>"}
        )  # fmt: skip
    layout = {
        "xaxis": axis("tokens of the answer"),
        "yaxis": {"title": {"text": "answers that are longer (%)"}, "rangemode": "tozero", "ticksuffix": " %"},
    }
    table = Table(
        "survival",
        "Share of answers that are longer.",
        [Column("Tokens"), Column("Share that is longer")],
        [[number(int(x)), number(y, "share")] for curve in c.survival for x, y in zip(curve.x, curve.y, strict=True)],
        [curve.name for curve in c.survival for _ in curve.x],
        "Trace",
    )
    return Figure(
        "survival",
        "How many are longer",
        f"The largest distance between the lines is {write(c.ks, 'share')}.",
        [
            Panel(
                "survival-0", "", spec(traces, layout), f"Survival in A and B; largest distance {write(c.ks, 'share')}."
            )
        ],
        _legend(),
        table,
        wide=True,
    )


def quantile_differences(c: Comparison) -> Figure:
    """Differences of quantiles with their intervals."""
    names = [f"{100 * q.q:g} %" for q in c.quantiles]
    y = list(range(len(names)))
    trace = {
        "x": [q.difference for q in c.quantiles], "y": y, "mode": "markers", "marker": {"size": 11},
        "error_x": {
            "type": "data", "symmetric": False, "thickness": 2, "width": 5,
            "array": [max(0.0, q.high - q.difference) for q in c.quantiles],
            "arrayminus": [max(0.0, q.difference - q.low) for q in c.quantiles],
        },
        "text": [f"{name}: {q.a:,} → {q.b:,}" for name, q in zip(names, c.quantiles, strict=True)],
        "hovertemplate": "%{text}<extra></extra>", "meta": {"slot": 2},
    }  # fmt: skip
    layout = {
        "height": 110 + 30 * len(names),
        "xaxis": {"title": {"text": "B − A, tokens"}, "zeroline": True},
        "yaxis": {"tickvals": y, "ticktext": names, "range": [len(names) - 0.4, -0.6], "showgrid": False,
                  "zeroline": False},
    }  # fmt: skip
    table = Table(
        "differences",
        "Differences of quantiles.",
        [Column("Quantile", number=False), Column("B − A"), Column("From"), Column("To")],
        [
            [Cell(n), number(q.difference), number(q.low), number(q.high)]
            for n, q in zip(names, c.quantiles, strict=True)
        ],
    )
    alt = "; ".join(f"{name}: {q.difference:+d} tokens" for name, q in zip(names, c.quantiles, strict=True))
    return Figure(
        "differences",
        "Where B differs",
        "Difference of each quantile, with its 95 % interval. Right of zero B is longer.",
        [Panel("differences-0", "", spec([trace], layout), f"Differences of quantiles. {alt}.")],
        [],
        table,
        wide=True,
    )


def shared(c: Comparison) -> Figure | None:
    """Lengths of the same prompts in A and B."""
    if not c.shared_prompts or not c.shared_points:
        return None
    s = c.shared_prompts[0]
    x, y = ([point[i] for point in c.shared_points] for i in (0, 1))
    low, high = min(*x, *y), max(*x, *y)
    traces = [
        {"x": [low, high], "y": [low, high], "mode": "lines", "line": {"width": 1.5, "dash": "dot"},
         "hoverinfo": "skip", "meta": {"slot": 0}},
        {"x": x, "y": y, "mode": "markers", "marker": {"size": 5, "opacity": 0.45}, "meta": {"slot": 1},
         "hovertemplate": "A %{x:.0f}, B %{y:.0f} tokens<extra></extra>"},
    ]  # fmt: skip
    layout = {"height": 460, "xaxis": axis(f"tokens in A ({plain(s.model_a)})"),
              "yaxis": axis(f"tokens in B ({plain(s.model_b)})")}  # fmt: skip
    table = Table(
        "shared-points",
        f"Lengths of {len(x):,} of the {s.prompts:,} prompts in both, in tokens.",
        [Column("A"), Column("B")],
        [[number(a), number(b)] for a, b in c.shared_points],
    )
    text = f"B’s answers to the same prompts are {write(s.ratio)} times as long; Kendall’s τ {s.kendall_tau:.2f}."
    return Figure(
        "shared-points",
        "Each dot is a prompt",
        f"{text} On the dotted line both are equally long.",
        [Panel("shared-points-0", "", spec(traces, layout), text)],
        [],
        table,
        wide=True,
    )
