"""The stacked predictor: a fine-tuned encoder and boosted trees, read together.

Rule: both parts learn from the same rows over the same bins. Their answer is the weighted geometric mean of their two
distributions (a convex mix of log-probabilities), the weight being the one with the smallest cross-entropy on held-out
rows once the mix is as sharp as suits them. The trees see words and counts that a small encoder blurs; the encoder sees
what words mean together.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Final

import numpy as np
import numpy.typing as npt
import torch

from ecoserve.predictor.base import LengthPredictor
from ecoserve.predictor.boosting.predictor import BoostingPredictor
from ecoserve.predictor.calibration import Calibration, cross_entropy
from ecoserve.predictor.config import Backend, PredictorConfig
from ecoserve.predictor.encoder.predictor import EncoderPredictor
from ecoserve.predictor.text import RequestView

Array = npt.NDArray[np.float64]
#: In ``config.model``: the encoder's share; the trees have the rest.
WEIGHT: Final = "encoder_weight"


class StackedPredictor(LengthPredictor):
    """An encoder and a LightGBM predictor of the same config; its checkpoint holds the files of both."""

    backend: ClassVar[Backend] = "stacked"

    def __init__(
        self,
        config: PredictorConfig,
        calibration: Calibration,
        encoder: EncoderPredictor,
        boosting: BoostingPredictor,
    ) -> None:
        super().__init__(config, calibration)
        self.encoder = encoder
        self.boosting = boosting
        self.weight = float(config.model[WEIGHT])
        if not 0.0 <= self.weight <= 1.0:
            raise ValueError(f"{WEIGHT} {self.weight} is not between 0 and 1")

    @property
    def device(self) -> torch.device:
        """Where the encoder computes; the trees are always on the CPU."""
        return self.encoder.device

    def to(self, device: str | torch.device) -> StackedPredictor:
        """Move the encoder to another device. Not while other threads are predicting."""
        self.encoder.to(device)
        return self

    def _logits(self, views: Sequence[RequestView]) -> Array:
        return mixed(self.encoder.logits(views), self.boosting.logits(views), self.weight)

    def _write(self, folder: Path) -> None:
        self.encoder._write(folder)
        self.boosting._write(folder)

    @classmethod
    def _load(cls, folder: Path, config: PredictorConfig, calibration: Calibration) -> StackedPredictor:
        encoder = EncoderPredictor._load(folder, config, Calibration())
        return cls(config, calibration, encoder, BoostingPredictor._load(folder, config, Calibration()))


def mixed(encoder: Array, boosting: Array, weight: float) -> Array:
    """``weight`` of one part's log-probabilities plus the rest of the other's, from logits of shape ``[n, K]``."""
    return weight * _log_softmax(encoder) + (1.0 - weight) * _log_softmax(boosting)


def fit_weight(encoder: Array, boosting: Array, targets: npt.ArrayLike) -> float:
    """The encoder's weight with the smallest cross-entropy on held-out rows.

    Args:
        encoder: its logits, shape ``[n, K]``.
        boosting: the trees' logits, shape ``[n, K]``.
        targets: what really happened, as shares of the bins, shape ``[n, K]``.
    """
    from scipy.optimize import minimize
    from scipy.special import expit

    truth = np.asarray(targets, dtype=np.float64)

    def loss(x: Array) -> float:
        # The sharpness is free too: calibration sets it afterwards, and it must not decide who is believed.
        return cross_entropy(mixed(encoder, boosting, float(expit(x[0]))) * np.exp(np.clip(x[1], -3.0, 3.0)), truth)

    found = minimize(loss, np.array([1.0, 0.0]), method="Nelder-Mead", options={"xatol": 1e-3, "fatol": 1e-6})
    return round(float(expit(found.x[0])), 3)


def _log_softmax(logits: Array) -> Array:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)), dtype=np.float64)
