"""The adapted predictor: a base checkpoint's files, unchanged, and a few numbers beside them.

Rule: the folder is a checkpoint like any other. The base's weights lie in it under their own names, its config and
calibration in ``base.json``, the adaptation in ``adaptation.json``; ``config.json`` is of the new model's lengths and
records the base's own SHA-256.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from ecoserve.predictor.adaptation import Adaptation, features_of
from ecoserve.predictor.base import LengthPredictor, backend_class
from ecoserve.predictor.calibration import Calibration
from ecoserve.predictor.config import Backend, PredictorConfig
from ecoserve.predictor.text import RequestView

BASE, ADAPTATION = "base.json", "adaptation.json"
Array = npt.NDArray[np.float64]


class AdaptedPredictor(LengthPredictor):
    """Predicts one served model's lengths from a predictor of another's."""

    backend: ClassVar[Backend] = "adapted"

    def __init__(
        self, config: PredictorConfig, calibration: Calibration, base: LengthPredictor, adaptation: Adaptation
    ) -> None:
        super().__init__(config, calibration)
        self.base = base
        self.adaptation = adaptation

    def _logits(self, views: Sequence[RequestView]) -> Array:
        features, cdf = base_features(self.base, views)
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
        if base_config.backend == cls.backend:
            raise ValueError(f"{BASE} is of an adapted predictor")
        base = backend_class(base_config.backend)._load(
            folder, base_config, Calibration.model_validate(content["calibration"])
        )
        text = (folder / ADAPTATION).read_text(encoding="utf-8")
        return cls(config, calibration, base, Adaptation.model_validate_json(text))


def base_features(base: LengthPredictor, views: Sequence[RequestView]) -> tuple[Array, Array]:
    """Features and CDFs of requests by the base (:func:`~ecoserve.predictor.adaptation.features_of`)."""
    logits = base.logits(views)
    probabilities = base.calibration.probabilities(logits)
    return features_of(logits, probabilities, base.config.edges, views)
