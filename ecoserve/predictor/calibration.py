"""Calibration: make stated probabilities agree with how often things happen.

Rule: first one of two ways from logits to a CDF, then a split-conformal correction of that CDF. All backends go
through :meth:`Calibration.probabilities`, and nothing else turns logits into probabilities.

1. *Temperature*: T divides the logits before the softmax (Guo et al., "On Calibration of Modern Neural Networks", ICML
   2017). *Isotonic*: an ascending map of the softmax's CDF, fitted by isotonic regression of "RL <= edge" on the CDF at
   that edge, over all rows and edges (after Kuleshov et al., "Accurate Uncertainties for Deep Learning Using
   Calibrated Regression", ICML 2018). Which one is chosen in :mod:`ecoserve.predictor.calibration_fitting`.
2. *Bounds*: one map per group of requests (:mod:`ecoserve.predictor.conformal`, where the guarantee is stated). Groups
   are bands of the prompt's length in characters. A band with too few rows of its own goes by the map of all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, model_validator

from ecoserve.predictor.conformal import ConformalMap
from ecoserve.predictor.text import RequestView

Array = npt.NDArray[np.float64]
#: Temperatures outside of this say that something else is wrong.
BOUNDS = (0.2, 5.0)


class GroupBounds(BaseModel):
    """Conformal maps by the prompt's length."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    #: of all rows: for requests of unknown group, and for bands without a map of their own
    whole: ConformalMap
    #: the longest prompt of each band but the last, in characters, ascending
    band_characters: tuple[int, ...] = ()
    #: one more than there are cuts; None: too few rows
    bands: tuple[ConformalMap | None, ...] = (None,)

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if len(self.bands) != len(self.band_characters) + 1:
            raise ValueError(f"{len(self.band_characters)} cuts make {len(self.band_characters) + 1} bands")
        if any(b <= a for a, b in zip(self.band_characters, self.band_characters[1:], strict=False)):
            raise ValueError("bands must ascend")
        return self

    def band(self, views: Sequence[RequestView]) -> npt.NDArray[np.intp]:
        """The band of each request, shape ``[n]``."""
        return np.searchsorted(np.asarray(self.band_characters), [len(v.prompt) for v in views], side="left")

    def apply(self, cdf: Array, views: Sequence[RequestView] | None, edges: npt.ArrayLike | None) -> Array:
        """Correct CDFs of shape ``[n, K + 1]`` (:meth:`~ecoserve.predictor.conformal.ConformalMap.apply`)."""
        if views is None or not self.band_characters:
            only = self.whole if views is None else (self.bands[0] or self.whole)
            return only.apply(cdf, edges)
        out = np.empty_like(cdf)
        band = self.band(views)
        for which in np.unique(band):
            rows = band == which
            out[rows] = (self.bands[which] or self.whole).apply(cdf[rows], edges)
        return out


class Calibration(BaseModel):
    """``calibration.json``: how logits become probabilities."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    method: Literal["temperature", "isotonic"] = "temperature"
    temperature: float = Field(default=1.0, ge=BOUNDS[0], le=BOUNDS[1])
    #: points (CDF before, CDF after) of the isotonic map, from (0, 0) to (1, 1), strictly ascending in both
    isotonic: tuple[tuple[float, float], ...] = ()
    #: rows the method and its numbers were chosen on
    rows: int = Field(default=0, ge=0)
    #: mean negative log-likelihood per row of the temperature, in nats, before and after
    nll_before: float | None = None
    nll_after: float | None = None
    #: mean pinball loss (tokens) of each way on rows it was not fitted on
    pinball: dict[str, float] = {}
    #: None: not corrected (files of older checkpoints, or too few rows)
    bounds: GroupBounds | None = None

    @model_validator(mode="after")
    def _ascends(self) -> Self:
        if (self.method == "isotonic") != bool(self.isotonic):
            raise ValueError(f"method {self.method} with {len(self.isotonic)} isotonic points")
        if self.isotonic:
            points = np.asarray(self.isotonic)
            ends = points[0].tolist() == [0.0, 0.0] and points[-1].tolist() == [1.0, 1.0]
            if not ends or (np.diff(points, axis=0) <= 0.0).any():
                raise ValueError("isotonic points must ascend from (0, 0) to (1, 1)")
        return self

    def probabilities(
        self,
        logits: npt.ArrayLike,
        views: Sequence[RequestView] | None = None,
        edges: npt.ArrayLike | None = None,
    ) -> Array:
        """Probabilities of the bins.

        Args:
            logits: shape ``[n, K]``.
            views: the ``n`` requests, for bounds by group; without them, those of all rows serve.
            edges: ``K + 1`` bin edges in tokens; without them, bounds are a little wider than needed.

        Returns:
            shape ``[n, K]``, rows that are not negative and add up to 1.
        """
        z = np.asarray(logits, dtype=np.float64) / self.temperature
        if self.bounds is None and self.method == "temperature":
            return softmax(z)
        cdf = self.before_bounds(logits)
        if self.bounds is not None and len(cdf):
            cdf = self.bounds.apply(cdf, views, edges)
        return np.diff(cdf, axis=1)

    def before_bounds(self, logits: npt.ArrayLike) -> Array:
        """P(RL <= edge) before the conformal correction, shape ``[n, K + 1]``."""
        cdf = cdf_of(softmax(np.asarray(logits, dtype=np.float64) / self.temperature))
        if self.method == "isotonic":
            before, after = np.asarray(self.isotonic).T
            cdf = np.interp(cdf, before, after)
        return cdf


def fit_temperature(logits: npt.ArrayLike, targets: npt.ArrayLike) -> Calibration:
    """Choose the temperature on held-out rows: the one with the smallest negative log-likelihood.

    Args:
        logits: shape ``[n, K]``.
        targets: what really happened, as shares of the bins (one-hot where the length is known), shape ``[n, K]``.
    """
    from scipy.optimize import minimize_scalar

    z = np.asarray(logits, dtype=np.float64)
    t = np.asarray(targets, dtype=np.float64)

    def loss(log_temperature: float) -> float:
        return cross_entropy(z / np.exp(log_temperature), t)

    low, high = np.log(BOUNDS)
    found = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-4})
    temperature = float(np.clip(np.exp(found.x), *BOUNDS))
    before, after = loss(0.0), loss(np.log(temperature))
    if after >= before:
        temperature, after = 1.0, before
    return Calibration(temperature=temperature, rows=len(z), nll_before=before, nll_after=after)


def softmax(logits: Array) -> Array:
    """Softmax over the last axis."""
    e = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(e / e.sum(axis=-1, keepdims=True), dtype=np.float64)


def cdf_of(probabilities: Array) -> Array:
    """P(RL <= edge) at all edges, shape ``[n, K + 1]``, from probabilities of the bins, shape ``[n, K]``."""
    n, k = probabilities.shape
    cdf = np.zeros((n, k + 1))
    np.cumsum(probabilities, axis=1, out=cdf[:, 1:])
    np.minimum(cdf, 1.0, out=cdf)
    cdf[:, -1] = 1.0
    return cdf


def cross_entropy(logits: Array, targets: Array) -> float:
    """Mean of ``-sum(targets * log softmax(logits))`` over rows, in nats."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return float(-(targets * log_p).sum(axis=-1).mean())
