"""KV wasted by reserving for an answer, by the source of its reserved length.

A request with a prompt of p tokens and an answer of r holds a slot of p + R tokens (R the reservation) for r steps and
has written p + t tokens after step t. Used token-time is the sum of p + t over t = 1 .. r, that is r p + r (r + 1) / 2;
reserved is r (p + R) while r <= R. An answer that outgrows R (overflow) continues token by token, as vLLM gives out
blocks: R (p + R) + the sum of p + t over t = R + 1 .. r. Waste is 1 - used / reserved, over all requests. A memory of C
tokens runs C / (mean reserved tokens at a moment) requests at once; that mean is reserved token-time over all steps,
so the gain in concurrency is the quotient of two reserved token-times. *On demand* reserves nothing, as vLLM does, and
wastes nothing, but preempts when the memory is full. Reserving the true length still wastes nearly half of the answer's
part: a slot fills only gradually.
"""

from __future__ import annotations

from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from ecoserve.data.profiling.groupings import prompt_bands
from ecoserve.data.profiling.guesses import Predictions
from ecoserve.data.profiling.model import Reservation, Waste
from ecoserve.data.profiling.same_prompt import AnswerSets
from ecoserve.data.profiling.table import TraceTable, cap_of

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

#: A prompt band needs this many records for percentiles of its own; thinner ones at the ends are joined.
_PER_BAND: Final = 200
_LEVELS: Final = (0.5, 0.9, 0.95, 0.99)
_BAND_LEVELS: Final = (0.9, 0.95)


def waste(
    table: TraceTable, answers: AnswerSets | None, predictions: Predictions | None, max_tokens: int | None
) -> Waste:
    """Every way to reserve that this table has the data for.

    Args:
        table: the records.
        answers: sets of answers to the same prompt, if there are any.
        predictions: a predictor's quantiles, if there is one.
        max_tokens: tokens that ``max_tokens`` reserves; ``None``: the trace's own, else the cap, else the longest.
    """
    limit, origin = _limit(table, max_tokens)
    prompt, response = np.maximum(table.prompt, 0).astype(np.float64), table.response.astype(np.float64)
    found: list[Reservation] = []

    def add(policy: str, reserved: npt.NDArray[Any], rows: Ints | None = None) -> None:
        here: Any = slice(None) if rows is None else rows
        found.append(reserve(policy, prompt[here], response[here], reserved.astype(np.float64), limit[here]))

    add("max_tokens", limit)
    add("on demand", np.zeros(len(response)))
    for level in _LEVELS:
        add(f"p{100 * level:g}", np.full(len(response), _quantile(table.response, level)))
    known = np.flatnonzero(table.prompt >= 0)
    if len(known) >= 2 * _PER_BAND:
        bands = prompt_bands(table.prompt[known], _PER_BAND)[0]
        for level in _BAND_LEVELS:
            add(f"p{100 * level:g} per prompt band", _by_band(table.response[known], bands, level), known)
    if predictions is not None:
        for level, lengths in predictions.quantiles.items():
            add(f"predicted p{100 * level:g}", lengths, predictions.rows)
    if answers is not None and (others := _longest_other(answers)) is not None:
        add("longest other answer", others[1], others[0])
    add("true length", response)
    return Waste(
        max_tokens=int(np.median(limit)),
        max_tokens_from=origin,
        prompts_known=bool((table.prompt >= 0).mean() > 0.5),
        reservations=found,
    )


def reserve(
    policy: str, prompt: Floats, response: Floats, reserved: npt.NDArray[Any], limit: npt.NDArray[Any]
) -> Reservation:
    """One way to reserve (``reserved``) against reserving ``limit``; arrays of shape ``[n]``, tokens."""
    reserved = np.minimum(reserved, limit)
    used = used_time(prompt, response)
    held, most = reserved_time(prompt, response, reserved), reserved_time(prompt, response, limit)
    nothing = np.zeros_like(prompt)
    answers_held = reserved_time(nothing, response, reserved)
    return Reservation(
        policy=policy,
        rows=len(response),
        mean_reserved_tokens=float(reserved.mean()),
        overflow_share=float((response > reserved).mean()),
        waste_share=_share(1.0 - float(used.sum()) / float(held.sum())),
        answer_waste_share=_share(1.0 - float(used_time(nothing, response).sum()) / float(answers_held.sum())),
        concurrency=float(most.sum()) / float(held.sum()),
    )


def used_time(prompt: Floats, response: Floats) -> Floats:
    """Token-time used by each request: the sum of p + t over its steps t."""
    return response * prompt + response * (response + 1.0) / 2.0


def reserved_time(prompt: Floats, response: Floats, reserved: npt.NDArray[Any]) -> Floats:
    """Token-time reserved for each request; after an overflow, token by token."""
    inside = np.minimum(response, reserved)
    beyond = np.maximum(response - reserved, 0.0)
    after = beyond * prompt + beyond * (2.0 * reserved + beyond + 1.0) / 2.0
    return np.asarray(inside * (prompt + reserved) + after)


def _limit(table: TraceTable, given: int | None) -> tuple[Floats, Literal["trace", "given", "cap", "longest"]]:
    """The ``max_tokens`` of each record, and its source."""
    if given is not None:
        return np.full(len(table), float(given)), "given"
    known = table.max_tokens > 0
    if known.mean() >= 0.5:
        usual = float(np.median(table.max_tokens[known]))
        return np.maximum(np.where(known, table.max_tokens, usual), table.response).astype(np.float64), "trace"
    cap = cap_of(table)
    if cap is not None:
        return np.full(len(table), float(cap)), "cap"
    return np.full(len(table), float(table.response.max())), "longest"


def _by_band(response: npt.NDArray[Any], bands: Ints, level: float) -> Floats:
    by_band = np.zeros(int(bands.max()) + 1)
    for band in np.unique(bands):
        by_band[band] = _quantile(response[bands == band], level)
    return by_band[bands]


def _quantile(lengths: npt.NDArray[Any], level: float) -> float:
    return float(np.quantile(lengths, level, method="inverted_cdf"))


def _longest_other(answers: AnswerSets) -> tuple[Ints, Floats] | None:
    """For the rows with at least two other answers to their prompt: the longest of those."""
    sizes = answers.sizes
    chosen = np.flatnonzero(answers.targets & (sizes >= 3)[answers.sets])
    if len(chosen) < _PER_BAND:
        return None
    ends = np.cumsum(sizes) - 1
    ordered = answers.lengths[np.lexsort((answers.lengths, answers.sets))]
    longest, second = ordered[ends], ordered[ends - 1]
    sets = answers.sets[chosen]
    # If it is the longest itself, the longest other one is the second longest (equal to it in a tie).
    others = np.where(answers.lengths[chosen] == longest[sets], second[sets], longest[sets])
    return answers.rows[chosen], others


def find(waste: Waste, policy: str) -> Reservation | None:
    """The way to reserve of this name, if it is there."""
    return next((way for way in waste.reservations if way.policy == policy), None)


def _share(value: float) -> float:
    return min(1.0, max(0.0, value))
