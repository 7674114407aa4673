"""Intervals of a run's figures from its requests alone, by resampling.

Requests that are near in time wait for one another, so they are drawn in blocks of neighbours by arrival, of about the
root of their number, around the end to the beginning (Künsch 1989; Politis and Romano 1992).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from ecoserve.sweep.statistics import CONFIDENCE

Floats = npt.NDArray[np.float64]

RESAMPLES: Final = 2000


def statistic_of(name: str) -> Callable[[Floats], Floats]:
    """Mean or percentile along the last axis."""
    if name == "mean":
        return lambda values: np.asarray(values.mean(axis=-1))
    level = float(name.removeprefix("p"))
    return lambda values: np.asarray(np.percentile(values, level, axis=-1))


def blocks(count: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Positions of resampled requests, shape ``[resamples, count]``: circular blocks of about the root of the count."""
    length = max(1, round(math.sqrt(count)))
    starts = rng.integers(0, count, (RESAMPLES, -(-count // length)))
    picks = (starts[:, :, None] + np.arange(length)) % count
    return np.asarray(picks.reshape(RESAMPLES, -1)[:, :count])


def two_levels(seeds: Sequence[Floats], statistic: Callable[[Floats], Floats], rng: np.random.Generator) -> Floats:
    """The statistic's mean over resampled seeds of resampled blocks, shape ``[resamples]``."""
    each = np.stack([statistic(values[blocks(len(values), rng)]) for values in seeds])
    picks = rng.integers(0, len(seeds), (len(seeds), RESAMPLES))
    return np.asarray(np.take_along_axis(each, picks, axis=0).mean(axis=0))


def central(samples: Floats) -> tuple[float, float]:
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(samples, [tail, 100 - tail])
    return float(low), float(high)
