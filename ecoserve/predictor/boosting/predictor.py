"""The LightGBM backend: its settings, and boosted trees over counts and word scores, to logits over the bins."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from pydantic import Field

from ecoserve.errors import CheckpointError
from ecoserve.predictor.base import LengthPredictor, TrainingRun
from ecoserve.predictor.boosting.features import feature_names, feature_rows
from ecoserve.predictor.boosting.words import WordModel
from ecoserve.predictor.calibration import Calibration, cross_entropy, softmax
from ecoserve.predictor.config import BackendSettings, PredictorConfig
from ecoserve.predictor.examples import Examples
from ecoserve.predictor.text import RequestView

Array = npt.NDArray[np.float64]
#: Lengths at which the word model predicts survival, as quantiles of the training lengths.
_SURVIVAL_LEVELS = np.linspace(0, 1, 13)[1:-1]
#: LightGBM's own text format.
MODEL: Final = "model.txt"


class BoostingSettings(BackendSettings):
    """Hyperparameters of the LightGBM backend."""

    rounds: int = Field(default=60, ge=1, le=5000, description="boosting rounds at most; each grows one tree per bin")
    learning_rate: float = Field(default=0.1, gt=0, le=1, description="shrinkage of each round")
    leaves: int = Field(default=7, ge=2, le=4096, description="leaves per tree")
    min_rows_in_leaf: int = Field(default=50, ge=1, description="rows in a leaf at least")
    terms: int = Field(default=20_000, ge=10, description="words and pairs of words kept")
    ridge: float = Field(default=1.0, gt=0, description="L2 penalty of the linear model on words")
    patience: int = Field(default=10, ge=1, description="rounds without a better held-out loss before it stops")


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

    def _logits(self, views: Sequence[RequestView]) -> Array:
        x = feature_rows(views, self.words.scores(views), parameters=bool(self.config.parameters))
        # One thread: handing a request to several costs more than it takes, and a server's other threads are busy.
        raw = self.booster.predict(x, raw_score=True, num_threads=1)
        logits: Array = np.asarray(raw, dtype=np.float64).reshape(len(x), -1) + self._prior
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


def train_boosting(run: TrainingRun, settings: BoostingSettings) -> tuple[Any, WordModel]:
    """Train on ``run.fit``; ``run.held`` chooses the round. Returns LightGBM's booster and the word model.

    There is one tree per bin and round; their raw scores are added to the logarithm of the config's prior. LightGBM's
    own multi-class objective takes one class a row; this one is the cross-entropy against soft targets. One thread: on
    a busy machine, threads that wait for each other over so few rows took fourteen times as long.
    """
    import lightgbm

    fit, held, bins, seed = run.fit, run.held, run.config.bins, run.config.seed
    run.progress("reading words", 0, settings.rounds)
    words, scores = WordModel.fit(fit.views, _word_targets(fit), terms=settings.terms, ridge=settings.ridge, seed=seed)
    targets, held_targets = fit.targets(bins).astype(np.float64), held.targets(bins).astype(np.float64)
    parameters, prior = bool(fit.parameters), np.log(np.asarray(run.config.prior))
    k = len(prior)

    def objective(raw: Array, _: Any) -> tuple[Array, Array]:
        p = softmax(raw.reshape(len(targets), k))
        return p - targets, np.maximum(p * (1.0 - p), 1e-6)

    def loss(raw: Array, _: Any) -> tuple[str, float, bool]:
        return "cross_entropy", cross_entropy(raw.reshape(len(held_targets), k), held_targets), False

    def show(env: Any) -> None:
        run.progress("boosting", env.iteration + 1, settings.rounds)

    def data(rows: Examples, scores: Array, reference: Any = None) -> Any:
        return lightgbm.Dataset(
            feature_rows(rows.views, scores, parameters=parameters),
            np.zeros(len(rows)),
            init_score=np.tile(prior, (len(rows), 1)),
            feature_name=feature_names(scores.shape[1], parameters=parameters),
            reference=reference,
            free_raw_data=False,
        )

    train = data(fit, scores)
    booster = lightgbm.train(
        {
            "objective": objective,
            "num_class": k,
            "learning_rate": settings.learning_rate,
            "num_leaves": settings.leaves,
            "min_data_in_leaf": min(settings.min_rows_in_leaf, max(2, len(targets) // 20)),
            "feature_fraction": 0.5,
            "bagging_fraction": 0.7,
            "bagging_freq": 1,
            "lambda_l2": 1.0,
            "deterministic": True,
            "force_row_wise": True,
            "num_threads": 1,
            "seed": seed,
            "verbosity": -1,
            "metric": "None",
        },
        train,
        num_boost_round=settings.rounds,
        valid_sets=[data(held, words.scores(held.views), train)],
        feval=loss,
        callbacks=[lightgbm.early_stopping(settings.patience, verbose=False), show],
    )
    run.progress("boosting", settings.rounds, settings.rounds)
    return booster, words


def _word_targets(examples: Examples) -> Array:
    """Mean log length, and the share of answers longer than each of some lengths: shape ``[n, 1 + levels]``."""
    cuts = np.unique(np.quantile(examples.all_lengths(), _SURVIVAL_LEVELS, method="inverted_cdf"))
    rows = []
    for own, more in zip(examples.lengths, examples.samples, strict=True):
        x = np.asarray([own, *more], dtype=np.float64)
        rows.append([np.log1p(x).mean(), *(x[:, None] > cuts).mean(axis=0)])
    return np.asarray(rows, dtype=np.float64)
