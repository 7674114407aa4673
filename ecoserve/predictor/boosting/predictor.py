"""The LightGBM backend: boosted trees over counts and word scores, to logits over the length bins."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ecoserve.errors import CheckpointError
from ecoserve.predictor.base import LengthPredictor, TrainingRun
from ecoserve.predictor.boosting.features import feature_names, feature_rows
from ecoserve.predictor.boosting.training import BoostingSettings, train_boosting
from ecoserve.predictor.boosting.words import WordModel
from ecoserve.predictor.calibration import Calibration
from ecoserve.predictor.config import PredictorConfig
from ecoserve.predictor.text import RequestView

#: LightGBM's own text format.
MODEL: Final = "model.txt"


class BoostingPredictor(LengthPredictor):
    """A trained LightGBM model with its word model; the trees add to the logarithm of the prior."""

    Settings = BoostingSettings
    packages = ("lightgbm", "scikit-learn")

    def __init__(self, config: PredictorConfig, calibration: Calibration, booster: Any, words: WordModel) -> None:
        super().__init__(config, calibration)
        self.booster = booster
        self.words = words
        self._prior = np.log(np.asarray(config.prior))

    @classmethod
    def fit(cls, run: TrainingRun, settings: BoostingSettings) -> BoostingPredictor:
        """Train on ``run.fit``; ``run.held`` chooses the round."""
        return cls(run.config, Calibration(), *train_boosting(run, settings))

    def _logits(self, views: Sequence[RequestView]) -> npt.NDArray[np.float64]:
        x = feature_rows(views, self.words.scores(views), parameters=bool(self.config.parameters))
        # One thread: handing a request to several costs more than it takes, and a server's other threads are busy.
        raw = self.booster.predict(x, raw_score=True, num_threads=1)
        logits: npt.NDArray[np.float64] = np.asarray(raw, dtype=np.float64).reshape(len(x), -1) + self._prior
        return logits

    def _write(self, folder: Path) -> None:
        self.booster.save_model(str(folder / MODEL))
        self.words.save(folder)

    @classmethod
    def _load(cls, folder: Path, config: PredictorConfig, calibration: Calibration) -> BoostingPredictor:
        import lightgbm

        text = (folder / MODEL).read_text(encoding="utf-8")
        # LightGBM's own reader would end the process on a text that ends too early.
        sizes = re.search(r"^tree_sizes=([\d ]*)$", text, re.MULTILINE)
        if sizes is None or len(sizes[1].split()) != text.count("\nTree=") or "\nend of trees\n" not in text:
            raise ValueError(f"{MODEL} is no whole LightGBM model")
        booster = lightgbm.Booster(model_str=text)
        words = WordModel.load(folder)
        names, bins = feature_names(len(words.intercepts), parameters=bool(config.parameters)), len(config.prior)
        if booster.num_feature() != len(names) or booster.num_model_per_iteration() != bins:
            raise CheckpointError(
                f"has {booster.num_feature()} features and {booster.num_model_per_iteration()} bins, "
                f"this ecoserve makes {len(names)} features and the config says {bins} bins",
                where=str(folder / MODEL),
                fix="train it again",
            )
        return cls(config, calibration, booster, words)
