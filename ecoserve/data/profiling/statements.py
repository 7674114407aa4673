"""A profile in a few plain sentences, and the limits of its figures."""

from __future__ import annotations

from typing import Final, Literal

from ecoserve.data.profiling.model import Profile, Reservation, Waste
from ecoserve.data.profiling.worth import find
from ecoserve.data.records import LOCAL_TIMES
from ecoserve.pages.tables import write, write_change

Worth = Literal["yes", "no", "perhaps", "unknown"]

#: Below both of these, knowing every length is worth nothing: share of the wait saved, requests that fit over p90's.
LITTLE_WAIT: Final = 0.12
LITTLE_ROOM: Final = 1.15
#: Fewer answers than this are no evidence.
FEWEST: Final = 100
#: Share of the constant median's error that a prediction must remove to be worth it, and to be worth considering.
SKILL: Final = 0.2
SOME_SKILL: Final = 0.08

#: The verdict at the beginning of a sentence.
VERDICTS: Final[dict[Worth, str]] = {
    "yes": "Predicting lengths is worth it here",
    "perhaps": "Predicting lengths is perhaps worth it here",
    "no": "Predicting lengths is hardly worth it here",
    "unknown": "Whether predicting lengths is worth it here is open",
}
_TAILS: Final = {
    "ends": "the tail is thin and comes to an end",
    "light": "the tail is no heavier than an exponential one",
    "heavy": "the tail is heavy: a few answers decide totals and worst cases",
    "mixed": "the tail is of several kinds, as in mixed traffic",
    "open": "there are too few answers to say how heavy the tail is",
    "unknown": "how heavy the tail is remains open: too few answers, or cut off before",
}


def percent(part: float) -> str:
    return write_change(part, sign=False)


def say(profile: Profile) -> tuple[list[str], Worth]:
    """The sentences of the first screen, and whether predicting lengths pays."""
    r, tail = profile.response, profile.tail
    long = (
        f"Half of the answers have between {r.p25:,} and {r.p75:,} tokens (median {r.p50:,}, mean {r.mean:,.0f}); one "
        f"in ten has more than {r.p90:,}, one in a hundred more than {r.p99:,}"
    )
    long += f", and {percent(r.censored_share)} were cut off" if r.censored_share else ""
    heavy = f"The longest tenth of the answers has {percent(tail.top10_token_share)} of all answer tokens; "
    heavy += _TAILS[tail.kind]
    heavy += f" (answers are cut off at {tail.ends_at:,})" if tail.ends_at is not None else ""
    worth, reason = _is_it_worth_it(profile)
    return [f"{long}.", f"{heavy}.", _how_predictable(profile), _what_is_wasted(profile.waste), reason], worth


def _how_predictable(p: Profile) -> str:
    parts = []
    same, across = p.same_prompt, p.across_models
    if same is not None:
        parts.append(
            f"over {same.prompts:,} prompts with several answers, the prompt explains {percent(same.icc)} of "
            f"the variance of lengths: another answer to the same prompt is off by "
            f"{write(same.one_other.mae_tokens, 'tokens')} on average, the constant median by "
            f"{write(same.constant.mae_tokens, 'tokens')}, and the best guess from other answers, off by "
            f"{write(same.floor_mae_high_tokens, 'tokens')}, is about what a predictor can reach"
        )
    elif across is not None and across.prompt_share is not None:
        parts.append(
            f"no model answered a prompt twice, but {across.models} models answered the same ones: the prompt explains "
            f"{percent(across.prompt_share)} of the variance of log length, whichever model answers, and the model’s "
            f"habit {percent(across.model_share or 0.0)}"
        )
    if p.predicted is not None:
        parts.append(
            f"the predictor is off by {write(p.predicted.mae_tokens, 'tokens')}, the constant median by "
            f"{write(p.predicted.mae_constant_tokens, 'tokens')}"
        )
    if not parts and p.prompt_length is not None:
        parts.append(
            "no prompt was answered twice, so how far a prompt decides the length is not known; its length alone "
            f"explains {percent(p.prompt_length.r2_log_bands)} of the variance of log length"
        )
    if not parts:
        return "How predictable lengths are is not known: no prompt was answered twice, and prompts have no lengths."
    text = "; ".join(parts)
    return f"{text[:1].upper()}{text[1:]}."


def _what_is_wasted(waste: Waste) -> str:
    most, known, p90 = _way(waste, "max_tokens"), _way(waste, "true length"), _way(waste, "p90")
    origin = {"trace": "the requests’ own", "given": "as given", "cap": "where answers are cut off"}
    named = origin.get(waste.max_tokens_from, "the longest answer")
    return (
        f"Reserving max_tokens ({waste.max_tokens:,}, {named}) leaves {percent(most.waste_share)} of the "
        f"reserved KV cache unused; reserving this trace’s 90th percentile would fit {write(p90.concurrency)} times as "
        f"many requests, of which one in ten outgrows it, and knowing every length {write(known.concurrency)} times."
    )


