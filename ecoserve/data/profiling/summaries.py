"""Moments of a set of lengths, quantiles with their intervals, and quantiles corrected for answers cut off.

Everything is computed from the counts of distinct lengths. Quantile q is the least length that at least a share q does
not exceed. Intervals of quantiles are between order statistics (binomial, no law assumed), widened by the design effect
(Kish) where records of one conversation resemble each other.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import numpy.typing as npt

from ecoserve.data.laws import Histogram, KaplanMeier
from ecoserve.data.profiling.model import Lengths
from ecoserve.data.profiling.table import TraceTable, chosen

PERCENTILES: Final = {
    "p1": 0.01, "p5": 0.05, "p10": 0.1, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p90": 0.9, "p95": 0.95, "p99": 0.99,
    "p99_9": 0.999,
}  # fmt: skip
_CORRECTED: Final = ("p50", "p90", "p95", "p99")
#: Lengths up to this are counted in an array as long as the longest.
_LARGE: Final = 1 << 21
#: Records, about, of a longer trace that figures are computed on which need more than counts (some 300 bytes each).
MOST_ROWS: Final = 1_000_000
#: Standard deviations that leave 2.5 % on each side.
Z95: Final = 1.959964

Whole = npt.NDArray[np.integer]


def count(lengths: Whole, censored: npt.NDArray[np.bool_] | None = None) -> Histogram:
    """The counts of ``lengths`` (shape ``[n]``, >= 0), without the copies that checking would cost."""
    if not len(lengths):
        nothing = np.zeros(0, dtype=np.int64)
        return Histogram(nothing, nothing, nothing)
    if lengths.max() > _LARGE:
        # A single absurd prompt length must not take gigabytes.
        seen, number = np.unique(lengths, return_inverse=True)
        everything = np.bincount(number)
        cut = np.zeros_like(everything) if censored is None else np.bincount(number[censored], minlength=len(seen))
        return Histogram(seen.astype(np.int64), everything - cut, cut)
    everything = np.bincount(lengths)
    cut = np.zeros_like(everything) if censored is None else np.bincount(lengths[censored], minlength=len(everything))
    seen = np.flatnonzero(everything)
    return Histogram(seen, everything[seen] - cut[seen], cut[seen])


def summarise(counts: Histogram, design_effect: float = 1.0) -> Lengths:
    """All of :class:`~ecoserve.data.profiling.model.Lengths` from ``counts``."""
    n = counts.n
    if not n:
        return Lengths(n=0, censored_share=0.0)
    weights = (counts.ended + counts.cut).astype(np.float64)
    x = counts.lengths.astype(np.float64)
    mean = float(weights @ x / n)
    from_mean = x - mean
    variance = float(weights @ from_mean**2 / n)
    sd = math.sqrt(variance * n / (n - 1)) if n > 1 else 0.0
    third = float(weights @ from_mean**3 / n)
    cut = int(counts.cut.sum())
    km = KaplanMeier.of(counts) if cut else None
    corrected = {f"km_{p}": km.quantile(PERCENTILES[p]) for p in _CORRECTED} if km is not None else {}
    low50, high50 = interval(counts, 0.5, design_effect)
    low90, high90 = interval(counts, 0.9, design_effect)
    return Lengths(
        n=n,
        mean=mean,
        sd=sd,
        cv=sd / mean if mean > 0 else None,
        skew=third / variance**1.5 if variance > 0 else None,
        min=int(counts.lengths[0]),
        max=int(counts.lengths[-1]),
        p50_low=low50,
        p50_high=high50,
        p90_low=low90,
        p90_high=high90,
        censored_share=cut / n,
        **{name: quantile(counts, q) for name, q in PERCENTILES.items()},
        **corrected,
    )


def quantile(counts: Histogram, q: float) -> int:
    """The least length that at least a share ``q`` does not exceed, answers cut off taken as they are."""
    return _at_rank(counts, math.ceil(q * counts.n - 1e-9))


def interval(counts: Histogram, q: float, design_effect: float = 1.0) -> tuple[int, int]:
    """95 % interval of the quantile ``q``: between the order statistics at n q -+ 1.96 standard deviations."""
    n = counts.n
    away = Z95 * math.sqrt(n * q * (1.0 - q) * design_effect)
    return _at_rank(counts, math.floor(n * q - away)), _at_rank(counts, math.ceil(n * q + away) + 1)


def _at_rank(counts: Histogram, rank: int) -> int:
    """The ``rank``-th shortest (1-based; what is out of range is taken as the first or last)."""
    upto = np.cumsum(counts.ended + counts.cut)
    index = np.searchsorted(upto, min(max(rank, 1), counts.n), side="left")
    return int(counts.lengths[index])


def conversations_of(table: TraceTable) -> tuple[int, float]:
    """How many conversations a table has, and the design effect of its answers, on some of them if there are many."""
    names = table.conversation
    number = len(np.unique(names))
    if number == len(table):
        return number, 1.0
    some = chosen(names, MOST_ROWS / len(table)) if len(table) > MOST_ROWS else slice(None)
    return number, design_effect(table.response[some], np.unique(names[some], return_inverse=True)[1])


def design_effect(lengths: Whole, clusters: Whole) -> float:
    """Factor by which the variance of a share grows because records of one cluster resemble each other; at least 1.

    Measured on the share of answers above the median: squared sums over clusters against the sum of squares.

    Args:
        lengths: shape ``[n]``.
        clusters: shape ``[n]``, numbers 0 to k - 1.
    """
    if len(lengths) < 2:
        return 1.0
    above = (lengths > np.median(lengths)).astype(np.float64)
    above -= above.mean()
    total = float(above @ above)
    sums = np.bincount(clusters, weights=above)
    return max(1.0, float(sums @ sums) / total) if total > 0 else 1.0
