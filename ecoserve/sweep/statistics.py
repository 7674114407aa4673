"""Spread over seeds, and differences between two settings run with the same seeds: written once, used everywhere.

A *level* (a metric of one setting) is shown as its mean with the lowest and the highest seed. A *difference* between
two settings is paired: seed by seed, because the same seed means the same arrivals and lengths, so that what the seed
itself does to both cancels out. Its interval is Student's t interval of the per-seed differences at 95 %. A verdict
word ("better", "worse") is only given when that interval excludes zero and the difference is large enough to matter.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

Verdict = Literal["better", "worse", "no difference shown", "too few seeds"]
Better = Literal["lower", "higher"]

#: The confidence of every interval in results and report.
CONFIDENCE: Final = 0.95
#: A relative difference smaller than this is not called a difference, however sure its sign is.
SMALLEST_THAT_MATTERS: Final = 0.01
#: A baseline below this is zero for the purpose of dividing by it.
_TINY: Final = 1e-12


@dataclass(frozen=True, slots=True)
class Spread:
    """One metric of one setting over its seeds.

    ``low``/``high`` are the smallest and the largest seed's value, in the metric's unit.
    """

    n: int
    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """A setting against a baseline, paired by seed.

    Attributes:
        n: seeds that both have.
        ours, theirs: means over those seeds, in the metric's unit.
        difference: mean of ours - theirs, in the metric's unit.
        relative: mean of (ours - theirs) / theirs; None if a baseline value is not positive.
        low, high: the 95 % interval, of ``relative`` where there is one, else of ``difference``; None with one seed.
        verdict: what may be said about it.
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
    """Mean, lowest and highest of ``values``; None if there are none."""
    if not values:
        return None
    return Spread(len(values), math.fsum(values) / len(values), min(values), max(values))


def t_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> tuple[float, float] | None:
    """Student's t interval of the mean of ``values``; None for fewer than two values."""
    n = len(values)
    if n < 2:
        return None
    from scipy.stats import t  # half a second of import, needed by reports only

    mean = float(np.mean(values))
    half = float(t.ppf(0.5 + confidence / 2, n - 1)) * float(np.std(values, ddof=1)) / math.sqrt(n)
    return mean - half, mean + half


def paired(
    ours: Mapping[int, float],
    theirs: Mapping[int, float],
    better: Better,
    *,
    smallest: float = SMALLEST_THAT_MATTERS,
) -> Comparison | None:
    """Compare two settings by the seeds they share.

    Args:
        ours, theirs: value by seed, in the metric's unit.
        better: whether lower or higher values are better.
        smallest: the smallest relative difference that is called one. It is ignored where no relative difference
            exists (a baseline of zero).

    Returns:
        The comparison, or None if no seed is shared.
    """
    seeds = sorted(ours.keys() & theirs.keys())
    if not seeds:
        return None
    a = [ours[s] for s in seeds]
    b = [theirs[s] for s in seeds]
    differences = [x - y for x, y in zip(a, b, strict=True)]
    difference = math.fsum(differences) / len(seeds)
    relatives = [d / y for d, y in zip(differences, b, strict=True)] if min(b) > _TINY else None
    relative = None if relatives is None else math.fsum(relatives) / len(seeds)
    interval = t_interval(differences if relatives is None else relatives)
    verdict: Verdict = "no difference shown"
    if interval is None:
        verdict = "too few seeds"
    else:
        low, high = interval
        center = difference if relative is None else relative
        if (low > 0 or high < 0) and (relative is None or abs(relative) >= smallest):
            verdict = "better" if (center < 0) == (better == "lower") else "worse"
    low_high = interval or (None, None)
    return Comparison(
        n=len(seeds),
        ours=math.fsum(a) / len(seeds),
        theirs=math.fsum(b) / len(seeds),
        difference=difference,
        relative=relative,
        low=low_high[0],
        high=low_high[1],
        verdict=verdict,
    )
