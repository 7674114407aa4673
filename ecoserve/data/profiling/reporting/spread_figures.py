"""Plots of predictability: how near other answers, or a predictor, come; how answers to one prompt spread."""

from __future__ import annotations

import itertools
from typing import Any

from ecoserve.data.profiling.model import Profile
from ecoserve.data.profiling.reporting.length_figures import axis
from ecoserve.data.profiling.reporting.words import dash, number
from ecoserve.pages import Cell, Column, Figure, LegendEntry, Panel, Table, plain, spec, write


def errors(profile: Profile) -> Figure | None:
    """Share of answers told to within x tokens."""
    curves = profile.curves.errors
    if not curves:
        return None
    traces: list[dict[str, Any]] = []
    legend = []
    for i, curve in enumerate(curves):
        slot = 0 if i == 0 else i
        traces.append(
            {"x": curve.x, "y": [None if v is None else 100 * v for v in curve.y], "mode": "lines",
             "line": {"width": 2.6, "dash": dash(i)}, "meta": {"slot": slot},
             "hovertemplate": f"{plain(curve.name)}<br>%{{y:.0f}} % within %{{x:.0f}} tokens<extra></extra>"}
        )  # fmt: skip
        legend.append(LegendEntry(curve.name, slot, dash(i)))
    layout = {
        "xaxis": axis("at most so many tokens off"),
        "yaxis": {"title": {"text": "answers (%)"}, "range": [0, 102], "ticksuffix": " %"},
    }
    table = Table(
        "errors",
        "Share of answers told to within so many tokens.",
        [Column("Tokens"), *(Column(curve.name) for curve in curves)],
        [[number(int(x)), *(number(curve.y[k], "share") for curve in curves)] for k, x in enumerate(curves[0].x)],
    )
    same = profile.same_prompt
    text = "Left and up is better. "
    if same is not None:
        text += (
            "What other answers to the same prompt tell is about what a predictor that reads the prompt can reach; the "
            "rest is chance of sampling."
        )
    at_50 = [f"{c.name}: {write(_at(c.x, c.y, 50), 'share')} within 50 tokens" for c in curves]
    return Figure(
        "errors",
        "How near one can come",
        text,
        [Panel("errors-0", "", spec(traces, layout), f"How near one can come. {'; '.join(at_50)}.")],
        legend,
        table,
        wide=True,
    )


def spread(profile: Profile) -> Figure | None:
    """How much answers to the same prompt differ."""
    edges, counts = profile.curves.spread_edges, profile.curves.spread
    same = profile.same_prompt
    if same is None or not counts:
        return None
    total = sum(counts)
    middles = [(a + b) / 2 for a, b in itertools.pairwise(edges)]
    trace = {
        "type": "bar", "x": middles, "y": [100 * n / total for n in counts], "meta": {"slot": 1},
        "width": [b - a for a, b in itertools.pairwise(edges)],
        "hovertemplate": "%{y:.1f} % of prompts at %{x:.2f}<extra></extra>",
    }  # fmt: skip
    layout = {
        "bargap": 0.04,
        "xaxis": {"title": {"text": "coefficient of variation of the answers to one prompt"}, "zeroline": False},
        "yaxis": {"title": {"text": "prompts (%)"}, "rangemode": "tozero"},
    }
    table = Table(
        "spread",
        "Prompts by how much their answers’ lengths differ.",
        [Column("Coefficient of variation", number=False), Column("Prompts"), Column("Share")],
        [
            [Cell(f"{a:.2f}–{b:.2f}"), number(n), number(n / total, "share")]
            for a, b, n in zip(edges, edges[1:], counts, strict=False)
        ],
    )
    text = (
        f"For half of the {same.prompts:,} prompts the answers’ lengths have a standard deviation of at most "
        f"{write(same.cv_median, 'share')} of their mean. The last bar holds everything beyond."
    )
    return Figure(
        "spread",
        "The same prompt, asked again",
        text,
        [Panel("spread-0", "", spec([trace], layout), text)],
        [],
        table,
        wide=True,
    )


def _at(x: list[float], y: list[float | None], where: float) -> float:
    """The curve at the last point not beyond ``where``."""
    return next((v for at, v in zip(reversed(x), reversed(y), strict=True) if at <= where and v is not None), 0.0)
