"""Distances between two sets of lengths, with intervals.

Everything is computed from counts of distinct lengths. The bootstrap draws counts (multinomial) of as many answers as
would be independent (design effect); with more than a few thousand distinct lengths, they are rounded to three digits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ecoserve.data.laws import Histogram
from ecoserve.data.profiling.comparison_model import QuantileChange

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

DRAWS: Final = 400
QUANTILES: Final = (0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)
_MOST_LENGTHS: Final = 4000


@dataclass(frozen=True, slots=True)
class Pair:
    """Two sets of lengths on one support.

    Attributes:
        lengths: shape ``[k]``, ascending, tokens.
        a, b: shape ``[k]``, how many answers have that length.
        effect_a, effect_b: design effects: answers count as n / effect independent ones.
    """

    lengths: Ints
    a: Ints
    b: Ints
    effect_a: float
    effect_b: float

    @classmethod
    def of(cls, a: Histogram, b: Histogram, effect_a: float, effect_b: float) -> Pair:
        """Put two counts on one support."""
        lengths = np.union1d(a.lengths, b.lengths)
        sides = []
        for side in (a, b):
            counts = np.zeros(len(lengths), dtype=np.int64)
            counts[np.searchsorted(lengths, side.lengths)] = side.ended + side.cut
            sides.append(counts)
        return cls(lengths.astype(np.int64), sides[0], sides[1], effect_a, effect_b)

    @property
    def independent(self) -> tuple[float, float]:
        """Answers of each side that would be independent."""
        return float(self.a.sum()) / self.effect_a, float(self.b.sum()) / self.effect_b

    def drawn(self, seed: int) -> tuple[Ints, Ints, Ints]:
        """Lengths (shape ``[k]``) and bootstrap counts of both sides (shape ``[DRAWS, k]``)."""
        small = self._rounded() if len(self.lengths) > _MOST_LENGTHS else self
        rng = np.random.default_rng(seed)
        sides = [
            rng.multinomial(max(1, round(n)), counts / counts.sum(), size=DRAWS)
            for counts, n in zip((small.a, small.b), self.independent, strict=True)
        ]
        return small.lengths, sides[0], sides[1]

    def _rounded(self) -> Pair:
        step = 10.0 ** np.maximum(np.floor(np.log10(np.maximum(self.lengths, 1))) - 2, 0)
        rounded, place = np.unique(np.round(self.lengths / step) * step, return_inverse=True)
        a, b = (np.bincount(place, weights=side).astype(np.int64) for side in (self.a, self.b))
        return Pair(rounded.astype(np.int64), a, b, self.effect_a, self.effect_b)


def ks(pair: Pair, seed: int) -> tuple[float, float, float]:
    """Kolmogorov-Smirnov distance and its 95 % interval."""
    _, a, b = pair.drawn(seed)
    found = float(_ks(pair.a[None, :], pair.b[None, :])[0])
    high = float(np.quantile(_ks(a, b), 0.975))
    # Drawn distances are biased upwards; that is taken off the lower end, and left on the upper one to be safe.
    return found, max(0.0, 2.0 * found - high), max(found, high)


def _ks(a: Ints, b: Ints) -> Floats:
    upto_a, upto_b = (np.cumsum(side, axis=1) / side.sum(axis=1, keepdims=True) for side in (a, b))
    return np.asarray(np.abs(upto_a - upto_b).max(axis=1))


def ks_chance(pair: Pair, distance: float) -> tuple[float, float]:
    """The distance that equal traffic exceeds one time in 20, and how often it gives ``distance`` (Kolmogorov)."""
    from scipy.stats import kstwobign

    n_a, n_b = pair.independent
    root = math.sqrt(n_a * n_b / (n_a + n_b))
    return float(kstwobign.isf(0.05)) / root, float(kstwobign.sf(distance * root))


def quantile_changes(pair: Pair, seed: int) -> list[QuantileChange]:
    """Each of :data:`QUANTILES` on both sides, with the 95 % interval of b - a."""
    lengths, drawn_a, drawn_b = pair.drawn(seed)
    found = []
    for q in QUANTILES:
        a, b = (int(_quantile(pair.lengths, side[None, :], q)[0]) for side in (pair.a, pair.b))
        difference = _quantile(lengths, drawn_b, q) - _quantile(lengths, drawn_a, q)
        low, high = np.quantile(difference, (0.025, 0.975)).tolist()
        found.append(QuantileChange(q=q, a=a, b=b, difference=b - a, low=low, high=high, ratio=b / a))
    return found


def _quantile(lengths: npt.NDArray[Any], counts: Ints, q: float) -> npt.NDArray[Any]:
    """Quantile ``q`` of each row of ``counts``, shape ``[draws, k]``, of ``lengths``, ``[k]``."""
    upto = np.cumsum(counts, axis=1)
    reached = upto >= np.ceil(q * upto[:, -1:] - 1e-9)
    return np.asarray(lengths[reached.argmax(axis=1)])


def psi(pair: Pair) -> float:
    """Population stability index over the ten tenths of A (fewer where lengths are equal)."""
    upto = np.cumsum(pair.a) / pair.a.sum()
    edges = np.unique(np.searchsorted(upto, np.linspace(0.1, 0.9, 9), side="left"))
    tenth = np.searchsorted(edges, np.arange(len(pair.lengths)), side="left")
    shares = []
    for side in (pair.a, pair.b):
        counts = np.bincount(tenth, weights=side, minlength=len(edges) + 1)
        # Half an answer in every tenth: an empty one would make the index infinite.
        shares.append((counts + 0.5) / (counts + 0.5).sum())
    return float(((shares[1] - shares[0]) * np.log(shares[1] / shares[0])).sum())


def wasserstein_log(pair: Pair) -> float:
    """Mean distance between log lengths of equal rank."""
    difference = np.cumsum(pair.a) / pair.a.sum() - np.cumsum(pair.b) / pair.b.sum()
    return float(np.abs(difference[:-1]) @ np.diff(np.log(pair.lengths)))


def stretch(pair: Pair) -> tuple[float, float, float]:
    """Scale and power that stretch A to B, by median and interquartile range of log lengths; and the KS left."""
    logs = np.log(pair.lengths)
    middle, width = [], []
    for side in (pair.a, pair.b):
        low, at, high = (float(_quantile(logs, side[None, :], q)[0]) for q in (0.25, 0.5, 0.75))
        middle.append(at)
        width.append(high - low)
    power = width[1] / width[0] if width[0] > 0 and width[1] > 0 else 1.0
    shift = middle[1] - power * middle[0]
    moved = power * logs + shift
    # Compared at B's lengths, half a token up, because stretched lengths are not whole.
    at = np.log(pair.lengths + 0.5)
    above_a = np.concatenate(([0], np.cumsum(pair.a)))[np.searchsorted(moved, at, side="right")] / pair.a.sum()
    left = np.abs(above_a - np.cumsum(pair.b) / pair.b.sum())
    return math.exp(shift), power, float(left[pair.b > 0].max())
