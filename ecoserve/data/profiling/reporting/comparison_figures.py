"""Figures of two traces side by side: histograms, survival, differences of quantiles, the same prompts."""

from __future__ import annotations

from itertools import pairwise
from typing import Final

from ecoserve.data.profiling.comparison_model import Comparison
from ecoserve.data.profiling.reporting.words import per_doubling, percents, span
from ecoserve.pages import Column, Figure, Table, plain, plots, write

#: Name, slot and dash of the two traces.
_SIDES: Final = (("A", 1, "solid"), ("B", 2, "dash"))


def histograms(c: Comparison) -> Figure:
    """Share of the answers per doubling of length, both as lines."""
    bins = list(pairwise(c.histogram_edges))
    edges = [edge + 0.5 for edge in c.histogram_edges]
    traces = []
    for (name, slot, dash), counts in zip(_SIDES, (c.histogram_a, c.histogram_b), strict=True):
        total = sum(counts)
        heights = per_doubling(c.histogram_edges, counts, total)
        counted = zip(bins, counts, strict=True)
        text = [f"{name}: {span(*ends)} tokens<br>{write(n / total, 'share')}" for ends, n in counted]
        # Steps need the last value twice.
        steps: plots.Trace = {"text": [*text, text[-1]], "hover": "%{text}"}
        trace = plots.line(edges, [*heights, heights[-1]], slot, name, dash=dash, **steps)
        trace["line"]["shape"] = "hv"
        traces.append(trace)
    counted_both = zip(bins, c.histogram_a, c.histogram_b, strict=True)
    table = Table(
        "histograms", "Answers by length.", ["Tokens", "A", "B"], [[span(*ends), a, b] for ends, a, b in counted_both]
    )
    alt = f"Histograms of lengths: median {c.response_a.p50} in A, {c.response_b.p50} in B."
    explained = "The height is the share of all answers per doubling of length."
    return Figure(
        "histograms",
        "Answers by length",
        explained,
        [
            plots.panel(
                traces,
                alt,
                x=plots.tokens_axis("tokens of the answer"),
                y=plots.axis("answers per doubling (%)", rangemode="tozero"),
            )
        ],
        table,
    )


def survival(c: Comparison) -> Figure:
    """Share of the answers longer than x."""
    traces = []
    for (name, slot, dash), curve in zip(_SIDES, c.survival, strict=True):
        hover = f"{name}: %{{y:.3g}} % have more than %{{x:,.0f}} tokens"
        traces.append(
            plots.line(curve.x, percents(curve.y, positive=True), slot, name, hover=hover, dash=dash, width=2.6)
        )
    table = Table(
        "survival",
        "Share of answers that are longer.",
        ["Tokens", Column("Share that is longer", unit="share")],
        [[int(x), y] for curve in c.survival for x, y in zip(curve.x, curve.y, strict=True)],
        groups=[curve.name for curve in c.survival for _ in curve.x],
        group_title="Trace",
    )
    distance = write(c.ks, "share")
    return Figure(
        "survival",
        "How many are longer",
        f"The largest distance between the lines is {distance}.",
        [
            plots.panel(
                traces,
                f"Survival in A and B; largest distance {distance}.",
                x=plots.tokens_axis("tokens of the answer"),
                y=plots.axis("answers that are longer (%)", rangemode="tozero", percent=True),
            )
        ],
        table,
    )


def quantile_differences(c: Comparison) -> Figure:
    """Differences of quantiles with their intervals."""
    found = c.quantiles
    names = [f"{100 * q.q:g} %" for q in found]
    differences = [q.difference for q in found]
    trace = plots.points(
        differences,
        list(range(len(names))),
        2,
        size=11,
        error_x=plots.whiskers(differences, [q.low for q in found], [q.high for q in found], 2),
        text=[f"{name}: {q.a:,} → {q.b:,}" for name, q in zip(names, found, strict=True)],
        hover="%{text}",
    )
    table = Table(
        "differences",
        "Differences of quantiles.",
        ["Quantile", "B − A", "From", "To"],
        [[name, q.difference, q.low, q.high] for name, q in zip(names, found, strict=True)],
    )
    spoken = "; ".join(f"{name}: {q.difference:+d} tokens" for name, q in zip(names, found, strict=True))
    return Figure(
        "differences",
        "Where B differs",
        "Difference of each quantile, with its 95 % interval. Right of zero B is longer.",
        [
            plots.panel(
                [trace],
                f"Differences of quantiles. {spoken}.",
                x=plots.axis("B − A, tokens", zeroline=True),
                y=plots.names_axis(names),
                height=110 + 30 * len(names),
            )
        ],
        table,
    )


def shared(c: Comparison) -> Figure | None:
    """Lengths of the same prompts in A and B."""
    if not c.shared_prompts or not c.shared_points:
        return None
    s = c.shared_prompts[0]
    x, y = ([point[i] for point in c.shared_points] for i in (0, 1))
    ends = [min(*x, *y), max(*x, *y)]
    traces = [
        plots.line(ends, ends, 0, dash="dot", width=1.5),
        plots.points(x, y, 1, size=5, opacity=0.45, hover="A %{x:.0f}, B %{y:.0f} tokens"),
    ]
    table = Table(
        "shared-points",
        f"Lengths of {len(x):,} of the {s.prompts:,} prompts in both, in tokens.",
        ["A", "B"],
        c.shared_points,
    )
    text = f"B’s answers to the same prompts are {write(s.ratio)} times as long; Kendall’s τ {s.kendall_tau:.2f}."
    return Figure(
        "shared-points",
        "Each dot is a prompt",
        f"{text} On the dotted line both are equally long.",
        [
            plots.panel(
                traces,
                text,
                x=plots.tokens_axis(f"tokens in A ({plain(s.model_a)})"),
                y=plots.tokens_axis(f"tokens in B ({plain(s.model_b)})"),
                height=460,
            )
        ],
        table,
    )