def _is_it_worth_it(p: Profile) -> tuple[Worth, str]:
    room = _way(p.waste, "true length").concurrency / _way(p.waste, "p90").concurrency
    best = next(order.wait_saved for order in p.orderings if order.by == "true length")
    if p.response.n < FEWEST:
        return "unknown", f"{VERDICTS['unknown']}: {_answers(p.response.n)} too few to tell."
    if p.response.censored_share > 0.5:
        what = f"{percent(p.response.censored_share)} of the answers were cut off, so that most lengths are not known"
        return "unknown", f"{VERDICTS['unknown']}: {what}."
    if best < LITTLE_WAIT and room < LITTLE_ROOM:
        return "no", (
            f"{VERDICTS['no']}: answers are so alike that knowing their lengths would save only {percent(best)} of the "
            "wait in a long queue."
        )
    gain = f"knowing every length would save {percent(best)} of the wait in a long queue, shortest first"
    if room >= LITTLE_ROOM:
        gain += f", and fit {write(room)} times as many requests as a fixed 90th percentile"
    skill, evidence = _skill(p)
    if skill is None:
        return "unknown", (
            f"{VERDICTS['unknown']}: {gain}, but nothing here says how predictable lengths are. Collect several "
            "answers per prompt (ecoserve profile --collect), or train a predictor and give it with --predictor."
        )
    worth: Worth = "yes" if skill >= SKILL else "perhaps" if skill >= SOME_SKILL else "no"
    return worth, f"{VERDICTS[worth]}: {gain}; {evidence}."


def _skill(p: Profile) -> tuple[float | None, str]:
    """How far lengths can be predicted (0 to 1), by the predictor at hand, else by other evidence."""
    wait = {order.by: order.wait_saved for order in p.orderings}
    same, across, by_length = p.same_prompt, p.across_models, p.prompt_length
    if p.predicted is not None and p.predicted.mae_constant_tokens > 0:
        skill = 1.0 - p.predicted.mae_tokens / p.predicted.mae_constant_tokens
        taken = f"this predictor takes {percent(max(0.0, skill))} off the error of the constant median"
        return skill, f"{taken}, and saves {percent(wait['predictor'])} of that wait"
    if same is not None and same.constant.mae_tokens > 0:
        skill = 1.0 - same.floor_mae_high_tokens / same.constant.mae_tokens
        by_others = wait.get("mean of the other answers", wait["one other answer"])
        return skill, (
            f"other answers to the same prompt take {percent(max(0.0, skill))} off the error of the constant "
            f"median, and would save {percent(by_others)} of the wait"
        )
    if across is not None and across.prompt_share is not None:
        # A share of variance of 1 - s**2 goes with an error smaller by s.
        return 1.0 - (1.0 - across.prompt_share) ** 0.5, (
            f"{percent(across.prompt_share)} of the variance of log length is the prompt’s, whichever model answers"
        )
    if by_length is not None and by_length.mae_tokens < (1.0 - SKILL) * by_length.mae_constant_tokens:
        # Little skill would prove nothing: a predictor reads more than the length.
        skill = 1.0 - by_length.mae_tokens / by_length.mae_constant_tokens
        return skill, f"even the prompt’s length alone takes {percent(skill)} off the error of the constant median"
    return None, ""


def _answers(n: int) -> str:
    return f"{n:,} {'answer is' if n == 1 else 'answers are'}"


def _way(waste: Waste, policy: str) -> Reservation:
    found = find(waste, policy)
    assert found is not None, policy
    return found


def notes(p: Profile, *, language_rows: int, rows: int) -> list[str]:
    """Limits of the figures; ``language_rows``, ``rows``: sizes of the samples that they come from."""
    characters = p.trace.length_source.partition("/")[2]
    same, design_effect = p.same_prompt, p.trace.design_effect
    found = {
        f"Response lengths are estimated from characters ({characters} a token), not counted: give --tokenizer, or "
        "--length-field.": p.trace.length_source.startswith("characters"),
        "Prompt lengths are estimated from characters, not counted: give --tokenizer.": (
            p.trace.prompt_length_source.startswith("characters")
        ),
        f"{_answers(p.response.n)} few: percentiles above the 99th rest on a handful.": p.response.n < 1000,
        f"{percent(p.response.censored_share)} of the answers were cut off. Percentiles count them as they are, the "
        "km_ ones and the laws count them as longer.": p.response.censored_share > 0,
        f"Answers within a conversation resemble each other: intervals are {write(design_effect**0.5)} times wider "
        "than if every record stood for itself.": design_effect > 1.5,
        "Many answers to repeated prompts were cut off, which makes prompts look more predictable.": (
            same is not None and same.censored_share > 0.05
        ),
        "No max_tokens is known: reservations are compared with the longest answer; give --max-tokens.": (
            p.waste.max_tokens_from == "longest"
        ),
        "Prompt lengths are not known: reservations are counted without prompts.": not p.waste.prompts_known,
        f"Percentiles, laws and arrivals are of all records; the rest is of {rows:,}: all answers to some prompts.": (
            rows < p.trace.records
        ),
        f"Languages were recognised on a sample of {language_rows:,} prompts.": 0 < language_rows < p.trace.records,
    }
    # Estimates of tokens have a sentence of their own above.
    said = [*p.trace.warnings, *(text for text in p.trace.stated if text == LOCAL_TIMES)]
    warned = [f"{text[0].upper()}{text[1:]}." for text in said if not text.startswith("tokens of")]
    return [*warned, *(text for text, applies in found.items() if applies)]
