"""Measures of a guess against the true length, for any source of the guess.

The same definitions as :mod:`ecoserve.predictor.evaluation` (which this package may not import; a test compares them).
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ecoserve.data.profiling.model import NoiseFloor

#: Pairs that Kendall's tau is taken of, at most.
MOST_PAIRS: Final = 200_000


def measure(guess: npt.ArrayLike, true: npt.ArrayLike, seed: int) -> NoiseFloor:
    """The measures of ``guess`` against ``true`` (both shape ``[n]``, tokens, n >= 1)."""
    guessed, length = np.asarray(guess, dtype=np.float64), np.asarray(true, dtype=np.float64)
    error = np.abs(guessed - length)
    return NoiseFloor(
        targets=len(error),
        mae_tokens=float(error.mean()),
        within_50=float((error <= 50).mean()),
        within_100=float((error <= 100).mean()),
        kendall_tau=tau(guessed, length, seed),
    )


def tau(a: npt.NDArray[Any], b: npt.NDArray[Any], seed: int) -> float:
    """Kendall's tau-b of two arrays (shape ``[n]``), seeded sample if they are long; 0 if one is constant."""
    from scipy.stats import kendalltau

    if len(a) > MOST_PAIRS:
        chosen = np.random.default_rng(seed).choice(len(a), MOST_PAIRS, replace=False)
        a, b = a[chosen], b[chosen]
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    return float(kendalltau(a, b).statistic)


def error_curve(errors: npt.NDArray[Any], at: npt.NDArray[Any]) -> list[float | None]:
    """Share of ``errors`` (shape ``[n]``) that do not exceed each of ``at``."""
    return [float(v) for v in np.searchsorted(np.sort(errors), at, side="right") / max(1, len(errors))]
