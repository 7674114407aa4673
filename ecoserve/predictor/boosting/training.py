"""Settings and training of the LightGBM backend."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from ecoserve.predictor.bins import Bins
from ecoserve.predictor.boosting.features import feature_names, feature_rows
from ecoserve.predictor.boosting.words import WordModel
from ecoserve.predictor.calibration import cross_entropy, softmax
from ecoserve.predictor.config import BackendSettings
from ecoserve.predictor.examples import Examples
from ecoserve.predictor.runtime import Progress

Array = npt.NDArray[np.float64]
#: Lengths at which the word model predicts survival, as quantiles of the training lengths.
_SURVIVAL_LEVELS = np.linspace(0, 1, 13)[1:-1]


class BoostingSettings(BackendSettings):
    """Hyperparameters of the LightGBM backend."""

    rounds: int = Field(default=60, ge=1, le=5000, description="boosting rounds at most; each grows one tree per bin")
    learning_rate: float = Field(default=0.1, gt=0, le=1, description="shrinkage of each round")
    leaves: int = Field(default=7, ge=2, le=4096, description="leaves per tree")
    min_rows_in_leaf: int = Field(default=50, ge=1, description="rows in a leaf at least")
    terms: int = Field(default=20_000, ge=10, description="words and pairs of words kept")
    ridge: float = Field(default=1.0, gt=0, description="L2 penalty of the linear model on words")
    patience: int = Field(default=10, ge=1, description="rounds without a better held-out loss before it stops")


def train_boosting(
    fit: Examples, held: Examples, bins: Bins, settings: BoostingSettings, *, seed: int, progress: Progress
) -> tuple[Any, WordModel]:
    """Train on ``fit``; ``held`` chooses the round. Returns LightGBM's booster and the word model.

    The booster's raw scores are added to the logarithm of ``bins.shares(fit.all_lengths())``.
    """
    progress("reading words", 0, settings.rounds)
    words, fit_scores = WordModel.fit(
        fit.views, _word_targets(fit), terms=settings.terms, ridge=settings.ridge, seed=seed
    )
    parameters = bool(fit.parameters)
    booster = boost(
        (feature_rows(fit.views, fit_scores, parameters=parameters), fit.targets(bins).astype(np.float64)),
        (
            feature_rows(held.views, words.scores(held.views), parameters=parameters),
            held.targets(bins).astype(np.float64),
        ),
        np.log(bins.shares(fit.all_lengths())),
        settings,
        seed=seed,
        progress=progress,
        names=feature_names(fit_scores.shape[1], parameters=parameters),
    )
    return booster, words


def boost(
    fit: tuple[Array, Array],
    held: tuple[Array, Array],
    prior: Array,
    settings: BoostingSettings,
    *,
    seed: int,
    progress: Progress,
    names: list[str] | None = None,
) -> Any:
    """Boost trees, one per bin and round, whose raw scores are added to ``prior``; returns LightGBM's booster.

    LightGBM's own multi-class objective takes one class a row; this one is the cross-entropy against soft targets. One
    thread: on a busy machine, threads that wait for each other over so few rows took fourteen times as long.

    Args:
        fit: features ``[n, F]`` and distributions over the bins ``[n, K]`` to learn from.
        held: the same of the rows that choose the round.
        prior: logarithm of each bin's share, ``[K]``.
        names: of the features.
    """
    import lightgbm

    targets, held_targets = fit[1], held[1]
    k = len(prior)

    def objective(raw: Array, _: Any) -> tuple[Array, Array]:
        p = softmax(raw.reshape(len(targets), k))
        return p - targets, np.maximum(p * (1.0 - p), 1e-6)

    def loss(raw: Array, _: Any) -> tuple[str, float, bool]:
        return "cross_entropy", cross_entropy(raw.reshape(len(held_targets), k), held_targets), False

    def show(env: Any) -> None:
        progress("boosting", env.iteration + 1, settings.rounds)

    def data(features: Array, reference: Any = None) -> Any:
        return lightgbm.Dataset(
            features,
            np.zeros(len(features)),
            init_score=np.tile(prior, (len(features), 1)),
            feature_name=names or "auto",
            reference=reference,
            free_raw_data=False,
        )

    train = data(fit[0])
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
        valid_sets=[data(held[0], train)],
        feval=loss,
        callbacks=[lightgbm.early_stopping(settings.patience, verbose=False), show],
    )
    progress("boosting", settings.rounds, settings.rounds)
    return booster


def _word_targets(examples: Examples) -> Array:
    """Mean log length, and the share of answers longer than each of some lengths: shape ``[n, 1 + levels]``."""
    cuts = np.unique(np.quantile(examples.all_lengths(), _SURVIVAL_LEVELS, method="inverted_cdf"))
    rows = []
    for own, more in zip(examples.lengths, examples.samples, strict=True):
        x = np.asarray([own, *more], dtype=np.float64)
        rows.append([np.log1p(x).mean(), *(x[:, None] > cuts).mean(axis=0)])
    return np.asarray(rows, dtype=np.float64)
