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
        text = [f"{name}: {span(*x)} tokens<br>{write(n / total, 'share')}" for x, n in zip(bins, counts, strict=True)]
        # Steps need the last value twice.
        steps: plots.Trace = {"text": [*text, text[-1]], "hover": "%{text}", "steps": True}
        traces.append(plots.line(edges, [*heights, heights[-1]], slot, name, dash=dash, **steps))
    rows = [[span(*x), a, b] for x, a, b in zip(bins, c.histogram_a, c.histogram_b, strict=True)]
    table = Table("histograms", "Answers by length.", ["Tokens", "A", "B"], rows)
    alt = f"Histograms of lengths: median {c.response_a.p50} in A, {c.response_b.p50} in B."
    x, y = plots.tokens_axis("tokens of the answer"), plots.from_zero("answers per doubling (%)")
    explained = "The height is the share of all answers per doubling of length."
    return Figure("histograms", "Answers by length", explained, [plots.panel(traces, alt, x=x, y=y)], table)


def survival(c: Comparison) -> Figure:
    """Share of the answers longer than x."""
    traces = []
    columns = ["Tokens", Column("Share that is longer", unit="share")]
    table = Table("survival", "Share of answers that are longer.", columns, group_title="Trace")
    for (name, slot, dash), curve in zip(_SIDES, c.survival, strict=True):
        looks: plots.Trace = {"hover": f"{name}: %{{y:.3g}} % have more than %{{x:,.0f}} tokens", "width": 2.6}
        traces.append(plots.line(curve.x, percents(curve.y, positive=True), slot, name, dash=dash, **looks))
        for x, share in zip(curve.x, curve.y, strict=True):
            table.add([int(x), share], curve.name)
    distance = write(c.ks, "share")
    tokens, y = plots.tokens_axis("tokens of the answer"), plots.from_zero("answers that are longer (%)", percent=True)
    plot = plots.panel(traces, f"Survival in A and B; largest distance {distance}.", x=tokens, y=y)
    text = f"The largest distance between the lines is {distance}."
    return Figure("survival", "How many are longer", text, [plot], table)


def quantile_differences(c: Comparison) -> Figure:
    """Differences of quantiles with their intervals."""
    found = c.quantiles
    names = [f"{100 * q.q:g} %" for q in found]
    x = [q.difference for q in found]
    bars = plots.whiskers(x, [q.low for q in found], [q.high for q in found], 2)
    text = [f"{name}: {q.a:,} → {q.b:,}" for name, q in zip(names, found, strict=True)]
    trace = plots.points(x, list(range(len(names))), 2, size=11, error_x=bars, text=text, hover="%{text}")
    rows = [[name, q.difference, q.low, q.high] for name, q in zip(names, found, strict=True)]
    table = Table("differences", "Differences of quantiles.", ["Quantile", "B − A", "From", "To"], rows)
    spoken = "; ".join(f"{name}: {q.difference:+d} tokens" for name, q in zip(names, found, strict=True))
    axes: plots.Trace = {"x": plots.axis("B − A, tokens", zeroline=True), "y": plots.names_axis(names)}
    plot = plots.panel([trace], f"Differences of quantiles. {spoken}.", **axes, height=110 + 30 * len(names))
    explained = "Difference of each quantile, with its 95 % interval. Right of zero B is longer."
    return Figure("differences", "Where B differs", explained, [plot], table)


def shared(c: Comparison) -> Figure | None:
    """Lengths of the same prompts in A and B."""
    if not c.shared_prompts or not c.shared_points:
        return None
    s = c.shared_prompts[0]
    a, b = ([point[i] for point in c.shared_points] for i in (0, 1))
    ends = [min(*a, *b), max(*a, *b)]
    traces = [
        plots.line(ends, ends, 0, dash="dot", width=1.5),
        plots.points(a, b, 1, size=5, opacity=0.45, hover="A %{x:.0f}, B %{y:.0f} tokens"),
    ]
    text = f"B’s answers to the same prompts are {write(s.ratio)} times as long; Kendall’s τ {s.kendall_tau:.2f}."
    x, y = (plots.tokens_axis(f"tokens in {n} ({plain(m)})") for n, m in (("A", s.model_a), ("B", s.model_b)))
    plot = plots.panel(traces, text, x=x, y=y, height=460)
    caption = f"Lengths of {len(a):,} of the {s.prompts:,} prompts in both, in tokens."
    table = Table("shared-points", caption, ["A", "B"], c.shared_points)
    text += " On the dotted line both are equally long."
    return Figure("shared-points", "Each dot is a prompt", text, [plot], table)
