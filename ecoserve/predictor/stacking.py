"""The stacked predictor: a fine-tuned encoder and boosted trees of the same rows and bins, mixed.

The trees see words and counts that a small encoder blurs; the encoder sees what words mean together.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final

import numpy as np
import numpy.typing as npt

from ecoserve.predictor.base import LengthPredictor, TrainingRun
from ecoserve.predictor.boosting.predictor import BoostingPredictor, BoostingSettings
from ecoserve.predictor.calibration import Calibration, fit_weights, mixed
from ecoserve.predictor.config import BackendSettings, PredictorConfig
from ecoserve.predictor.encoder.predictor import EncoderPredictor
from ecoserve.predictor.encoder.settings import EncoderSettings
from ecoserve.predictor.runtime import first
from ecoserve.predictor.text import RequestView

if TYPE_CHECKING:
    import torch

#: In ``config.model``: the encoder's share; the trees have the rest.
WEIGHT: Final = "encoder_weight"


class StackedSettings(BackendSettings):
    """Hyperparameters of the stacked backend: those of its two parts."""

    encoder: EncoderSettings = EncoderSettings()
    lightgbm: BoostingSettings = BoostingSettings()


class StackedPredictor(LengthPredictor):
    """An encoder and a LightGBM predictor of the same config; its checkpoint holds the files of both."""

    Settings = StackedSettings
    packages: ClassVar[tuple[str, ...]] = (*EncoderPredictor.packages, *BoostingPredictor.packages)
    resumable = True

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

    @classmethod
    def fit(cls, run: TrainingRun, settings: StackedSettings) -> LengthPredictor:
        """Train both parts and choose the weight on ``run.held``; processes but the first return the encoder alone."""
        encoder = EncoderPredictor.fit(run, settings.encoder)
        if not first():
            return encoder
        boosting = BoostingPredictor.fit(run, settings.lightgbm)
        run.progress("stacking", 0, 1)
        parts = encoder.logits(run.held.views), boosting.logits(run.held.views)
        weight = fit_weights(parts, run.held.targets(run.config.bins))[0]
        config = run.config.model_copy(update={"model": {**encoder.config.model, WEIGHT: weight}})
        return cls(config, Calibration(), encoder, boosting)

    @property
    def device(self) -> torch.device:
        """Where the encoder computes; the trees are always on the CPU."""
        return self.encoder.device

    def to(self, device: str | torch.device) -> StackedPredictor:
        """Move the encoder to another device. Not while other threads are predicting."""
        self.encoder.to(device)
        return self

    def _logits(self, views: Sequence[RequestView]) -> npt.NDArray[np.float64]:
        parts = self.encoder.logits(views), self.boosting.logits(views)
        return mixed(parts, (self.weight, 1.0 - self.weight))

    def _write(self, folder: Path) -> None:
        self.encoder._write(folder)
        self.boosting._write(folder)

    @classmethod
    def _load(cls, folder: Path, config: PredictorConfig, calibration: Calibration) -> StackedPredictor:
        encoder = EncoderPredictor._load(folder, config, Calibration())
        return cls(config, calibration, encoder, BoostingPredictor._load(folder, config, Calibration()))
