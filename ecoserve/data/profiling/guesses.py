"""Guesses of lengths by a predictor and by the prompt's length: how good they are, and what each saves of the wait.

Wait saved by serving the shortest first: in a long queue served one after the other, the mean wait is proportional to
the mean, over pairs of requests, of the length of the one that goes first. In order of arrival that is the mean length
m; with a guess it is the length of the request guessed shorter. The share of the wait saved is the concentration index
of lengths in the order of the guess (Kakwani 1980): 2 cov(length, rank) / m, with ranks as shares and ties at their
middle. By true lengths it is their Gini coefficient, the most that any order can save; a random order saves nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ecoserve.data.profiling.accuracy import measure, tau
from ecoserve.data.profiling.groupings import explained
from ecoserve.data.profiling.model import Ordering, Predicted, PromptLength
from ecoserve.data.profiling.same_prompt import ByOthers
from ecoserve.data.profiling.table import TraceTable
from ecoserve.errors import TraceError

#: Quantiles that a predictor is asked for.
QUANTILES: Final = (0.5, 0.9, 0.95)
_BANDS: Final = 20
_FEWEST: Final = 100

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Predictions:
    """A predictor's answers for some rows of a table that it was not trained on.

    Args:
        name: the checkpoint.
        rows: shape ``[k]``, the rows, k >= 1.
        quantiles: each of :data:`QUANTILES` -> shape ``[k]``, tokens.
        held_out: whether the rows were held out of its training on this trace (else it was trained on another one).

    Raises:
        TraceError: if shapes do not go together.
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
    """How good the predictions are."""
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
    """Each answer's length guessed by its prompt's length band.

    Attributes:
        rows: shape ``[k]``, rows of the table whose prompt has a length.
        bands: shape ``[k]``, the band of each, 0 to at most 19.
        guess: shape ``[k]``, tokens: the median of the band, learned on the other half of the records.
        constant: shape ``[k]``, tokens: the median of all, learned likewise.
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
