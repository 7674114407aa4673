"""Spread over seeds, and differences between two settings with their 95 % intervals.

A *difference* of two settings is paired seed by seed: the same seed means the same arrivals and lengths. Its interval
is Student's t interval of the per-seed differences. Where there is one seed, requests are resampled in blocks of
neighbours by arrival, of about the square root of their number, around the end to the beginning (Künsch 1989; Politis
and Romano 1992).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from ecoserve.schema import Better

Verdict = Literal["better", "worse", "no difference shown", "too few seeds"]
Floats = npt.NDArray[np.float64]

#: The confidence of every interval in results and report.
CONFIDENCE: Final = 0.95
#: A relative difference smaller than this is not called a difference, however sure its sign is.
SMALLEST_THAT_MATTERS: Final = 0.01
#: A baseline up to this is zero for the purpose of dividing by it.
TINY: Final = 1e-12
_RESAMPLES: Final = 2000


@dataclass(frozen=True, slots=True)
class Spread:
    """One metric of one setting over its seeds, in the metric's unit; ``low``, ``high``: smallest and largest seed."""

    n: int
    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """A setting against a baseline, paired by the ``n`` seeds that both have; means are in the metric's unit.

    ``relative``: mean of (ours - theirs) / theirs, None if a baseline value is not positive; ``low``, ``high``: the 95
    % interval of ``relative``, else of ``difference``; None with one seed.
    """

    n: int
    ours: float
    theirs: float
    difference: float
    relative: float | None
    low: float | None
    high: float | None
    verdict: Verdict

    @property
    def shown(self) -> bool:
        """Whether a difference may be claimed at all."""
        return self.verdict in ("better", "worse")


def spread(values: Sequence[float]) -> Spread | None:
    return Spread(len(values), fmean(values), min(values), max(values)) if values else None


def t_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> tuple[float, float] | None:
    if len(values) < 2:
        return None
    from scipy.stats import t  # half a second of import, needed by reports only

    mean, error = float(np.mean(values)), float(np.std(values, ddof=1)) / math.sqrt(len(values))
    half = float(t.ppf(0.5 + confidence / 2, len(values) - 1)) * error
    return mean - half, mean + half


def paired(ours: Mapping[int, float], theirs: Mapping[int, float], better: Better) -> Comparison | None:
    """Compare two settings (value by seed) by the seeds they share; None if there are none."""
    seeds = sorted(ours.keys() & theirs.keys())
    if not seeds:
        return None
    a, b = [ours[s] for s in seeds], [theirs[s] for s in seeds]
    differences = [x - y for x, y in zip(a, b, strict=True)]
    relatives = [d / y for d, y in zip(differences, b, strict=True)] if min(b) > TINY else None
    relative = None if relatives is None else fmean(relatives)
    center = fmean(differences) if relative is None else relative
    interval = t_interval(differences if relatives is None else relatives)
    matters = relative is None or abs(relative) >= SMALLEST_THAT_MATTERS
    verdict = _verdict(center, interval, matters, better)
    low, high = interval or (None, None)
    return Comparison(len(seeds), fmean(a), fmean(b), fmean(differences), relative, low, high, verdict)


def paired_ratio(
    ours: Mapping[int, float], theirs: Mapping[int, float], better: Better, confidence: float
) -> Comparison | None:
    """The same by the ratio of the values, all positive: its geometric mean and interval, each less one."""
    seeds = sorted(ours.keys() & theirs.keys())
    if not seeds:
        return None
    a, b = [ours[s] for s in seeds], [theirs[s] for s in seeds]
    logs = [math.log(x / y) for x, y in zip(a, b, strict=True)]
    relative = math.expm1(fmean(logs))
    interval = t_interval(logs, confidence)
    verdict = _verdict(relative, interval, abs(relative) >= SMALLEST_THAT_MATTERS, better)
    low, high = (None, None) if interval is None else map(math.expm1, interval)
    return Comparison(len(seeds), fmean(a), fmean(b), fmean(a) - fmean(b), relative, low, high, verdict)


def _verdict(center: float, interval: tuple[float, float] | None, matters: bool, better: Better) -> Verdict:
    if interval is None:
        return "too few seeds"
    if interval[0] <= 0 <= interval[1] or not matters:
        return "no difference shown"
    return "better" if (center < 0) == (better == "lower") else "worse"


def statistic_of(name: str) -> Callable[[Floats], Floats]:
    """Mean or percentile (``p99``) along the last axis."""
    if name == "mean":
        return lambda values: np.asarray(values.mean(axis=-1))
    level = float(name.removeprefix("p"))
    return lambda values: np.asarray(np.percentile(values, level, axis=-1))


def blocks(number: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Positions of resampled requests in circular blocks, shape ``[resamples, number]``."""
    length = max(1, round(math.sqrt(number)))
    starts = rng.integers(0, number, (_RESAMPLES, -(-number // length)))
    picks = (starts[:, :, None] + np.arange(length)) % number
    return np.asarray(picks.reshape(_RESAMPLES, -1)[:, :number])


def two_levels(seeds: Sequence[Floats], statistic: Callable[[Floats], Floats], rng: np.random.Generator) -> Floats:
    """The statistic's mean over resampled seeds of resampled blocks, shape ``[resamples]``."""
    each = np.stack([statistic(values[blocks(len(values), rng)]) for values in seeds])
    picks = rng.integers(0, len(seeds), (len(seeds), _RESAMPLES))
    return np.asarray(np.take_along_axis(each, picks, axis=0).mean(axis=0))


def central(samples: Floats) -> tuple[float, float]:
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(samples, [tail, 100 - tail])
    return float(low), float(high)
