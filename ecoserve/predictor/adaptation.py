"""What an adapted predictor does with its base's prediction: another model's lengths out of one model's.

Rule: the base stays as it is. From its prediction of a request come features; a ridge regression on them says where
the new model's log length lies, ``mu``. The base's distribution is moved there and stretched in log length,

    P(new <= n)  =  (1 - mix) * P_base(response length <= exp(m + (log n - mu) / stretch))  +  mix * share of new
    answers <= n,

with ``m`` the base's own mean log length: a monotone map of length, another one for each request. The small share of
the new model's lengths as such keeps every length possible. What is left to correct is the calibration's.

How it is fitted is said in :mod:`ecoserve.predictor.adaptation_fitting`, how it is kept in
:mod:`ecoserve.predictor.adaptation_predictor`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, model_validator

from ecoserve.predictor.boosting.request_features import request_features
from ecoserve.predictor.calibration import cdf_of
from ecoserve.predictor.calibration_fitting import quantiles
from ecoserve.predictor.text import RequestView

Array = npt.NDArray[np.float64]
Kind = Literal["none", "affine", "ridge"]
#: Standardised features are cut off here: a request unlike all that were seen is not extrapolated to.
_MOST: Final = 4.0
#: Quantiles of the base's prediction among the features.
_LEVELS: Final = np.array([0.1, 0.25, 0.5, 0.75, 0.9])
_LEAST: Final = 1e-12


class Adaptation(BaseModel):
    """``adaptation.json``: the numbers of the rule above."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    #: "none": the base's own lengths; "affine": of its mean log length alone; "ridge": of all features
    kind: Kind = "none"
    #: of the standardised features, one each; of the first alone if affine; none if nothing is adapted
    means: tuple[float, ...] = ()
    scales: tuple[float, ...] = ()
    weights: tuple[float, ...] = ()
    intercept: float = 0.0
    stretch: float = Field(default=1.0, gt=0.0)
    mix: float = Field(default=0.0, ge=0.0, lt=1.0)

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if not len(self.means) == len(self.scales) == len(self.weights) or any(s <= 0.0 for s in self.scales):
            raise ValueError("means, scales and weights do not go together")
        if (self.kind == "none") != (not self.weights):
            raise ValueError(f"{self.kind} with {len(self.weights)} weights")
        return self

    def log_lengths(self, features: Array) -> Array:
        """``mu`` of each request, shape ``[n]``; ``features`` of shape ``[n, F]`` (:func:`features_of`)."""
        if self.kind == "none":
            return np.asarray(features[:, 0], dtype=np.float64)
        standard = (features[:, : len(self.weights)] - self.means) / self.scales
        return np.asarray(np.clip(standard, -_MOST, _MOST) @ np.asarray(self.weights) + self.intercept)

    def probabilities(
        self, base_cdf: Array, base_edges: npt.ArrayLike, features: Array, edges: npt.ArrayLike, prior: npt.ArrayLike
    ) -> Array:
        """Probabilities of the new bins, shape ``[n, K]``, all above 0.

        Args:
            base_cdf: the base's P(length <= edge), shape ``[n, B + 1]``, at ``base_edges`` (tokens).
            features: shape ``[n, F]``.
            edges: the new bins' ``K + 1`` edges, tokens.
            prior: share of the new model's answers in each of them, shape ``[K]``.
        """
        mu = self.log_lengths(features)
        cdf = moved(base_cdf, base_edges, features[:, 0], mu, self.stretch, edges)
        p = (1.0 - self.mix) * np.diff(cdf, axis=1) + self.mix * np.asarray(prior)
        p = np.maximum(p, _LEAST)
        return np.asarray(p / p.sum(axis=1, keepdims=True), dtype=np.float64)


def moved(
    base_cdf: Array, base_edges: npt.ArrayLike, m: Array, mu: Array, stretch: float, edges: npt.ArrayLike
) -> Array:
    """CDFs moved from mean log length ``m`` to ``mu`` (shapes ``[n]``) and stretched, at ``edges``: ``[n, K + 1]``."""
    old, new = np.asarray(base_edges, dtype=np.float64), np.asarray(edges, dtype=np.float64)
    # Half a token stands for the edge at 0, which has no logarithm.
    at = np.exp(m[:, None] + (np.log(np.maximum(new, 0.5)) - mu[:, None]) / stretch)
    cdf = np.stack([np.interp(a, old, c) for a, c in zip(at, base_cdf, strict=True)])
    cdf[:, 0], cdf[:, -1] = 0.0, 1.0
    return np.asarray(np.maximum.accumulate(cdf, axis=1), dtype=np.float64)


def features_of(
    logits: Array, probabilities: Array, edges: npt.ArrayLike, views: Sequence[RequestView]
) -> tuple[Array, Array]:
    """What is known of ``n`` requests by a base with B bins.

    Args:
        logits: the base's, before calibration, shape ``[n, B]``.
        probabilities: the base's, calibrated, shape ``[n, B]``.
        edges: the base's, tokens.
        views: the requests.

    Returns:
        the features, shape ``[n, F]``: mean and spread of the log length, logs of quantiles, counts of the request's
        text, and the logits, which know more than lengths (of an encoder, all that its head reads); and the base's
        P(length <= edge), shape ``[n, B + 1]``.
    """
    e = np.asarray(edges, dtype=np.float64)
    middle = np.log((e[:-1] + e[1:] + 1.0) / 2.0)
    cdf = cdf_of(probabilities)
    mean = probabilities @ middle
    spread = np.sqrt(np.maximum(probabilities @ middle**2 - mean**2, 0.0))
    counts = request_features(views)
    columns = (
        mean[:, None],
        spread[:, None],
        np.log(quantiles(cdf, e, _LEVELS)),
        np.sign(counts) * np.log1p(np.abs(counts)),
        logits - logits.mean(axis=1, keepdims=True),
    )
    return np.concatenate(columns, axis=1), cdf
