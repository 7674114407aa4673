"""Lengths as they were seen: how often each occurs, and the Kaplan-Meier estimate where some were cut off.

A length n that is marked as cut off means only that the answer would have been longer than n. Everything is
computed from counts of distinct lengths, so that a million rows cost what a few thousand do.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ecoserve.data.laws.law import LONGEST, Floats, Ints
from ecoserve.errors import TraceError


@dataclass(frozen=True, slots=True)
class Histogram:
    """Distinct lengths and how often each was seen.

    Attributes:
        lengths: shape ``[k]``, ascending, tokens >= 1.
        ended: shape ``[k]``, answers that ended at this length.
        cut: shape ``[k]``, answers that were cut off there.
    """

    lengths: Ints
    ended: Ints
    cut: Ints

    @property
    def n(self) -> int:
        """All answers."""
        return int(self.ended.sum() + self.cut.sum())

    @classmethod
    def of(cls, lengths: npt.ArrayLike, censored: npt.ArrayLike | None = None) -> Histogram:
        """Count ``lengths`` (shape ``[n]``, whole, >= 1); ``censored`` (shape ``[n]``) marks those cut off.

        Raises:
            TraceError: if they are no lengths, or the shapes differ.
        """
        given = np.asarray(lengths)
        if given.ndim != 1 or given.dtype.kind not in "iuf":
            raise TraceError("lengths must be a flat list of whole numbers")
        if given.size and not (np.all(given == np.floor(given)) and given.min() >= 1 and given.max() <= LONGEST):
            raise TraceError(f"lengths must be whole numbers from 1 to {LONGEST}")
        x = given.astype(np.int64)
        cut = np.zeros(len(x), dtype=bool) if censored is None else np.asarray(censored, dtype=bool)
        if cut.shape != x.shape:
            raise TraceError(f"{len(x)} lengths and {cut.size} marks of being cut off do not belong together")
        size = int(x.max()) + 1 if len(x) else 1
        ended_at, cut_at = np.bincount(x[~cut], minlength=size), np.bincount(x[cut], minlength=size)
        seen = np.flatnonzero(ended_at + cut_at)
        return cls(seen.astype(np.int64), ended_at[seen].astype(np.int64), cut_at[seen].astype(np.int64))


#: How many answers one answer may stand for in an estimate that a law is compared with.
_MOST_FOR = 10


def _at_risk(counts: Histogram) -> Ints:
    """Answers at least as long as each of the lengths, as far as is known."""
    shorter = np.concatenate((np.zeros(1, np.int64), np.cumsum(counts.ended + counts.cut)[:-1]))
    return np.asarray(counts.n - shorter[: len(counts.lengths)], dtype=np.int64)


@dataclass(frozen=True, slots=True)
class KaplanMeier:
    """The share of answers longer than n, from lengths of which some were cut off (Kaplan and Meier, 1958).

    Attributes:
        lengths: shape ``[k]``, ascending: the distinct lengths at which answers ended.
        survival: shape ``[k]``: P(N > length), constant up to the next.
        reach: the longest length of which enough is known to compare a law with: up to there, one answer stands for
            at most ten (nine of ten may have been cut off before). Without any cut off it is the longest length.
    """

    lengths: Ints
    survival: Floats
    reach: int

    @classmethod
    def of(cls, counts: Histogram) -> KaplanMeier:
        """The estimate from ``counts``; with nothing cut off it is the plain share."""
        at_risk = _at_risk(counts)
        survival = np.cumprod(1.0 - counts.ended / np.maximum(at_risk, 1))
        ends = counts.ended > 0
        would_be = counts.n * np.concatenate(([1.0], survival[:-1]))
        known = np.flatnonzero(_MOST_FOR * at_risk >= would_be - 1e-6)
        return cls(counts.lengths[ends], survival[ends], int(counts.lengths[known[-1]]) if len(known) else 0)

    def survival_at(self, lengths: npt.ArrayLike) -> Floats:
        """P(N > n) for each n of ``lengths``; beyond the last as at it."""
        index = np.searchsorted(self.lengths, np.asarray(lengths), side="right")
        return np.concatenate(([1.0], self.survival))[index]

    def quantile(self, q: float) -> int | None:
        """The least length that at least a share ``q`` does not exceed, or ``None``: too many were cut off before."""
        # The product of many factors may miss a share by rounding.
        reached = np.flatnonzero(self.survival <= 1.0 - q + 1e-12)
        return int(self.lengths[reached[0]]) if len(reached) else None
