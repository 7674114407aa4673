"""The guarantee of the conformal maps, through the distributions that predictors return."""

from __future__ import annotations

from bisect import bisect_left

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from ecoserve.lengths import LengthDistribution
from ecoserve.predictor.calibration import Calibration, GroupBounds, cdf_of, softmax
from ecoserve.predictor.calibration_fitting import fit_bounds, fit_calibration, quantiles
from ecoserve.predictor.conformal import LEVELS, ConformalMap, scores_of
from ecoserve.predictor.text import RequestView

Array = npt.NDArray[np.float64]
EDGES = np.array([0, 1, 4, 10, 30, 80, 200, 450, 800, 1300, 2000])
FINE = np.unique(np.concatenate([[0], np.geomspace(1, 2000, 70).astype(int)]))


def wrong_predictor(rng: np.random.Generator, n: int, edges: npt.NDArray[np.int64] = EDGES) -> tuple[Array, Array]:
    """Logits that know something of the length but are too sure and too low, and the lengths."""
    log_median = rng.normal(4.5, 0.8, n)
    lengths = np.clip(np.rint(np.exp(log_median + rng.normal(0.3, 0.7, n))), 1, 2000)
    middle = np.log((edges[:-1] + edges[1:] + 1) / 2)
    return -1.7 * (middle - log_median[:, None]) ** 2, lengths


def covered(cdf: Array, lengths: Array, level: float, edges: npt.NDArray[np.int64] = EDGES) -> float:
    return float((lengths <= quantiles(cdf, edges.astype(float), np.array([level]))[:, 0]).mean())


def test_coverage_is_at_least_the_level_and_hardly_more() -> None:
    rng = np.random.default_rng(0)
    n, trials = 199, 400
    seen: dict[float, list[float]] = {level: [] for level in LEVELS}
    plain: dict[float, list[float]] = {level: [] for level in LEVELS}
    for _ in range(trials):
        logits, lengths = wrong_predictor(rng, n + 200, FINE)
        cdf = cdf_of(softmax(logits))
        found = ConformalMap.fit(scores_of(cdf[:n], FINE, lengths[:n]))
        assert found.levels == LEVELS
        after = found.apply(cdf[n:], FINE)
        for level in LEVELS:
            seen[level].append(covered(after, lengths[n:], level, FINE))
            plain[level].append(covered(cdf[n:], lengths[n:], level, FINE))
    for level in LEVELS:
        # Each trial's coverage scatters through its n rows and its 200 new ones.
        slack = 4.0 * np.sqrt(level * (1 - level) * (1 / n + 1 / 200) / trials)
        assert np.mean(seen[level]) >= level - slack
        # Lowering within bins, and what a whole token more covers, cost a little.
        assert np.mean(seen[level]) <= level + 1 / (n + 1) + slack + 0.015
    assert np.mean(plain[0.9]) < 0.8


def test_without_lowering_the_bound_is_tight() -> None:
    rng = np.random.default_rng(1)
    n, trials = 49, 2000
    share = []
    for _ in range(trials):
        logits, lengths = wrong_predictor(rng, n + 1)
        scores = scores_of(cdf_of(softmax(logits)), EDGES, lengths)
        found = ConformalMap.fit(scores[:n], (0.9,))
        share.append(scores[n] < found.scores[0])
    slack = 4.0 * np.sqrt(0.09 / trials)
    assert 0.9 - slack <= np.mean(share) <= 0.9 + 1 / (n + 1) + slack


def test_a_map_of_all_fails_groups_and_maps_of_each_do_not() -> None:
    rng = np.random.default_rng(2)
    n = 4000
    characters = rng.integers(1, 1000, n)
    long_prompt = characters > 500
    middle = np.log((FINE[:-1] + FINE[1:] + 1) / 2)
    log_median = rng.normal(4.5, 0.6, n)
    # Short prompts: answers twice as long as said; long prompts: half as long.
    lengths = np.clip(
        np.rint(np.exp(log_median + np.where(long_prompt, -0.7, 0.7) + rng.normal(0, 0.4, n))), 1, FINE[-1]
    )
    logits = -2.0 * (middle - log_median[:, None]) ** 2
    views = [RequestView("x" * int(c)) for c in characters]
    half = n // 2
    found = fit_calibration(logits[:half], lengths[:half], FINE, views[:half], seed=0)
    assert found.bounds is not None
    assert len(found.bounds.bands) == 4
    by_group = cdf_of(found.probabilities(logits[half:], views[half:], FINE))
    by_all = cdf_of(found.probabilities(logits[half:], None, FINE))
    for group in (long_prompt[half:], ~long_prompt[half:]):
        assert covered(by_group[group], lengths[half:][group], 0.9, FINE) == pytest.approx(0.9, abs=0.03)
    assert covered(by_all[~long_prompt[half:]], lengths[half:][~long_prompt[half:]], 0.9, FINE) < 0.87
    assert covered(by_all[long_prompt[half:]], lengths[half:][long_prompt[half:]], 0.9, FINE) > 0.95


