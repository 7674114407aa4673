"""A profile in a few plain sentences for people who have never seen the project, and what to know before believing it.

Rule: a sentence says no more than the figures show; whether predicting lengths pays is only said where something
tells how predictable they are.
"""

from __future__ import annotations

from typing import Final, Literal

from ecoserve.data.profiling.model import (
    AcrossModels,
    Lengths,
    Ordering,
    Predicted,
    PromptLength,
    Reservation,
    SamePrompt,
    Source,
    Tail,
    Waste,
)
from ecoserve.data.profiling.reservation import find
from ecoserve.pages.numbers import write, write_change

Worth = Literal["yes", "no", "perhaps", "unknown"]

#: What knowing every length must save of the wait, or fit beyond a fixed 90th percentile, to be worth anything.
LITTLE_WAIT: Final = 0.12
LITTLE_ROOM: Final = 1.15
#: Fewer answers than this say nothing about whether predicting them pays.
FEWEST: Final = 100
#: Share of the error of always saying the median that must go for a prediction to be worth it, and to be thought about.
SKILL: Final = 0.2
SOME_SKILL: Final = 0.08


#: What the verdict is called in a sentence.
VERDICTS: Final[dict[Worth, str]] = {
    "yes": "Predicting lengths is worth it here",
    "perhaps": "Predicting lengths is perhaps worth it here",
    "no": "Predicting lengths is hardly worth it here",
    "unknown": "Whether predicting lengths is worth it here is open",
}


def percent(part: float) -> str:
    """A share for a sentence: ``78 %``."""
    return write_change(part, sign=False)


def how_long(response: Lengths) -> str:
    """Middle and extremes of the answers."""
    text = (
        f"Half of the answers have between {response.p25:,} and {response.p75:,} tokens (median {response.p50:,}, mean "
        f"{response.mean:,.0f}); one in ten has more than {response.p90:,}, one in a hundred more than {response.p99:,}"
    )
    if response.censored_share:
        text += f", and {percent(response.censored_share)} were cut off"
    return text + "."


def how_heavy(tail: Tail) -> str:
    """The tail in one sentence."""
    kinds = {
        "ends": "the tail is thin and comes to an end",
        "light": "the tail is no heavier than an exponential one",
        "heavy": "the tail is heavy: a few answers decide totals and worst cases",
        "mixed": "the tail is of several kinds, as in mixed traffic",
        "open": "how heavy the tail is cannot be told from so many answers",
        "unknown": "how heavy the tail is cannot be told: too few answers, or cut off before",
    }
    text = f"The longest tenth of the answers has {percent(tail.top10_token_share)} of all answer tokens; "
    text += kinds[tail.kind]
    return f"{text} (answers are cut off at {tail.ends_at:,})." if tail.ends_at is not None else f"{text}."


def how_predictable(
    same: SamePrompt | None, across: AcrossModels | None, by_length: PromptLength | None, told: Predicted | None
) -> str:
    """What is known about predictability."""
    parts = []
    if same is not None:
        parts.append(
            f"over {same.prompts:,} prompts with several answers, the prompt explains {percent(same.icc)} of "
            f"the variance of lengths: another answer to the same prompt is off by "
            f"{write(same.one_other.mae_tokens, 'tokens')} on average, always saying the median by "
            f"{write(same.constant.mae_tokens, 'tokens')}, and what other answers tell at best, "
            f"{write(same.floor_mae_high_tokens, 'tokens')}, is about what a predictor can reach"
        )
    elif across is not None and across.prompt_share is not None:
        parts.append(
            f"no model answered a prompt twice, but {across.models} models answered the same ones: the prompt explains "
            f"{percent(across.prompt_share)} of the variance of log length, whoever answers, and the model’s "
            f"habit {percent(across.model_share or 0.0)}"
        )
    if told is not None:
        parts.append(
            f"the predictor is off by {write(told.mae_tokens, 'tokens')}, always saying the median by "
            f"{write(told.mae_constant_tokens, 'tokens')}"
        )
    if not parts and by_length is not None:
        parts.append(
            "no prompt was answered twice, so how far a prompt decides the length is not known; its length alone "
            f"explains {percent(by_length.r2_log_bands)} of the variance of log length"
        )
    if not parts:
        return "How predictable lengths are is not known: no prompt was answered twice, and prompts have no lengths."
    text = "; ".join(parts)
    return f"{text[:1].upper()}{text[1:]}."


def what_is_wasted(waste: Waste) -> str:
    """Reserving max_tokens, and what other ways would bring."""
    most, known, p90 = _way(waste, "max_tokens"), _way(waste, "true length"), _way(waste, "p90")
    origin = {"trace": "the requests’ own", "given": "as given", "cap": "where answers are cut off"}
    named = origin.get(waste.max_tokens_from, "the longest answer")
    return (
        f"Reserving max_tokens ({waste.max_tokens:,}, {named}) leaves {percent(most.waste_share)} of the "
        f"reserved KV cache unused; reserving this trace’s 90th percentile would fit {write(p90.concurrency)} times as "
        f"many requests, of which one in ten outgrows it, and knowing every length {write(known.concurrency)} times."
    )


