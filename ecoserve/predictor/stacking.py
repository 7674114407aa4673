"""The stacked predictor: a fine-tuned encoder and boosted trees, read together.

Rule: both parts learn from the same rows over the same bins, and are mixed as :mod:`~ecoserve.predictor.mixing` says.
The trees see words and counts that a small encoder blurs; the encoder sees what words mean together.
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
from ecoserve.predictor.calibration import Calibration
from ecoserve.predictor.config import Backend, PredictorConfig
from ecoserve.predictor.encoder.predictor import EncoderPredictor
from ecoserve.predictor.mixing import mixed
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
        parts = self.encoder.logits(views), self.boosting.logits(views)
        return mixed(parts, (self.weight, 1.0 - self.weight))

    def _write(self, folder: Path) -> None:
        self.encoder._write(folder)
        self.boosting._write(folder)

    @classmethod
    def _load(cls, folder: Path, config: PredictorConfig, calibration: Calibration) -> StackedPredictor:
        encoder = EncoderPredictor._load(folder, config, Calibration())
        return cls(config, calibration, encoder, BoostingPredictor._load(folder, config, Calibration()))