def test_small_bands_go_by_the_map_of_all_and_few_rows_bound_nothing() -> None:
    rng = np.random.default_rng(3)
    scores, characters = rng.random(700), np.where(np.arange(700) < 100, 10, 1000)
    bounds = fit_bounds(scores, characters, cut_at=np.array([10, 1000]))
    assert bounds.band_characters == (10,)
    assert bounds.bands[0] is None
    assert bounds.bands[1] is not None
    assert bounds.bands[1].rows == 600
    cdf = cdf_of(np.full((1, 10), 0.1))
    assert (bounds.apply(cdf, [RequestView("x")], EDGES) == bounds.whole.apply(cdf, EDGES)).all()
    assert (bounds.apply(cdf, [RequestView("x" * 99)], EDGES) == bounds.bands[1].apply(cdf, EDGES)).all()

    logits, lengths = wrong_predictor(rng, 120)
    assert fit_calibration(logits, lengths, EDGES, [RequestView("x")] * 120).bounds is None
    # 30 rows do not reach the 0.99 quantile: 31 * 0.99 > 30.
    assert ConformalMap.fit(scores[:30]).levels == LEVELS[:-1]


def test_levels_beyond_the_support_are_left_out() -> None:
    scores = np.concatenate([np.linspace(0.1, 0.6, 88), np.ones(12)])
    assert ConformalMap.fit(scores).levels == (0.1, 0.25, 0.5, 0.8)
    nothing = ConformalMap.fit(np.ones(50))
    assert nothing.levels == ()
    cdf = cdf_of(np.full((2, 10), 0.1))
    assert (nothing.apply(cdf, EDGES) == cdf).all()


def test_ties_are_passed_whole() -> None:
    # Four in ten answers have one token: their score is 0 whatever was predicted.
    cdf = cdf_of(np.tile(np.array([[0.1, 0.3, 0.6]]), (100, 1)))
    edges = np.array([0, 1, 50, 100])
    lengths = np.where(np.arange(100) < 40, 1, 60)
    found = ConformalMap.fit(scores_of(cdf, edges, lengths))
    after = LengthDistribution.from_weights(edges.tolist(), np.diff(found.apply(cdf[:1], edges))[0])
    assert after.quantile(0.25) == 1
    assert after.quantile(0.5) >= 60


rows = st.lists(st.floats(0.0, 1.0), min_size=1, max_size=300)
weights = st.lists(st.floats(0.0, 1.0).filter(lambda p: p == 0.0 or p > 1e-6), min_size=10, max_size=10)


@settings(max_examples=100, deadline=None)
@given(rows, weights.filter(lambda w: sum(w) > 1e-3), st.booleans())
def test_any_map_makes_a_distribution_whose_quantiles_reach_the_bounds(
    scores: list[float], shares: list[float], whole_tokens: bool
) -> None:
    found = ConformalMap.fit(scores)
    cdf = cdf_of(np.asarray([shares]) / sum(shares))
    after = found.apply(cdf, EDGES if whole_tokens else None)
    assert after[0, 0] == 0.0
    assert after[0, -1] == 1.0
    assert (np.diff(after) >= 0.0).all()
    before = LengthDistribution.from_weights(EDGES.tolist(), np.diff(cdf)[0])
    lengths = LengthDistribution.from_weights(EDGES.tolist(), np.diff(after)[0])
    for level, score in zip(found.levels, found.scores, strict=True):
        every = [1.0 - before.survival(n) for n in range(1, 2001)]
        bound = min(bisect_left(every, score - 1e-9) + 1, 2000)
        # Of what belongs into the last bin, its even spread decides.
        assert lengths.quantile(level) >= min(bound, EDGES[-2] + 1)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(130, 1500))
def test_probabilities_are_normalised_whatever_was_fitted(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    logits, lengths = wrong_predictor(rng, n)
    views = [RequestView("x" * int(c)) for c in rng.integers(0, 300, n)]
    found = fit_calibration(logits, lengths, EDGES, views, seed=1)
    assert Calibration.model_validate_json(found.model_dump_json()) == found
    p = found.probabilities(10.0 * logits[:50], views[:50], EDGES)
    assert (p >= 0.0).all()
    assert p.sum(axis=1) == pytest.approx(np.ones(min(50, n)))


def test_a_damaged_map_is_refused() -> None:
    whole = {"rows": 10, "levels": [0.5, 0.9], "scores": [0.4, 0.8]}
    assert ConformalMap.model_validate(whole).rows == 10
    for wrong in ({"scores": [0.4]}, {"scores": [0.8, 0.4]}, {"levels": [0.5, 1.0]}, {"scores": [0.0, 0.4]}):
        with pytest.raises(ValidationError):
            ConformalMap.model_validate({**whole, **wrong})
    with pytest.raises(ValidationError, match="2 bands"):
        GroupBounds.model_validate({"whole": whole, "band_characters": [5], "bands": [None]})
    with pytest.raises(ValidationError, match="ascend"):
        GroupBounds.model_validate({"whole": whole, "band_characters": [5, 5], "bands": [None] * 3})