def is_it_worth_it(
    response: Lengths,
    same: SamePrompt | None,
    across: AcrossModels | None,
    by_length: PromptLength | None,
    told: Predicted | None,
    waste: Waste,
    orders: list[Ordering],
) -> tuple[Worth, str]:
    """Whether predicting lengths pays on this traffic, and why."""
    room = _way(waste, "true length").concurrency / _way(waste, "p90").concurrency
    wait = {order.by: order.wait_saved for order in orders}
    best = wait["true length"]
    if response.n < FEWEST:
        return "unknown", f"{VERDICTS['unknown']}: {_answers(response.n)} too few to tell."
    if response.censored_share > 0.5:
        what = f"{percent(response.censored_share)} of the answers were cut off, so that most lengths are not known"
        return "unknown", f"{VERDICTS['unknown']}: {what}."
    if best < LITTLE_WAIT and room < LITTLE_ROOM:
        return "no", (
            f"{VERDICTS['no']}: answers are so alike that knowing their lengths would save only {percent(best)} of the "
            "wait in a long queue."
        )
    gain = f"knowing every length would save {percent(best)} of the wait in a long queue, shortest first"
    if room >= LITTLE_ROOM:
        gain += f", and fit {write(room)} times as many requests as a fixed 90th percentile"
    skill, evidence = _skill(same, across, by_length, told, wait)
    if skill is None:
        return "unknown", (
            f"{VERDICTS['unknown']}: {gain}, but nothing here says how predictable lengths are. Collect several "
            "answers per prompt (ecoserve profile --collect), or train a predictor and give it with --predictor."
        )
    worth: Worth = "yes" if skill >= SKILL else "perhaps" if skill >= SOME_SKILL else "no"
    return worth, f"{VERDICTS[worth]}: {gain}; {evidence}."


def _skill(
    same: SamePrompt | None,
    across: AcrossModels | None,
    by_length: PromptLength | None,
    told: Predicted | None,
    wait: dict[str, float],
) -> tuple[float | None, str]:
    """How much of the lengths can be foreseen (0 to 1), by the predictor at hand, else by what other answers tell."""
    if told is not None and told.mae_constant_tokens > 0:
        skill = 1.0 - told.mae_tokens / told.mae_constant_tokens
        taken = f"this predictor takes {percent(max(0.0, skill))} off the error of always saying the median"
        return skill, f"{taken}, and saves {percent(wait['predictor'])} of that wait"
    if same is not None and same.constant.mae_tokens > 0:
        skill = 1.0 - same.floor_mae_high_tokens / same.constant.mae_tokens
        told_by = wait.get("mean of the other answers", wait["one other answer"])
        return skill, (
            f"other answers to the same prompt take {percent(max(0.0, skill))} off the error of always saying "
            f"the median, and would save {percent(told_by)} of the wait"
        )
    if across is not None and across.prompt_share is not None:
        # A share of variance of 1 - s**2 goes with an error smaller by s.
        return 1.0 - (1.0 - across.prompt_share) ** 0.5, (
            f"{percent(across.prompt_share)} of the variance of log length is the prompt’s, whichever model answers"
        )
    if by_length is not None and by_length.mae_tokens < (1.0 - SKILL) * by_length.mae_constant_tokens:
        # Little skill would prove nothing: a predictor reads more than the length.
        skill = 1.0 - by_length.mae_tokens / by_length.mae_constant_tokens
        taken = f"even the prompt’s length alone takes {percent(skill)} off the error of always saying the median"
        return skill, taken
    return None, ""


def _answers(n: int) -> str:
    return f"{n:,} {'answer is' if n == 1 else 'answers are'}"


def _way(waste: Waste, policy: str) -> Reservation:
    found = find(waste, policy)
    assert found is not None, policy
    return found


def notes(
    trace: Source, response: Lengths, tail: Tail, same: SamePrompt | None, waste: Waste, language_rows: int, rows: int
) -> list[str]:
    """What to know before believing the figures."""
    found = []
    if trace.length_source.startswith("characters"):
        found.append(
            f"Response lengths are estimated from characters ({trace.length_source.partition('/')[2]} a token), not "
            "counted: give --tokenizer, or --length-field."
        )
    if trace.prompt_length_source.startswith("characters"):
        found.append("Prompt lengths are estimated from characters, not counted: give --tokenizer.")
    if response.n < 1000:
        found.append(f"{_answers(response.n)} few: percentiles above the 99th rest on a handful.")
    if response.censored_share:
        found.append(
            f"{percent(response.censored_share)} of the answers were cut off. Percentiles count them as they "
            "are, the km_ ones and the laws count them as longer."
        )
    if trace.design_effect > 1.5:
        found.append(
            f"Answers within a conversation resemble each other: intervals are {write(trace.design_effect**0.5)} times "
            "wider than if every record stood for itself."
        )
    if same is not None and same.censored_share > 0.05:
        found.append("Many answers to repeated prompts were cut off, which makes prompts look more predictable.")
    if waste.max_tokens_from == "longest":
        found.append("No max_tokens is known: reservations are compared with the longest answer; give --max-tokens.")
    if not waste.prompts_known:
        found.append("Prompt lengths are not known: reservations are reckoned without prompts.")
    if rows < trace.records:
        found.append(
            f"Percentiles, laws and arrivals are of all records; the rest is of {rows:,}: all answers to some prompts."
        )
    if language_rows and language_rows < trace.records:
        found.append(f"Languages were recognised on a sample of {language_rows:,} prompts.")
    return found
