"""A small trace, and a predictor trained on it."""

from __future__ import annotations

from pathlib import Path

import pytest

from ecoserve.data import Trace, synthetic_trace
from ecoserve.predictor import BoostingSettings, LengthPredictor, train_predictor


@pytest.fixture(scope="session")
def trace() -> Trace:
    return synthetic_trace(900, seed=0)


@pytest.fixture(scope="session")
def boosted(trace: Trace, tmp_path_factory: pytest.TempPathFactory) -> LengthPredictor:
    folder = tmp_path_factory.mktemp("predictors") / "lightgbm"
    return train_predictor(trace, backend="lightgbm", output_dir=folder, settings=BoostingSettings(rounds=40))


@pytest.fixture(scope="session")
def boosted_dir(boosted: LengthPredictor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return boosted.save_pretrained(tmp_path_factory.mktemp("saved") / "lightgbm")
