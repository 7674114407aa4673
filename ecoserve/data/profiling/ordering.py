"""What serving the shortest first would save, by the way in which lengths are guessed.

Rule: in a long queue served one after the other, the mean wait is proportional to the mean, over pairs of requests,
of the length of the one that goes first. In order of arrival that is the mean length m; with a guess it is that of
the request guessed shorter. So the share of the wait that disappears is the concentration index of lengths in the
order of the guess (Kakwani 1980): 2 cov(length, rank) / m, with ranks as shares and ties at their middle. By true
lengths it is their Gini coefficient, the most that any order can save; a guess that ranks by chance saves nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ecoserve.data.profiling.model import Ordering
from ecoserve.data.profiling.predicted import Predictions
from ecoserve.data.profiling.prompt_length import BandGuess
from ecoserve.data.profiling.same_prompt import ByOthers
from ecoserve.data.profiling.table import TraceTable


def orderings(
    table: TraceTable, others: ByOthers | None, predictions: Predictions | None, bands: BandGuess | None
) -> list[Ordering]:
    """Every order that can be told for this table, the true one first."""
    response = table.response
    found = [_ordering("true length", response, response)]
    if others is not None:
        found.append(_ordering("one other answer", others.true, others.one))
        if others.by_mean is not None:
            found.append(_ordering("mean of the other answers", others.true, others.mean))
    if predictions is not None:
        found.append(_ordering("predictor", response[predictions.rows], predictions.quantiles[0.5]))
    if bands is not None:
        found.append(_ordering("prompt length", response[bands.rows], bands.guess))
    return found


def _ordering(by: str, lengths: npt.NDArray[Any], guess: npt.NDArray[Any]) -> Ordering:
    return Ordering(by=by, rows=len(lengths), wait_saved=concentration(lengths, guess))


def concentration(lengths: npt.ArrayLike, guess: npt.ArrayLike) -> float:
    """Concentration index of ``lengths`` in the order of ``guess`` (both shape ``[n]``), -1 to 1."""
    from scipy.stats import rankdata

    x = np.asarray(lengths, dtype=np.float64)
    rank = (rankdata(np.asarray(guess)) - 0.5) / len(x)
    return float(2.0 * ((x - x.mean()) @ (rank - 0.5)) / len(x) / x.mean())
