"""What knowing lengths is worth: guesses of lengths, the wait that each saves, and KV wasted by reserving.

Wait saved by serving the shortest first: the mean wait in a long queue is proportional to the mean, over pairs of
requests, of the length of the one that goes first. The share saved is the concentration index of lengths in the order
of the guess (Kakwani 1980): 2 cov(length, rank) / mean, with ranks as shares and ties at their middle.

KV wasted: a request with a prompt of p tokens and an answer of r holds a slot of p + R tokens (R the reservation) for r
steps and has written p + t tokens after step t. Used token-time is r p + r (r + 1) / 2; reserved is r (p + R) while
r <= R, and an answer that outgrows R continues token by token: R (p + R) + the sum of p + t over t = R + 1 .. r. Waste
is 1 - used / reserved; the gain in concurrency is the quotient of two reserved token-times. *On demand* reserves
nothing, as vLLM does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from ecoserve.data.profiling.model import Ordering, Predicted, PromptLength, Reservation, Waste
from ecoserve.data.profiling.same_prompt import AnswerSets, ByOthers, measure, tau
from ecoserve.data.profiling.summaries import explained, prompt_bands
from ecoserve.data.profiling.table import TraceTable, cap_of
from ecoserve.errors import TraceError

#: Quantiles that a predictor is asked for.
QUANTILES: Final = (0.5, 0.9, 0.95)
_BANDS: Final = 20
_FEWEST: Final = 100

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Predictions:
    """A predictor's lengths for ``rows`` (shape ``[k]``): each of :data:`QUANTILES` -> shape ``[k]``, tokens.

    ``held_out``: the rows were held out of its training on this trace (else it was trained on another one).
    """

    name: str
    rows: Ints
    quantiles: Mapping[float, Ints]
    held_out: bool = False

    def __post_init__(self) -> None:
        shapes = {len(self.rows), *(len(lengths) for lengths in self.quantiles.values())}
        if set(self.quantiles) != set(QUANTILES) or len(shapes) > 1 or 0 in shapes:
            raise TraceError(f"predictions need the quantiles {QUANTILES} of each of at least one row")


def predicted(table: TraceTable, predictions: Predictions, seed: int) -> Predicted:
    response = table.response[predictions.rows].astype(np.float64)
    median = predictions.quantiles[0.5].astype(np.float64)
    measured = measure(median, response, seed)
    logs, guess_logs = np.log(response), np.log(np.maximum(median, 1.0))
    variance = float(((logs - logs.mean()) ** 2).mean())
    return Predicted(
        predictor=predictions.name,
        rows=len(response),
        rows_are="held out" if predictions.held_out else "all",
        mae_constant_tokens=float(np.abs(response - np.median(response)).mean()),
        r2_log=1.0 - float(((logs - guess_logs) ** 2).mean()) / variance if variance > 0 else 0.0,
        coverage_50=float((response <= predictions.quantiles[0.5]).mean()),
        coverage_90=float((response <= predictions.quantiles[0.9]).mean()),
        coverage_95=float((response <= predictions.quantiles[0.95]).mean()),
        **measured.model_dump(exclude={"targets"}),
    )


@dataclass(frozen=True, slots=True)
class BandGuess:
    """Each answer's length guessed by its prompt's length band; all of shape ``[k]``.

    ``rows`` have a prompt length, ``bands`` are 0 to at most 19, ``guess`` and ``constant`` (tokens) are the medians of
    the band and of all, learned on the other half of the records.
    """

    rows: Ints
    bands: Ints
    guess: Floats
    constant: Floats


def guess_by_band(table: TraceTable) -> BandGuess | None:
    """Guesses by prompt length; ``None`` for fewer than 100 records with one, or where all are equal."""
    rows = np.flatnonzero(table.prompt > 0)
    prompt, response = table.prompt[rows], table.response[rows]
    if len(rows) < _FEWEST or np.ptp(prompt) == 0 or np.ptp(response) == 0:
        return None
    edges = np.unique(np.quantile(prompt, np.linspace(0, 1, _BANDS + 1)[1:-1], method="inverted_cdf"))
    bands = np.searchsorted(edges, prompt, side="left")
    guess, constant = np.zeros(len(rows)), np.zeros(len(rows))
    # Odd rows are guessed from even ones, and the other way round.
    for here in (0, 1):
        test = np.zeros(len(rows), dtype=bool)
        test[here::2] = True
        constant[test] = np.median(response[~test])
        for band in range(int(bands.max()) + 1):
            learned, mine = response[~test & (bands == band)], test & (bands == band)
            guess[mine] = np.median(learned) if len(learned) else constant[mine]
    return BandGuess(rows, bands, guess, constant)


def prompt_length(table: TraceTable, by_band: BandGuess, seed: int) -> PromptLength:
    """How well prompts' lengths alone predict: a straight line through log lengths, and bands of any shape."""
    from scipy.stats import rankdata

    prompt, response = table.prompt[by_band.rows], table.response[by_band.rows]
    line = np.corrcoef(np.log(prompt), np.log(response))[0, 1]
    ranks = np.corrcoef(rankdata(prompt), rankdata(response))[0, 1]
    return PromptLength(
        rows=len(prompt),
        spearman=float(ranks),
        kendall_tau=tau(prompt, response, seed),
        r2_log=float(line**2),
        r2_log_bands=explained(np.log(response), by_band.bands) or 0.0,
        mae_tokens=float(np.abs(response - by_band.guess).mean()),
        mae_constant_tokens=float(np.abs(response - by_band.constant).mean()),
    )


def orderings(
    table: TraceTable, others: ByOthers | None, predictions: Predictions | None, bands: BandGuess | None
) -> list[Ordering]:
    """Every order that this table has guesses for, the true one first."""
    response = table.response
    found: list[tuple[str, npt.NDArray[Any], npt.NDArray[Any]]] = [("true length", response, response)]
    if others is not None:
        found.append(("one other answer", others.true, others.one))
        if others.by_mean is not None:
            found.append(("mean of the other answers", others.true, others.mean))
    if predictions is not None:
        found.append(("predictor", response[predictions.rows], predictions.quantiles[0.5]))
    if bands is not None:
        found.append(("prompt length", response[bands.rows], bands.guess))
    return [
        Ordering(by=by, rows=len(lengths), wait_saved=concentration(lengths, guess)) for by, lengths, guess in found
    ]


def concentration(lengths: npt.ArrayLike, guess: npt.ArrayLike) -> float:
    """Concentration index of ``lengths`` in the order of ``guess`` (both shape ``[n]``), -1 to 1."""
    from scipy.stats import rankdata

    x = np.asarray(lengths, dtype=np.float64)
    rank = (rankdata(np.asarray(guess)) - 0.5) / len(x)
    return float(2.0 * ((x - x.mean()) @ (rank - 0.5)) / len(x) / x.mean())


#: A prompt band needs this many records for percentiles of its own; thinner ones at the ends are joined.
_PER_BAND: Final = 200
_LEVELS: Final = (0.5, 0.9, 0.95, 0.99)
_BAND_LEVELS: Final = (0.9, 0.95)


def waste(
    table: TraceTable, answers: AnswerSets | None, predictions: Predictions | None, max_tokens: int | None
) -> Waste:
    """Every way to reserve that this table has the data for.

    ``max_tokens``: tokens that this way reserves; ``None``: the trace's own, else the cap, else the longest.
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
    return next((way for way in waste.reservations if way.policy == policy), None)


def _share(value: float) -> float:
    return min(1.0, max(0.0, value))
