"""Calibration: logits to probabilities that agree with how often things happen; mixes of several predictors.

1. A temperature T divides the logits before the softmax (Guo et al., "On Calibration of Modern Neural Networks", ICML
   2017).
2. An ascending map of levels: where the CDF says p, a share of map(p) of responses has ended (after Kuleshov et al.,
   "Accurate Uncertainties for Deep Learning Using Calibrated Regression", ICML 2018). Most predictors need none.

:mod:`ecoserve.predictor.calibration_fitting` fits both.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Final, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, model_validator

from ecoserve.predictor.conformal import GroupBounds

Array = npt.NDArray[np.float64]
#: Temperatures outside of these point to another fault.
BOUNDS: Final = (0.2, 5.0)
#: Points of a map are this far apart at least: no length that was possible becomes impossible.
_APART: Final = 1e-6


class LevelMap(BaseModel):
    """An ascending map of CDF values: straight lines through (0, 0), ``(scores[j], levels[j])`` and (1, 1)."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    #: what comes out, ascending within 0 and 1; none: nothing is changed
    levels: tuple[float, ...] = ()
    #: what goes in, ascending within 0 and 1
    scores: tuple[float, ...] = ()

    @model_validator(mode="after")
    def _ascends(self) -> Self:
        if len(self.levels) != len(self.scores):
            raise ValueError(f"{len(self.levels)} levels but {len(self.scores)} scores")
        for values in (self.levels, self.scores):
            if any(b <= a for a, b in pairwise((0.0, *values, 1.0))):
                raise ValueError("levels and scores must ascend within 0 and 1")
        return self

    @classmethod
    def through(cls, points: Iterable[tuple[float, float]]) -> LevelMap:
        """Through points (score, level) of ascending levels; scores are moved apart where they do not ascend."""
        levels, scores = [], [0.0]
        for score, level in points:
            score = max(score, scores[-1] + _APART)
            if score > 1.0 - _APART:
                break
            levels.append(level)
            scores.append(score)
        return cls(levels=tuple(levels), scores=tuple(scores[1:]))

    def apply(self, cdf: Array) -> Array:
        if not self.levels:
            return cdf
        return np.interp(cdf, [0.0, *self.scores, 1.0], [0.0, *self.levels, 1.0])


class Calibration(BaseModel):
    """``calibration.json``: how logits become probabilities, and the bounds beside them."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    temperature: float = Field(default=1.0, ge=BOUNDS[0], le=BOUNDS[1])
    map: LevelMap = LevelMap()
    #: rows that both were fitted on, and all answers to them
    rows: int = Field(default=0, ge=0)
    answers: int = Field(default=0, ge=0)
    #: mean pinball loss (tokens) on these rows: of the softmax, and of what the two make of it
    pinball_before: float | None = None
    pinball_after: float | None = None
    #: None: there were too few rows
    bounds: GroupBounds | None = None

    def probabilities(self, logits: npt.ArrayLike) -> Array:
        """Probabilities of the bins, shape ``[n, K]`` as the logits."""
        return np.diff(self.cdf(logits), axis=1)

    def cdf(self, logits: npt.ArrayLike) -> Array:
        """P(length <= edge) at all edges, shape ``[n, K + 1]``, from logits of shape ``[n, K]``."""
        return self.map.apply(cdf_of(softmax(np.asarray(logits, dtype=np.float64) / self.temperature)))


def likeliest_temperature(logits: npt.ArrayLike, targets: npt.ArrayLike) -> tuple[float, float]:
    """The temperature with the smallest cross-entropy, and that: mean per row, in nats.

    ``logits`` and ``targets``, the lengths as distributions over the bins, have shape ``[n, K]``.
    """
    from scipy.optimize import minimize_scalar

    z = np.asarray(logits, dtype=np.float64)
    t = np.asarray(targets, dtype=np.float64)

    def loss(log_temperature: float) -> float:
        return cross_entropy(z / np.exp(log_temperature), t)

    found = minimize_scalar(loss, bounds=np.log(BOUNDS), method="bounded", options={"xatol": 1e-4})
    return min(((float(np.exp(x)), loss(x)) for x in (0.0, float(found.x))), key=lambda pair: pair[1])


def softmax(logits: Array) -> Array:
    e = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(e / e.sum(axis=-1, keepdims=True), dtype=np.float64)


def cdf_of(probabilities: Array) -> Array:
    """P(length <= edge) at all edges, shape ``[n, K + 1]``, from probabilities of the bins, shape ``[n, K]``."""
    n, k = probabilities.shape
    cdf = np.zeros((n, k + 1))
    np.cumsum(probabilities, axis=1, out=cdf[:, 1:])
    np.minimum(cdf, 1.0, out=cdf)
    cdf[:, -1] = 1.0
    return cdf


def log_softmax(logits: Array) -> Array:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)), dtype=np.float64)


def cross_entropy(logits: Array, targets: Array) -> float:
    """Mean of ``-sum(targets * log softmax(logits))`` over rows, in nats."""
    return float(-(targets * log_softmax(logits)).sum(axis=-1).mean())


def mixed(parts: Sequence[Array], weights: Sequence[float]) -> Array:
    """The weighted sum of each part's log-probabilities, from logits of shape ``[n, K]`` each."""
    return np.asarray(sum(w * log_softmax(p) for p, w in zip(parts, weights, strict=True)), dtype=np.float64)


def fit_weights(parts: Sequence[Array], targets: npt.ArrayLike) -> tuple[float, ...]:
    """The weights with the smallest cross-entropy at the mix's best temperature, to three digits, adding up to 1.

    ``parts`` are logits of two or more predictors for the same held-out rows, ``targets`` distributions: ``[n, K]``
    each.
    """
    from scipy.optimize import minimize

    truth = np.asarray(targets, dtype=np.float64)
    logs = [log_softmax(p) for p in parts]

    def weights(x: Array) -> Array:
        return softmax(np.asarray([*x, 0.0]))

    def loss(x: Array) -> float:
        # The last number is a temperature, which calibration sets afterwards; it must not influence the weights.
        mix = sum(w * p for w, p in zip(weights(x[:-1]), logs, strict=True))
        return cross_entropy(np.asarray(mix) * np.exp(np.clip(x[-1], -3.0, 3.0)), truth)

    start = np.zeros(len(parts))
    start[0] = 1.0
    found = minimize(loss, start, method="Nelder-Mead", options={"xatol": 1e-3, "fatol": 1e-6})
    return _rounded(weights(found.x[:-1]))


def _rounded(weights: Array) -> tuple[float, ...]:
    """Shares to three digits that add up to 1, none below 0: the largest takes the rounding errors."""
    shares = [round(float(w), 3) for w in weights]
    largest = int(np.argmax(weights))
    shares[largest] = round(1.0 - sum(s for i, s in enumerate(shares) if i != largest), 3)
    return tuple(shares)
