"""Length predictors: trained from traces, saved as checkpoints, asked for length distributions.

Importing this package imports none of torch, transformers and LightGBM; they are loaded with the predictor that needs
them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ecoserve.predictor.adaptation_fitting import adapt_predictor as adapt_predictor
    from ecoserve.predictor.base import LengthPredictor as LengthPredictor
    from ecoserve.predictor.base import Predicts as Predicts
    from ecoserve.predictor.base import load_predictor as load_predictor
    from ecoserve.predictor.baselines import ConstantMedian as ConstantMedian
    from ecoserve.predictor.baselines import PromptLength as PromptLength
    from ecoserve.predictor.bins import Bins as Bins
    from ecoserve.predictor.bins import BinSettings as BinSettings
    from ecoserve.predictor.boosting.predictor import BoostingSettings as BoostingSettings
    from ecoserve.predictor.calibration import Calibration as Calibration
    from ecoserve.predictor.config import PredictorConfig as PredictorConfig
    from ecoserve.predictor.encoder.settings import EncoderSettings as EncoderSettings
    from ecoserve.predictor.ensemble import combine_predictors as combine_predictors
    from ecoserve.predictor.evaluation import evaluate_predictor as evaluate_predictor
    from ecoserve.predictor.stacking import StackedSettings as StackedSettings
    from ecoserve.predictor.training import train_predictor as train_predictor

#: Public name -> the module that it is imported from when it is asked for.
_HOMES = {
    "adapt_predictor": "adaptation_fitting",
    "BinSettings": "bins",
    "Bins": "bins",
    "BoostingSettings": "boosting.predictor",
    "Calibration": "calibration",
    "combine_predictors": "ensemble",
    "ConstantMedian": "baselines",
    "EncoderSettings": "encoder.settings",
    "evaluate_predictor": "evaluation",
    "LengthPredictor": "base",
    "load_predictor": "base",
    "PredictorConfig": "config",
    "Predicts": "base",
    "PromptLength": "baselines",
    "StackedSettings": "stacking",
    "train_predictor": "training",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"ecoserve.predictor.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*_HOMES, *globals()]
