"""Split-conformal correction: quantiles that cover what they say, with a finite-sample guarantee.

Rule: on ``n`` rows that chose nothing else, the score of a row is P(RL < its true length) by its own prediction. The
corrected quantile at level q is the smallest length whose P(RL <= length) lies above the ceil((n + 1) q)-th smallest
score (split-conformal prediction: Papadopoulos et al. 2002, Vovk et al. 2005, "Algorithmic Learning in a Random
World"; with the CDF as score: Chernozhukov et al., "Distributional conformal prediction", PNAS 2021). All levels are
corrected together, by one ascending map on the CDF, so that what comes out is a distribution again.

Guarantee. Let the n rows and a new request be exchangeable, and the predictor and its calibration be made without them.
Then for each level q of :attr:`ConformalMap.levels`, over the draw of all n + 1,

    q <= P(RL <= quantile(q)),   and without the lowering below, where no scores tie,   P(...) < q + 1 / (n + 1).

Between two levels, the lower one's holds. It says nothing about a single request, nor, once the n rows are drawn, about
exactly q: the coverage then scatters with a standard deviation of about sqrt(q (1 - q) / n). It ends where predictions
do: a level that would need lengths beyond the last edge is not corrected, and is not listed.

The returned distribution is even within each bin, the map is not. Where a straight line within a bin would lie above
the map at a level, the bin's ends are lowered just enough that no quantile at a listed level comes out too short. The
end of the last bin is the end of all lengths and stays: of quantiles that belong there, the bin's even spread decides.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Final, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, model_validator

Array = npt.NDArray[np.float64]
#: Levels at which the guarantee is given, as far as the rows reach. Few: each adds its rows' noise to the shape.
LEVELS: Final = (0.1, 0.25, 0.5, 0.8, 0.9, 0.95, 0.99)
#: Far below what a row more or less changes, far above rounding.
_TINY: Final = 1e-7


class ConformalMap(BaseModel):
    """An ascending map of CDF values, through 0 and 1 and ``(scores[j], levels[j])``."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    #: rows it rests on
    rows: int = Field(ge=1)
    #: levels with the guarantee, ascending within 0 and 1
    levels: tuple[float, ...]
    #: what the predictor's own CDF has to pass at the quantile of each level
    scores: tuple[float, ...]

    @model_validator(mode="after")
    def _ascends(self) -> Self:
        if len(self.levels) != len(self.scores):
            raise ValueError(f"{len(self.levels)} levels but {len(self.scores)} scores")
        for values in (self.levels, self.scores):
            if any(b <= a for a, b in pairwise((0.0, *values, 1.0))):
                raise ValueError("levels and scores must ascend within 0 and 1")
        return self

    @classmethod
    def fit(cls, scores: npt.ArrayLike, levels: tuple[float, ...] = LEVELS) -> ConformalMap:
        """From the scores (:func:`scores_of`) of ``n >= 1`` rows, shape ``[n]``."""
        ordered = np.sort(np.asarray(scores, dtype=np.float64))
        n = len(ordered)
        kept, passed = [], [0.0]
        for level in levels:
            rank = math.ceil(round((n + 1) * level, 9))
            score = max(float(ordered[min(rank, n) - 1]), passed[-1]) + _TINY
            if rank > n or score >= 1.0 - _TINY:
                break
            kept.append(level)
            passed.append(score)
        return cls(rows=n, levels=tuple(kept), scores=tuple(passed[1:]))

    def apply(self, cdf: Array, edges: npt.ArrayLike | None = None) -> Array:
        """Correct CDFs given at the bin edges, shape ``[n, K + 1]``, each ascending from 0 to 1.

        Args:
            cdf: P(RL <= edge).
            edges: the edges in tokens, shape ``[K + 1]``. Without them, lengths are taken to be continuous, which
                lowers a little more than needed.
        """
        scores, levels = np.asarray(self.scores), np.asarray(self.levels)
        out = np.interp(cdf, [0.0, *self.scores, 1.0], [0.0, *self.levels, 1.0])
        if not len(scores):
            return out
        last = cdf.shape[1] - 2
        # The bin in which each row's CDF passes each score, and how far into it the last length before that lies.
        k = (cdf[:, 1:-1, None] < scores).sum(axis=1)
        rows = np.arange(len(cdf))[:, None]
        low = cdf[rows, k]
        into = (scores - low) / (cdf[rows, k + 1] - low)
        if edges is not None:
            width = np.diff(np.asarray(edges, dtype=np.float64))[k]
            into = np.maximum(np.ceil(into * width - 1e-9) - 1.0, 0.0) / width
        target = levels - 10 * _TINY
        left, right = out[rows, k], out[rows, k + 1]
        over = left + (right - left) * into - target
        if not (over > 0.0).any():
            return out
        # Both ends of the bin go down alike; what an end at 0 or at 1 cannot, the other one does for it.
        alike = np.where(k == last, (target - into) / (1.0 - into), left - over)
        lower_left = np.maximum(alike, 0.0)
        within = into > 0.0
        lower_right = (target - lower_left * (1.0 - into)) / np.where(within, into, 1.0)
        lowered = out.copy()
        np.minimum.at(lowered, (rows, k), np.where(over > 0.0, lower_left, 1.0))
        np.minimum.at(lowered, (rows, k + 1), np.where((over > 0.0) & within, lower_right, 1.0))
        lowered = np.minimum.accumulate(lowered[:, ::-1], axis=1)[:, ::-1]
        lowered = np.clip(lowered, 0.0, 1.0)
        lowered[:, 0], lowered[:, -1] = 0.0, 1.0
        return np.asarray(lowered, dtype=np.float64)


def scores_of(cdf: Array, edges: npt.ArrayLike, lengths: npt.ArrayLike) -> Array:
    """P(RL < length) of each row's true length, shape ``[n]``; 1 for a length beyond the last edge.

    Args:
        cdf: P(RL <= edge), shape ``[n, K + 1]``.
        edges: shape ``[K + 1]``, tokens.
        lengths: true RLs, shape ``[n]``, tokens.
    """
    e = np.asarray(edges, dtype=np.float64)
    before = np.asarray(lengths, dtype=np.float64) - 1.0
    k = np.clip(np.searchsorted(e, before, side="right") - 1, 0, len(e) - 2)
    into = np.clip((before - e[k]) / (e[k + 1] - e[k]), 0.0, 1.0)
    rows = np.arange(len(cdf))
    return np.asarray(cdf[rows, k] + (cdf[rows, k + 1] - cdf[rows, k]) * into, dtype=np.float64)
