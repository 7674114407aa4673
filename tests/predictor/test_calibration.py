from __future__ import annotations

import numpy as np
import pytest

from ecoserve.predictor.calibration import Calibration, cross_entropy, fit_temperature, softmax


@pytest.mark.parametrize("factor", [0.5, 1.0, 3.0])
def test_temperature_undoes_over_and_under_confidence(factor: float) -> None:
    rng = np.random.default_rng(0)
    true_logits = rng.normal(0, 1.5, (4000, 8))
    drawn = np.array([rng.choice(8, p=p) for p in softmax(true_logits)])
    found = fit_temperature(true_logits * factor, np.eye(8)[drawn])
    assert found.temperature == pytest.approx(factor, rel=0.08)
    assert found.rows == 4000
    assert found.nll_after is not None
    assert found.nll_before is not None
    assert found.nll_after <= found.nll_before


def test_probabilities_follow_the_temperature() -> None:
    logits = np.log([[0.7, 0.2, 0.1]])
    assert Calibration().probabilities(logits)[0] == pytest.approx([0.7, 0.2, 0.1])
    assert Calibration(temperature=4.0).probabilities(logits)[0, 0] < 0.5
    assert Calibration(temperature=0.25).probabilities(logits)[0, 0] > 0.95


def test_cross_entropy_is_stable_and_least_at_the_truth() -> None:
    targets = np.array([[0.5, 0.25, 0.25]])
    entropy = -(targets * np.log(targets)).sum()
    assert cross_entropy(np.log(targets), targets) == pytest.approx(entropy)
    assert cross_entropy(np.array([[0.0, 0.0, 0.0]]), targets) > entropy
    assert np.isfinite(cross_entropy(np.array([[1e4, -1e4, 0.0]]), targets))
