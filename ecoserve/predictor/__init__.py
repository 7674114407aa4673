"""Length predictors: trained from traces, saved as checkpoints, asked for length distributions.

Importing this package imports none of torch, transformers and LightGBM; they are loaded with the predictor that needs
them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ecoserve.predictor.adaptation_fitting import adapt_predictor
    from ecoserve.predictor.base import LengthPredictor, Predicts, load_predictor
    from ecoserve.predictor.baselines import ConstantMedian, PromptLength
    from ecoserve.predictor.bins import Bins, BinSettings
    from ecoserve.predictor.calibration import Calibration
    from ecoserve.predictor.combining import combine_predictors
    from ecoserve.predictor.config import BoostingSettings, EncoderSettings, PredictorConfig, StackedSettings
    from ecoserve.predictor.evaluation import evaluate_predictor
    from ecoserve.predictor.training import train_predictor

_HOMES = {
    "adapt_predictor": "adaptation_fitting",
    "LengthPredictor": "base",
    "Predicts": "base",
    "load_predictor": "base",
    "ConstantMedian": "baselines",
    "PromptLength": "baselines",
    "BinSettings": "bins",
    "Bins": "bins",
    "Calibration": "calibration",
    "combine_predictors": "combining",
    "BoostingSettings": "config",
    "EncoderSettings": "config",
    "PredictorConfig": "config",
    "StackedSettings": "config",
    "evaluate_predictor": "evaluation",
    "train_predictor": "training",
}

__all__ = [
    "BinSettings",
    "Bins",
    "BoostingSettings",
    "Calibration",
    "ConstantMedian",
    "EncoderSettings",
    "LengthPredictor",
    "PredictorConfig",
    "Predicts",
    "PromptLength",
    "StackedSettings",
    "adapt_predictor",
    "combine_predictors",
    "evaluate_predictor",
    "load_predictor",
    "train_predictor",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"ecoserve.predictor.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, *globals()]
