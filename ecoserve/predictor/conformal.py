"""Split-conformal bounds: one length per request that its response stays within, with a finite-sample guarantee.

docs/how/calibration.md states the guarantee and what it does not say. The score of a row is F(length - 1) by the plain
softmax, before calibration. The bound of a request at level q is the smallest length m with F(m) > v, v being the
ceil((n + 1) q)-th smallest score (Papadopoulos et al. 2002; Vovk et al. 2005, "Algorithmic Learning in a Random World";
with the CDF as score: Chernozhukov et al., "Distributional conformal prediction", PNAS 2021). A level that needs more
rows, or lengths beyond the last edge, is not listed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Final, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, model_validator

from ecoserve.errors import ConfigError
from ecoserve.predictor.text import RequestView

Array = npt.NDArray[np.float64]
#: Levels at which bounds are given.
BOUND_LEVELS: Final = (0.5, 0.8, 0.9, 0.95, 0.99)
#: Rows for each band of prompt length, and bands at most.
BAND_ROWS: Final = 300
MOST_BANDS: Final = 4
#: Rows of one band below which it goes by the scores of all.
MIN_BAND_ROWS: Final = 200
#: Scores from here on are of lengths at the very end of the bins or beyond.
_END: Final = 1.0 - 1e-9


class Scores(BaseModel):
    """The scores that the bounds of a group go by, one per listed level."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    #: rows they come from
    rows: int = Field(ge=1)
    at: tuple[float, ...]

    @model_validator(mode="after")
    def _ascend(self) -> Self:
        if any(b < a for a, b in pairwise((0.0, *self.at, _END))):
            raise ValueError("scores must ascend and lie within 0 and 1")
        return self

    @classmethod
    def of(cls, scores: Array) -> Scores:
        """The ranked ones of ``n >= 1`` scores, for as many of :data:`BOUND_LEVELS` as they reach."""
        ordered, n = np.sort(scores), len(scores)
        ranks = [math.ceil(round((n + 1) * level, 9)) for level in BOUND_LEVELS]
        return cls(rows=n, at=tuple(float(ordered[r - 1]) for r in ranks if r <= n and ordered[r - 1] < _END))


class GroupBounds(BaseModel):
    """The scores by the prompt's length."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    #: ascending; all groups have these
    levels: tuple[float, ...]
    #: of all rows
    whole: Scores
    #: the longest prompt of each band but the last, in characters, ascending
    band_characters: tuple[int, ...] = ()
    #: one more than there are cuts; None: too few rows of its own
    bands: tuple[Scores | None, ...] = (None,)

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if len(self.bands) != len(self.band_characters) + 1:
            raise ValueError(f"{len(self.band_characters)} cuts make {len(self.band_characters) + 1} bands")
        if any(b <= a for a, b in pairwise(self.band_characters)):
            raise ValueError("bands must ascend")
        if any(b <= a for a, b in pairwise((0.0, *self.levels, 1.0))):
            raise ValueError("levels must ascend within 0 and 1")
        if any(len(s.at) < len(self.levels) for s in (self.whole, *self.bands) if s is not None):
            raise ValueError(f"fewer scores than the {len(self.levels)} levels")
        return self

    @classmethod
    def fit(cls, cdf: Array, edges: npt.ArrayLike, lengths: npt.ArrayLike, views: Sequence[RequestView]) -> GroupBounds:
        """Bounds from ``n >= 1`` rows: ``cdf`` of the plain softmax, shape ``[n, K + 1]``, and served lengths."""
        scores = scores_of(cdf, edges, lengths)
        characters = _characters(views)
        count = max(1, min(MOST_BANDS, len(scores) // BAND_ROWS))
        at = np.quantile(characters, np.arange(1, count) / count, method="inverted_cdf")
        cuts = tuple(int(c) for c in np.unique(at))
        band = np.searchsorted(np.asarray(cuts), characters, side="left")
        parts = [scores[band == b] for b in range(len(cuts) + 1)]
        whole, bands = Scores.of(scores), [Scores.of(p) if len(p) >= MIN_BAND_ROWS else None for p in parts]
        reached = min(len(s.at) for s in (whole, *bands) if s is not None)
        return cls(levels=BOUND_LEVELS[:reached], whole=whole, band_characters=cuts, bands=tuple(bands))

    def upper(self, cdf: Array, edges: npt.ArrayLike, views: Sequence[RequestView], level: float) -> list[int]:
        """The bounds of ``n`` requests in tokens; a ``level`` that is none of :attr:`levels` is a ConfigError."""
        if level not in self.levels:
            listed = ", ".join(f"{q:g}" for q in self.levels) or "none"
            raise ConfigError(f"no bound at {level:g}", where="level", fix=f"this predictor's levels: {listed}")
        which = self.levels.index(level)
        scores = np.asarray([(s or self.whole).at[which] for s in self.bands])
        v = scores[np.searchsorted(np.asarray(self.band_characters), _characters(views), side="left")]
        e = np.asarray(edges, dtype=np.float64)
        rows = np.arange(len(cdf))
        # The first bin whose end lies above the score, and the first token in it that does.
        k = np.minimum((cdf[:, 1:] <= v[:, None]).sum(axis=1), len(e) - 2)
        low, high = cdf[rows, k], cdf[rows, k + 1]
        into = (v - low) / np.maximum(high - low, 1e-300) * (e[k + 1] - e[k])
        bounds = np.clip(e[k] + np.floor(into + 1e-6) + 1.0, e[k] + 1.0, e[k + 1])
        return [int(b) for b in bounds]


def scores_of(cdf: Array, edges: npt.ArrayLike, lengths: npt.ArrayLike) -> Array:
    """The CDF just before each row's length (tokens, shape ``[n]``), shape ``[n]``; 1 beyond the last edge.

    ``cdf`` is P(length <= edge), shape ``[n, K + 1]``, at ``edges`` in tokens, shape ``[K + 1]``.
    """
    e = np.asarray(edges, dtype=np.float64)
    before = np.asarray(lengths, dtype=np.float64) - 1.0
    k = np.clip(np.searchsorted(e, before, side="right") - 1, 0, len(e) - 2)
    into = np.clip((before - e[k]) / (e[k + 1] - e[k]), 0.0, 1.0)
    rows = np.arange(len(cdf))
    return np.asarray(cdf[rows, k] + (cdf[rows, k + 1] - cdf[rows, k]) * into, dtype=np.float64)


def _characters(views: Sequence[RequestView]) -> npt.NDArray[np.int64]:
    return np.asarray([len(v.prompt) for v in views], dtype=np.int64)
