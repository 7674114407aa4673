"""Arrivals like recorded ones: their rate over time, and on that their own gaps, drawn anew.

Rule: the recorded arrivals are put on the clock on which their rate is constant; there, blocks of consecutive gaps are
drawn (the stationary bootstrap of Politis and Romano 1994), so that what gaps are like, and how neighbours go together,
stays; then the clock runs as it ran. No law of gaps is fitted: those of production traces have both milliseconds and
minutes, which one law misses by far (docs/workloads.md).
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from ecoserve.data.arrivals.profiles import RateProfile
from ecoserve.errors import TraceError

Floats = npt.NDArray[np.float64]

#: Gaps in a block on average.
BLOCK: Final = 30
_ARRIVALS_A_WINDOW: Final = 200
_MOST_WINDOWS: Final = 48


def resampled_arrivals(
    n: int, times: npt.ArrayLike, seed: int, *, windows: int | None = None, share: float = 1.0
) -> Floats:
    """``n`` arrivals like those at ``times``: shape ``[n]``, seconds, ascending.

    Args:
        n: how many, >= 0; more than were recorded go on with the recorded rate from its beginning.
        times: recorded arrivals, shape ``[m]``, seconds, at least three different ones.
        seed: the same seed gives the same arrivals.
        windows: parts of the recorded time that have a rate each; default: 200 arrivals a part, up to 48.
        share: this many arrivals for each recorded one, > 0.

    Raises:
        TraceError: if there are too few different times.
    """
    at = np.sort(np.asarray(times, dtype=np.float64))
    if len(np.unique(at)) < 3:
        raise TraceError(f"{len(at)} arrivals at fewer than three times are no pattern to follow")
    at = at - at[0]
    parts = windows or int(np.clip(len(at) // _ARRIVALS_A_WINDOW, 1, _MOST_WINDOWS))
    profile = RateProfile.of_arrivals(at, parts)
    gaps = np.diff(profile.integral(at))
    return profile.invert(np.cumsum(gaps[_blocks(n, len(gaps), seed)]) / share)


def _blocks(n: int, m: int, seed: int) -> npt.NDArray[np.int64]:
    """``n`` indices below ``m`` (shape ``[n]``): stretches of consecutive ones, each beginning anywhere."""
    draws = np.random.default_rng(seed).random((n, 2))
    begins = draws[:, 0] < 1.0 / BLOCK
    begins[:1] = True
    first = np.flatnonzero(begins)
    lengths = np.diff(np.append(first, n))
    starts = (draws[first, 1] * m).astype(np.int64)
    indices: npt.NDArray[np.int64] = (np.repeat(starts - first, lengths) + np.arange(n)) % m
    return indices
