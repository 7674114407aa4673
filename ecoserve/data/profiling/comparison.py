"""The shape of ``comparison.json``, and a comparison in words: the verdict with its reasons, the first screen.

Rules of the keys as of :mod:`~ecoserve.data.profiling.model`. A difference is only called one where chance is ruled
out.
"""

from __future__ import annotations

import math
from typing import Final, Literal

from ecoserve.data.profiling.model import SCHEMA_VERSION, Curve, Lengths, Source
from ecoserve.data.profiling.statements import percent
from ecoserve.pages.tables import write, write_change
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


Verdict = Literal["same", "small", "recalibrate", "retrain"]

#: Up to here a distance, or a change of scale (as log), is small.
SMALL_KS: Final = 0.05
SMALL_PSI: Final = 0.1
SMALL_SCALE: Final = 0.1
#: A difference of shape, or a share of B's prompts that A hardly has, from which a predictor is trained anew.
MUCH_SHAPE: Final = 0.1
MUCH_NEW: Final = 0.2
#: Of the agreement between two answers of A to the same prompt, A and B must keep this; if that is not known, this tau.
KEPT_AGREEMENT: Final = 0.6
KEPT_TAU: Final = 0.35

VERDICTS: Final[dict[Verdict, str]] = {
    "same": "A predictor trained on A serves B: no difference is shown",
    "small": "A predictor trained on A serves B: the difference is small",
    "recalibrate": "A predictor trained on A must be recalibrated for B",
    "retrain": "For B, a predictor is better trained anew",
}


def judge(c: Comparison) -> tuple[Verdict, list[str]]:
    shared = c.shared_prompts[0] if c.shared_prompts else None
    against = _against(c, shared)
    if against and not _alike(c, shared):
        return "retrain", against
    if shared is not None:
        shown = not shared.ratio_low <= 1.0 <= shared.ratio_high
        scaled = shown and abs(math.log(shared.ratio)) > SMALL_SCALE
        same = f"the same prompts have answers {_times(shared.ratio)} in B, and {_agreement(shared)}"
        return ("recalibrate" if scaled else "small" if shown or c.ks_p <= 0.05 else "same"), [same]
    if c.ks_p > 0.05:
        return "same", [f"the distance of the distributions ({percent(c.ks)}) is what chance gives"]
    if _alike(c, None):
        medians = write_change(_median_ratio(c) - 1)
        return "small", [f"the distributions differ by at most {percent(c.ks)}, the medians by {medians}"]
    if c.within_log is not None and abs(c.within_log) <= SMALL_SCALE and abs(c.mix_log or 0.0) > abs(c.within_log):
        mixed = "lengths differ because other requests came, which a predictor sees"
        return "small", [f"{mixed}; the same kind of request has about the same lengths"]
    left = f"{percent(c.aligned_ks)} of the answers lie elsewhere after that"
    stretched = f"lengths are stretched, to {write(c.scale)} times length to the power {c.power:.2f}"
    return "recalibrate", [f"{stretched}, and {left}"]


def _against(c: Comparison, shared: SharedPrompts | None) -> list[str]:
    found = []
    if shared is not None and not _agree(shared):
        found.append(f"of the {shared.prompts:,} prompts in both, {_agreement(shared)}")
    if shared is None and c.aligned_ks > max(MUCH_SHAPE, c.ks_by_chance):
        found.append(f"even stretched to the same scale, {percent(c.aligned_ks)} of the answers lie elsewhere")
    for new, what in ((c.new_prompt_lengths, "of lengths"), (c.new_languages, "in languages")):
        if new is not None and new > MUCH_NEW:
            found.append(f"{percent(new)} of B’s prompts are {what} that A hardly has")
    return found


def say(c: Comparison) -> tuple[list[str], list[str]]:
    a, b = c.response_a, c.response_b
    shown = "" if c.ks_p < 0.05 else ", which chance alone may give"
    change, interval = write_change(_median_ratio(c) - 1), f"{percent(c.ks_low)} to {percent(c.ks_high)}"
    differ = (
        f"The median goes from {a.p50:,} to {b.p50:,} tokens ({change}), the 90th percentile from {a.p90:,} to "
        f"{b.p90:,}; the share of answers up to a given length differs by at most {percent(c.ks)} (95 % interval "
        f"{interval}){shown}."
    )
    answer = [differ]
    if c.mix_log is not None and c.within_log is not None:
        answer.append(
            f"On average lengths are {_times(math.exp(c.shift_log))}: another mix of prompt lengths and turns makes "
            f"them {_times(math.exp(c.mix_log))}, other answers to the same kind of request "
            f"{_times(math.exp(c.within_log))}."
        )
    if c.shared_prompts:
        s = c.shared_prompts[0]
        answer.append(
            f"{s.prompts:,} prompts are in both: B’s answers to them are {_times(s.ratio)} (95 % interval "
            f"{write(s.ratio_low)} to {write(s.ratio_high)} times), and {_agreement(s)}."
        )
    reasons = "; ".join(c.reasons)
    answer.append(f"{VERDICTS[c.verdict]}: {reasons}.")
    return answer, _notes(c)


def _notes(c: Comparison) -> list[str]:
    found = []
    fields = all(x.length_source.startswith("field:") for x in (c.a, c.b))
    if c.a.length_source != c.b.length_source and not fields:
        sources = f"A: {c.a.length_source}, B: {c.b.length_source}"
        found.append(f"Lengths are counted differently ({sources}): part of the difference may be the counting.")
    if not c.shared_prompts and c.verdict != "retrain":
        found.append(
            "No prompts are shared, so whether B’s model answers the same prompts alike cannot be seen here; test "
            "it with ecoserve evaluate-predictor on B."
        )
    if min(c.a.records, c.b.records) < 1000:
        found.append("Fewer than 1,000 answers on one side: small differences cannot be shown.")
    if max(c.response_a.censored_share, c.response_b.censored_share) > 0.02:
        found.append("Many answers were cut off; distances count them as they are.")
    return found


def _alike(c: Comparison, shared: SharedPrompts | None) -> bool:
    """Whether the distributions are so near that no reason against counts; shared prompts must agree, too."""
    near = c.ks <= SMALL_KS or (c.psi <= SMALL_PSI and abs(math.log(_median_ratio(c))) <= SMALL_SCALE)
    return near and (shared is None or _agree(shared))


def _agree(s: SharedPrompts) -> bool:
    if s.tau_within_a is not None and s.tau_within_a > 0:
        return s.kendall_tau >= KEPT_AGREEMENT * s.tau_within_a
    return s.kendall_tau >= KEPT_TAU


def _agreement(s: SharedPrompts) -> str:
    text = f"the same ones are long (Kendall’s τ {s.kendall_tau:.2f}" if _agree(s) else (
        f"others are long (Kendall’s τ {s.kendall_tau:.2f}"
    )  # fmt: skip
    within = f"; between two answers in A {s.tau_within_a:.2f}" if s.tau_within_a is not None else ""
    return f"{text}{within})"


def _median_ratio(c: Comparison) -> float:
    assert c.response_a.p50 is not None
    assert c.response_b.p50 is not None
    return max(1, c.response_b.p50) / max(1, c.response_a.p50)


def _times(ratio: float) -> str:
    if abs(ratio - 1) < 0.005:
        return "as long"
    return f"{write(ratio)} times as long"
