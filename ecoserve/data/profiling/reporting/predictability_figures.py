"""Figures of predictability: errors of other answers and of a predictor, and the spread of answers to one prompt."""

from __future__ import annotations

from itertools import pairwise

from ecoserve.data.profiling.model import Profile
from ecoserve.data.profiling.reporting.words import dash, percents
from ecoserve.pages import Column, Figure, Table, plain, plots, write


def errors(profile: Profile) -> Figure | None:
    """Share of the answers predicted to within x tokens."""
    curves = profile.curves.errors
    if not curves:
        return None
    traces = []
    for i, curve in enumerate(curves):
        hover = f"{plain(curve.name)}<br>%{{y:.0f}} % within %{{x:.0f}} tokens"
        traces.append(plots.line(curve.x, percents(curve.y), i, curve.name, dash=dash(i), width=2.6, hover=hover))
    columns = ["Tokens", *(Column(curve.name, unit="share") for curve in curves)]
    rows = [[int(x), *(curve.y[k] for curve in curves)] for k, x in enumerate(curves[0].x)]
    table = Table("errors", "Share of answers predicted to within x tokens.", columns, rows)
    at_50 = "; ".join(f"{c.name}: {write(_at(c.x, c.y, 50), 'share')} within 50 tokens" for c in curves)
    x = plots.tokens_axis("absolute error of at most (tokens)")
    y = plots.axis("answers (%)", range=[0, 102], percent=True)
    plot = plots.panel(traces, f"Errors of each way to predict. {at_50}.", x=x, y=y)
    text = "Left and up is better. "
    if profile.same_prompt is not None:
        text += "Other answers to the same prompt show about what a predictor that reads the prompt can reach; the "
        text += "rest is chance of sampling."
    return Figure("errors", "How close predictions come", text, [plot], table)


def spread(profile: Profile) -> Figure | None:
    """How much answers to the same prompt differ."""
    counts, same = profile.curves.spread, profile.same_prompt
    if same is None or not counts:
        return None
    total = sum(counts)
    bins = list(pairwise(profile.curves.spread_edges))
    middles, widths = [(a + b) / 2 for a, b in bins], [b - a for a, b in bins]
    hover = "%{y:.1f} % of prompts at %{x:.2f}"
    trace = plots.bars(middles, [100 * n / total for n in counts], 1, width=widths, hover=hover)
    columns = ["Coefficient of variation", "Prompts", Column("Share", unit="share")]
    rows = [[f"{a:.2f}–{b:.2f}", n, n / total] for (a, b), n in zip(bins, counts, strict=True)]
    table = Table("spread", "Prompts by how much their answers’ lengths differ.", columns, rows)
    text = (
        f"For half of the {same.prompts:,} prompts the answers’ lengths have a standard deviation of at most "
        f"{write(same.cv_median, 'share')} of their mean. The last bar holds everything beyond."
    )
    x = plots.axis("coefficient of variation of the answers to one prompt", zeroline=False)
    plot = plots.panel([trace], text, x=x, y=plots.from_zero("prompts (%)"), bargap=0.04)
    return Figure("spread", "The same prompt, asked again", text, [plot], table)


def _at(x: list[float], y: list[float | None], where: float) -> float:
    """The curve at the last point not beyond ``where``."""
    return next((v for at, v in zip(reversed(x), reversed(y), strict=True) if at <= where and v is not None), 0.0)
