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
    traces = [
        plots.line(
            curve.x,
            percents(curve.y),
            i,
            curve.name,
            dash=dash(i),
            width=2.6,
            hover=f"{plain(curve.name)}<br>%{{y:.0f}} % within %{{x:.0f}} tokens",
        )
        for i, curve in enumerate(curves)
    ]
    table = Table(
        "errors",
        "Share of answers predicted to within so many tokens.",
        ["Tokens", *(Column(curve.name, unit="share") for curve in curves)],
        [[int(x), *(curve.y[k] for curve in curves)] for k, x in enumerate(curves[0].x)],
    )
    text = "Left and up is better. "
    if profile.same_prompt is not None:
        text += (
            "Other answers to the same prompt show about what a predictor that reads the prompt can reach; the rest is "
            "chance of sampling."
        )
    at_50 = "; ".join(f"{c.name}: {write(_at(c.x, c.y, 50), 'share')} within 50 tokens" for c in curves)
    alt = f"Errors of each way to predict. {at_50}."
    return Figure(
        "errors",
        "How near one can come",
        text,
        [
            plots.panel(
                traces,
                alt,
                x=plots.tokens_axis("error of at most so many tokens"),
                y=plots.axis("answers (%)", range=[0, 102], percent=True),
            )
        ],
        table,
    )


def spread(profile: Profile) -> Figure | None:
    """How much answers to the same prompt differ."""
    counts, same = profile.curves.spread, profile.same_prompt
    if same is None or not counts:
        return None
    total = sum(counts)
    bins = list(pairwise(profile.curves.spread_edges))
    trace = plots.bars(
        [(a + b) / 2 for a, b in bins],
        [100 * n / total for n in counts],
        1,
        width=[b - a for a, b in bins],
        hover="%{y:.1f} % of prompts at %{x:.2f}",
    )
    table = Table(
        "spread",
        "Prompts by how much their answers’ lengths differ.",
        ["Coefficient of variation", "Prompts", Column("Share", unit="share")],
        [[f"{a:.2f}–{b:.2f}", n, n / total] for (a, b), n in zip(bins, counts, strict=True)],
    )
    text = (
        f"For half of the {same.prompts:,} prompts the answers’ lengths have a standard deviation of at most "
        f"{write(same.cv_median, 'share')} of their mean. The last bar holds everything beyond."
    )
    return Figure(
        "spread",
        "The same prompt, asked again",
        text,
        [
            plots.panel(
                [trace],
                text,
                x=plots.axis("coefficient of variation of the answers to one prompt", zeroline=False),
                y=plots.axis("prompts (%)", rangemode="tozero"),
                bargap=0.04,
            )
        ],
        table,
    )


def _at(x: list[float], y: list[float | None], where: float) -> float:
    """The curve at the last point not beyond ``where``."""
    return next((v for at, v in zip(reversed(x), reversed(y), strict=True) if at <= where and v is not None), 0.0)
