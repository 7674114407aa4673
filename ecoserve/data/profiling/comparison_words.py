"""A comparison in words: the verdict with its reasons, and the sentences of its first screen.

The thresholds are stated here; a difference is only called one where chance is ruled out.
"""

from __future__ import annotations

import math
from typing import Final, Literal

from ecoserve.data.profiling.comparison_model import Comparison, SharedPrompts
from ecoserve.data.profiling.statements import percent
from ecoserve.pages.numbers import write, write_change

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
    """The verdict on ``c``, and its reasons."""
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
    """Reasons to retrain."""
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
    """The sentences of the first screen, and the limits of the figures."""
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
