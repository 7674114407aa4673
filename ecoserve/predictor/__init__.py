"""Length predictors: trained from traces, saved as checkpoints, asked for length distributions.

Importing this package imports none of torch, transformers and LightGBM; they are loaded with the predictor that needs
them.
"""

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
