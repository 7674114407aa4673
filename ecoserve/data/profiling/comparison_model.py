"""The shape of ``comparison.json``: one definition of every key, its unit and its meaning; rules as of
:mod:`~ecoserve.data.profiling.model`.
"""

from __future__ import annotations

from typing import Literal

from ecoserve.data.profiling.model import SCHEMA_VERSION, Curve, Lengths, Source
from ecoserve.schema import Keys, key, maybe, share, tokens


class QuantileChange(Keys):
    """One quantile on both sides."""

    q: float = key("The quantile, 0 to 1.")
    a: int = tokens("In A.")
    b: int = tokens("In B.")
    difference: int = key("b - a.", "tokens")
    low: float = key("Lower end of its 95 % interval (bootstrap).", "tokens")
    high: float = key("Upper end.", "tokens")
    ratio: float = key("b / a.")


class SharedPrompts(Keys):
    """The same prompts answered in A and in B."""

    model_a: str = key("The model in A.")
    model_b: str = key("The model in B.")
    prompts: int = key("Prompts that both have.", "count")
    ratio: float = key("Geometric mean of length in B / length in A.")
    ratio_low: float = key("Lower end of its 95 % interval.")
    ratio_high: float = key("Upper end.")
    sd_log_ratio: float = key("Standard deviation of log(length in B / length in A).")
    kendall_tau: float = key("Are the same prompts long in both? Kendall's tau-b.")
    tau_within_a: float | None = maybe("The same between two answers in A, if prompts repeat there.")
    mae_tokens: float = tokens("Mean distance between the length in A and in B.")


class GroupChange(Keys):
    """One group on both sides."""

    by: Literal["turn", "prompt_band", "model", "language", "split"] = key("What records are grouped by.")
    name: str = key("The group.")
    share_a: float = share("Its share of A.")
    share_b: float = share("Its share of B.")
    p50_a: int | None = tokens("Its median length in A; null where A has none.", None)
    p50_b: int | None = tokens("Its median length in B; null where B has none.", None)


class Comparison(Keys):
    """The whole of ``comparison.json``: would what was learned on A serve B?"""

    schema_version: Literal[1] = key("Version of this layout.", default=SCHEMA_VERSION)
    answer: list[str] = key("The comparison in a few sentences.")
    verdict: Literal["same", "small", "recalibrate", "retrain"] = key(
        "For a predictor trained on A: `same` (no difference shown), `small` (it serves B), `recalibrate` (order and "
        "shape hold, the scale moved), `retrain`."
    )
    reasons: list[str] = key("What the verdict rests on.")
    a: Source = key("Trace A.")
    b: Source = key("Trace B.")
    response_a: Lengths = key("Response lengths of A.")
    response_b: Lengths = key("Response lengths of B.")
    ks: float = key("Kolmogorov-Smirnov distance: largest difference of the distribution functions.", "share 0..1")
    ks_low: float = key("Lower end of its 95 % interval (bootstrap, its upward bias taken off).", "share 0..1")
    ks_high: float = key("Upper end.", "share 0..1")
    ks_by_chance: float = key("Distance that equal traffic of this size exceeds one time in 20.", "share 0..1")
    ks_p: float = key("How often equal traffic gives such a distance, at most.", "share 0..1")
    psi: float = key("Population stability index over A's deciles; by custom above 0.1 some shift, above 0.25 much.")
    wasserstein_log: float = key("Mean distance between log lengths of equal rank.")
    quantiles: list[QuantileChange] = key("Quantiles on both sides.")
    shift_log: float = key("Difference of mean log length, B - A.")
    mix_log: float | None = maybe("Of that: another mix of requests (prompt length, first or later turn).")
    within_log: float | None = maybe("Of that: other lengths for the same kind of request.")
    scale: float = key("Lengths of A are stretched to those of B by length -> scale * length ** power.")
    power: float = key("That power; 1: only the scale moved.")
    aligned_ks: float = key("Distance that is left when A is stretched so: a difference of shape.", "share 0..1")
    new_prompt_lengths: float | None = share("Share of B's prompts outside the middle 99 % of A's lengths.", None)
    new_languages: float | None = share("Share of B's prompts in languages with less than 1 % of A's.", None)
    shared_prompts: list[SharedPrompts] = key("The same prompts on both sides, by model.")
    groups: list[GroupChange] = key("Groups on both sides.")
    histogram_edges: list[int] = key("Bin k holds the lengths edges[k] + 1 to edges[k + 1].", "tokens")
    histogram_a: list[int] = key("Answers of A per bin.", "count")
    histogram_b: list[int] = key("Answers of B per bin.", "count")
    survival: list[Curve] = key("Share of answers longer than x, in A and in B.")
    shared_points: list[list[float]] = key("Pairs of lengths (A, B) of shared prompts, at most 2,000.", "tokens")
    seed: int = key("Seed of every sample and bootstrap.")
    notes: list[str] = key("Limits of the figures.")
