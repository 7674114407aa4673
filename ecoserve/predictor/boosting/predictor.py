"""The LightGBM predictor: boosted trees over counts and word scores, to logits over the length bins.

Rule: ``model.txt`` is LightGBM's own text format; the trees add to the logarithm of the prior, one tree per bin and
round. One thread a call: a request takes less than handing it to several would cost, and a busy server's other threads
are left alone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from ecoserve.errors import CheckpointError
from ecoserve.predictor.base import LengthPredictor
from ecoserve.predictor.boosting.parameter_features import PARAMETER_FEATURES, parameter_features
from ecoserve.predictor.boosting.request_features import NAMES, request_features
from ecoserve.predictor.boosting.words import WordModel
from ecoserve.predictor.calibration import Calibration
from ecoserve.predictor.config import Backend, PredictorConfig
from ecoserve.predictor.text import RequestView

MODEL = "model.txt"


class BoostingPredictor(LengthPredictor):
    """A trained LightGBM model with its word model."""

    backend: ClassVar[Backend] = "lightgbm"

    def __init__(self, config: PredictorConfig, calibration: Calibration, booster: Any, words: WordModel) -> None:
        super().__init__(config, calibration)
        self.booster = booster
        self.words = words
        self._prior = np.log(np.asarray(config.prior))

    def _logits(self, views: Sequence[RequestView]) -> npt.NDArray[np.float64]:
        x = feature_rows(views, self.words.scores(views), parameters=bool(self.config.parameters))
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
        _check_whole(text)
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


def _check_whole(text: str) -> None:
    """Refuse a model text that ends too early: LightGBM's own reader would end the process on it."""
    sizes = re.search(r"^tree_sizes=([\d ]*)$", text, re.MULTILINE)
    trees = text.count("\nTree=")
    if sizes is None or len(sizes[1].split()) != trees or "\nend of trees\n" not in text:
        raise ValueError(f"{MODEL} is no whole LightGBM model")


def feature_rows(
    views: Sequence[RequestView], scores: npt.NDArray[np.float64], *, parameters: bool = False
) -> npt.NDArray[np.float64]:
    """All features of ``n`` requests: counts, word scores and, if learned from, parameters; shape ``[n, F]``."""
    parts = [request_features(views), scores]
    return np.hstack([*parts, parameter_features(views)] if parameters else parts)


def feature_names(scores: int, *, parameters: bool = False) -> list[str]:
    """Names of the columns of :func:`feature_rows` with ``scores`` word scores."""
    return [*NAMES, *(f"words_{i}" for i in range(scores)), *(PARAMETER_FEATURES if parameters else ())]
