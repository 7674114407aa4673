"""A small trace, and a predictor trained on it."""

from __future__ import annotations

from pathlib import Path

import pytest

from ecoserve.data import Trace, synthetic_trace
from ecoserve.predictor import BoostingSettings, train_predictor


@pytest.fixture(scope="session")
def trace() -> Trace:
    return synthetic_trace(900, seed=0)


@pytest.fixture(scope="session")
def boosted_dir(trace: Trace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("predictors") / "lightgbm"
    train_predictor(trace, backend="lightgbm", output_dir=folder, settings=BoostingSettings(rounds=40))
    return folder
