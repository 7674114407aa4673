from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from ecoserve.lengths import LengthDistribution
from ecoserve.predictor.calibration import Calibration, cdf_of, cross_entropy, fit_temperature, softmax
from ecoserve.predictor.calibration_fitting import choose, quantiles


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


def test_isotonic_is_chosen_where_no_temperature_helps() -> None:
    rng = np.random.default_rng(4)
    edges = np.arange(0.0, 1001.0, 50.0)
    centre = rng.uniform(200, 800, 1500)
    logits = -((edges[1:] - 25 - centre[:, None]) ** 2) / (2 * 60.0**2)
    # Far to the right of what is said, and never to the left: no sharpness of the same shape is right.
    lengths = np.clip(np.rint(centre + rng.exponential(120, 1500)), 1, 1000)
    found = choose(logits, lengths, edges)
    assert found.method == "isotonic"
    assert found.pinball["isotonic"] < found.pinball["temperature"]
    before = cdf_of(softmax(logits))
    off_before = abs((lengths <= quantiles(before, edges, np.array([0.5]))[:, 0]).mean() - 0.5)
    after = found.before_bounds(logits)
    off_after = abs((lengths <= quantiles(after, edges, np.array([0.5]))[:, 0]).mean() - 0.5)
    assert off_after < 0.1 < off_before


def test_the_simplest_way_stays_where_nothing_is_wrong() -> None:
    rng = np.random.default_rng(5)
    edges = np.arange(0.0, 401.0, 20.0)
    logits = rng.normal(0, 1.5, (1500, 20))
    bins = np.array([rng.choice(20, p=p) for p in softmax(logits)])
    lengths = bins * 20 + rng.integers(1, 21, 1500)
    found = choose(logits, lengths.astype(float), edges)
    assert found.method == "temperature"
    assert found.temperature == pytest.approx(1.0, abs=0.06)
    assert set(found.pinball) == {"softmax", "temperature", "isotonic"}


def test_files_of_older_checkpoints_load_and_mean_the_same() -> None:
    old = '{"method": "temperature", "temperature": 1.25, "rows": 9, "nll_before": 3.2, "nll_after": 3.1}'
    calibration = Calibration.model_validate_json(old)
    logits = np.array([[0.3, 1.0, -2.0]])
    assert (calibration.probabilities(logits) == softmax(logits / 1.25)).all()
    with pytest.raises(ValidationError, match="isotonic"):
        Calibration.model_validate_json('{"method": "isotonic"}')
    with pytest.raises(ValidationError, match="ascend"):
        Calibration(method="isotonic", isotonic=((0.0, 0.0), (0.5, 0.5), (0.5, 0.7), (1.0, 1.0)))


def test_quantiles_are_those_of_the_distribution() -> None:
    rng = np.random.default_rng(6)
    edges = np.array([0, 1, 3, 10, 11, 40])
    p = rng.dirichlet(np.full(5, 0.3), 200)
    levels = np.array([0.1, 0.5, 0.9])
    found = quantiles(cdf_of(p), edges.astype(float), levels)
    lengths = [LengthDistribution.from_weights(edges.tolist(), row) for row in p]
    assert found.tolist() == [[d.quantile(float(q)) for q in levels] for d in lengths]
