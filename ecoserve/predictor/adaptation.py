"""The adapted predictor: another model's lengths out of one model's.

The base stays as it is. A ridge regression on features of its prediction gives the new model's expected log length
``mu`` of a request. The base's distribution is moved there and stretched in log length,

    P(new <= n)  =  (1 - mix) * P_base(length <= exp(m + (log n - mu) / stretch))  +  mix * share of new lengths <= n,

with ``m`` the base's own mean log length: a monotone map of length, another one for each request. The small share of
the new model's lengths as such keeps every length possible. Calibration corrects what is left.

The checkpoint holds the base's weights under their own names, its config and calibration in ``base.json``, the
adaptation in ``adaptation.json``. Fitting is in :mod:`ecoserve.predictor.adaptation_fitting`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, model_validator

from ecoserve.predictor.base import LengthPredictor, backend_class
from ecoserve.predictor.boosting.features import request_features
from ecoserve.predictor.calibration import Calibration, cdf_of
from ecoserve.predictor.calibration_fitting import quantiles
from ecoserve.predictor.config import PredictorConfig
from ecoserve.predictor.text import RequestView

Array = npt.NDArray[np.float64]
Kind = Literal["none", "affine", "ridge"]
BASE: Final = "base.json"
ADAPTATION: Final = "adaptation.json"
#: Standardised features are clipped here: no extrapolation to a request unlike all that were seen.
MOST: Final = 4.0
#: Quantiles of the base's prediction among the features.
_LEVELS: Final = np.array([0.1, 0.25, 0.5, 0.75, 0.9])
_LEAST: Final = 1e-12


class Adaptation(BaseModel):
    """``adaptation.json``: the numbers in the formula above."""

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
        return np.asarray(np.clip(standard, -MOST, MOST) @ np.asarray(self.weights) + self.intercept)

    def probabilities(
        self, base_cdf: Array, base_edges: npt.ArrayLike, features: Array, edges: npt.ArrayLike, prior: npt.ArrayLike
    ) -> Array:
        """Probabilities of the new bins (``K + 1`` ``edges`` in tokens), shape ``[n, K]``, all above 0.

        ``base_cdf``: the base's P(length <= edge), shape ``[n, B + 1]``, at ``base_edges``; ``features``: shape ``[n,
        F]``; ``prior``: share of the new model's answers in each bin.
        """
        mu = self.log_lengths(features)
        cdf = moved(base_cdf, base_edges, features[:, 0], mu, self.stretch, edges)
        return with_share(cdf, self.mix, prior)


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


def with_share(cdf: Array, mix: float, prior: npt.ArrayLike) -> Array:
    """Probabilities of the bins, all above 0, with a share of ``mix`` distributed as ``prior`` is; ``[n, K]``."""
    p = np.maximum((1.0 - mix) * np.diff(cdf, axis=1) + mix * np.asarray(prior), _LEAST)
    return np.asarray(p / p.sum(axis=1, keepdims=True), dtype=np.float64)


def base_features(base: LengthPredictor, views: Sequence[RequestView]) -> tuple[Array, Array]:
    """What a base with B bins knows of ``n`` requests: features, and its P(length <= edge), shape ``[n, B + 1]``.

    Features, shape ``[n, F]``: mean and spread of the log length, logs of quantiles, counts of the request's text, and
    the logits, which know more than lengths (of an encoder, all that its head reads).
    """
    logits = base.logits(views)
    probabilities = base.calibration.probabilities(logits)
    e = np.asarray(base.config.edges, dtype=np.float64)
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


class AdaptedPredictor(LengthPredictor):
    """Predicts one served model's lengths from a predictor of another's."""

    def __init__(
        self, config: PredictorConfig, calibration: Calibration, base: LengthPredictor, adaptation: Adaptation
    ) -> None:
        super().__init__(config, calibration)
        self.base = base
        self.adaptation = adaptation

    def _logits(self, views: Sequence[RequestView]) -> Array:
        return self.logits_of(*base_features(self.base, views))

    def logits_of(self, features: Array, cdf: Array) -> Array:
        """Uncalibrated logits, shape ``[n, K]``, from what :func:`base_features` returns."""
        p = self.adaptation.probabilities(cdf, self.base.config.edges, features, self.config.edges, self.config.prior)
        return np.asarray(np.log(p), dtype=np.float64)

    def _write(self, folder: Path) -> None:
        self.base._write(folder)
        base = {
            "config": self.base.config.model_dump(mode="json"),
            "calibration": self.base.calibration.model_dump(mode="json"),
        }
        (folder / BASE).write_text(json.dumps(base, indent=2) + "\n", encoding="utf-8")
        (folder / ADAPTATION).write_text(self.adaptation.model_dump_json(indent=2) + "\n", encoding="utf-8")

    @classmethod
    def _load(cls, folder: Path, config: PredictorConfig, calibration: Calibration) -> AdaptedPredictor:
        content = json.loads((folder / BASE).read_text(encoding="utf-8"))
        base_config = PredictorConfig.model_validate(content["config"])
        kind = backend_class(base_config.backend)
        if issubclass(kind, cls):
            raise ValueError(f"{BASE} is of an adapted predictor")
        base = kind._load(folder, base_config, Calibration.model_validate(content["calibration"]))
        text = (folder / ADAPTATION).read_text(encoding="utf-8")
        return cls(config, calibration, base, Adaptation.model_validate_json(text))
