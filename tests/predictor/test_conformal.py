"""The guarantee of the bounds, as predictors give them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from ecoserve.errors import ConfigError
from ecoserve.lengths import LengthDistribution
from ecoserve.predictor import LengthPredictor, load_predictor
from ecoserve.predictor.calibration import Calibration, cdf_of, softmax
from ecoserve.predictor.calibration_fitting import fit_calibration
from ecoserve.predictor.conformal import BOUND_LEVELS, GroupBounds, scores_of
from ecoserve.predictor.text import RequestView

Array = npt.NDArray[np.float64]
EDGES = np.array([0, 1, 4, 10, 30, 80, 200, 450, 800, 1300, 2000])
FINE = np.unique(np.concatenate([[0], np.geomspace(1, 2000, 70).astype(int)]))


def wrong_predictor(rng: np.random.Generator, n: int, edges: npt.NDArray[np.int64] = EDGES) -> tuple[Array, Array]:
    """CDFs that know something of the length but are too sure and too low, and the lengths."""
    log_median = rng.normal(4.5, 0.8, n)
    lengths = np.clip(np.rint(np.exp(log_median + rng.normal(0.3, 0.7, n))), 1, 2000)
    middle = np.log((edges[:-1] + edges[1:] + 1) / 2)
    return cdf_of(softmax(-1.7 * (middle - log_median[:, None]) ** 2)), lengths


def asked(characters: npt.ArrayLike) -> list[RequestView]:
    return [RequestView("x" * int(c)) for c in np.asarray(characters)]


@pytest.mark.parametrize("edges", [EDGES, FINE])
def test_coverage_is_at_least_the_level_and_hardly_more(edges: npt.NDArray[np.int64]) -> None:
    rng = np.random.default_rng(0)
    n, new, trials = 199, 200, 300
    views = asked(np.ones(n))
    seen: dict[float, list[float]] = {level: [] for level in BOUND_LEVELS}
    for _ in range(trials):
        cdf, lengths = wrong_predictor(rng, n + new, edges)
        found = GroupBounds.fit(cdf[:n], edges, lengths[:n], views)
        assert found.levels == BOUND_LEVELS
        for level in BOUND_LEVELS:
            bounds = np.asarray(found.upper(cdf[n:], edges, asked(np.ones(new)), level))
            seen[level].append(float((lengths[n:] <= bounds).mean()))
    for level in BOUND_LEVELS:
        # Each trial's coverage scatters through its n rows and its new ones.
        slack = 4.0 * np.sqrt(level * (1 - level) * (1 / n + 1 / new) / trials)
        assert level - slack <= np.mean(seen[level]) <= level + 1 / (n + 1) + slack
    assert np.std(seen[0.9]) > 0.02


def test_each_band_is_covered_where_a_bound_of_all_would_fail() -> None:
    rng = np.random.default_rng(2)
    n, new, trials = 1200, 600, 60
    middle = np.log((FINE[:-1] + FINE[1:] + 1) / 2)
    by_band: list[list[float]] = [[] for _ in range(4)]
    by_all: list[list[float]] = [[] for _ in range(4)]
    for _ in range(trials):
        characters = rng.integers(1, 1000, n + new)
        log_median = rng.normal(4.5, 0.6, n + new)
        # Short prompts: answers twice as long as said; long prompts: half as long.
        off = np.where(characters > 500, -0.7, 0.7) + rng.normal(0, 0.4, n + new)
        lengths = np.clip(np.rint(np.exp(log_median + off)), 1, FINE[-1])
        cdf = cdf_of(softmax(-2.0 * (middle - log_median[:, None]) ** 2))
        views = asked(characters)
        found = GroupBounds.fit(cdf[:n], FINE, lengths[:n], views[:n])
        assert len(found.bands) == 4
        band = np.searchsorted(found.band_characters, characters[n:])
        alike = found.model_copy(update={"bands": (None,) * 4})
        for bounds, into in ((found, by_band), (alike, by_all)):
            within = lengths[n:] <= bounds.upper(cdf[n:], FINE, views[n:], 0.9)
            for b in range(4):
                into[b].append(float(within[band == b].mean()))
    slack = 4.0 * np.sqrt(0.09 * (4 / n + 4 / new) / trials)
    for b in range(4):
        assert 0.9 - slack <= np.mean(by_band[b]) <= 0.9 + 4 / n + slack
    assert np.mean(by_all[0]) < 0.85
    assert np.mean(by_all[3]) > 0.95


def test_small_bands_go_by_all_rows_and_levels_end_where_rows_or_bins_do() -> None:
    rng = np.random.default_rng(3)
    cdf, lengths = wrong_predictor(rng, 700)
    characters = np.where(np.arange(700) < 100, 10, 1000)
    characters[:360] = np.where(np.arange(360) < 350, 10, 1000)
    found = GroupBounds.fit(cdf, EDGES, lengths, asked(characters))
    assert found.band_characters == (10,)
    assert [s.rows if s else None for s in found.bands] == [350, 350]
    lopsided = GroupBounds.fit(cdf, EDGES, lengths, asked(np.where(np.arange(700) < 150, 10, 1000 + np.arange(700))))
    assert len(lopsided.bands) == 2
    few = found.model_copy(update={"bands": (None, found.bands[1])})
    assert few.upper(cdf[:5], EDGES, asked([1] * 5), 0.9) == found.model_copy(
        update={"bands": (found.whole, None)}
    ).upper(cdf[:5], EDGES, asked([1] * 5), 0.9)

    # 30 rows do not reach the 0.99 quantile: 31 * 0.99 > 30.
    assert GroupBounds.fit(cdf[:30], EDGES, lengths[:30], asked([1] * 30)).levels == BOUND_LEVELS[:-1]
    beyond = np.where(np.arange(200) < 30, 5000, lengths[:200])
    short = GroupBounds.fit(cdf[:200], EDGES, beyond, asked([1] * 200))
    assert short.levels == (0.5, 0.8)
    with pytest.raises(ConfigError, match=r"no bound at 0\.9; this predictor's levels: 0\.5, 0\.8"):
        short.upper(cdf, EDGES, asked([1] * 700), 0.9)


def test_ties_are_covered_whole() -> None:
    # Four in ten answers have one token: their score is 0 whatever was predicted.
    edges = np.array([0, 1, 50, 100])
    cdf = cdf_of(np.tile(np.array([[0.1, 0.3, 0.6]]), (100, 1)))
    lengths = np.where(np.arange(100) < 60, 1, 60)
    found = GroupBounds.fit(cdf, edges, lengths, asked([1] * 100))
    assert found.upper(cdf[:1], edges, asked([1]), 0.5) == [1]
    assert found.upper(cdf[:1], edges, asked([1]), 0.8) == [60]


shares = st.lists(st.floats(0.0, 1.0).filter(lambda p: p == 0.0 or p > 1e-6), min_size=10, max_size=10)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(1, 2300), min_size=5, max_size=60), shares.filter(lambda w: sum(w) > 1e-3))
def test_a_bound_is_the_first_length_above_the_score(lengths: list[int], weights: list[float]) -> None:
    n = len(lengths)
    cdf = np.repeat(cdf_of(np.asarray([weights]) / sum(weights)), n, axis=0)
    found = GroupBounds.fit(cdf, EDGES, lengths, asked([1] * n))
    assert GroupBounds.model_validate_json(found.model_dump_json()) == found
    predicted = LengthDistribution.from_weights(EDGES.tolist(), np.diff(cdf)[0])
    for level, score in zip(found.levels, found.whole.at, strict=True):
        [bound] = found.upper(cdf[:1], EDGES, asked([1]), level)
        assert 1 <= bound <= 2000
        assert bound == 2000 or 1.0 - predicted.survival(bound) > score - 1e-9
        assert bound == 1 or 1.0 - predicted.survival(bound - 1) <= score + 1e-4
        # On the rows themselves: as many as the rank says, or more where scores tie.
        assert sum(length <= bound for length in lengths) >= np.ceil(round((n + 1) * level, 9))


def test_bounds_know_neither_temperature_nor_map_nor_other_answers() -> None:
    rng = np.random.default_rng(5)
    cdf, lengths = wrong_predictor(rng, 400, FINE)
    logits = np.log(np.maximum(np.diff(cdf), 1e-12))
    views = asked(rng.integers(1, 50, 400))
    alone = fit_calibration(logits, [[n] for n in lengths], FINE, views)
    others = fit_calibration(logits, [[n, 3.0 * n, 1.0] for n in lengths], FINE, views)
    assert alone.map != others.map
    assert alone.bounds is not None
    assert alone.bounds == others.bounds
    assert alone.bounds.whole.at[2] == pytest.approx(np.sort(scores_of(cdf, FINE, lengths))[360], abs=1e-9)


def test_a_predictor_gives_its_bounds(predictor: LengthPredictor) -> None:
    bounds = predictor.calibration.bounds
    assert bounds is not None
    texts = ["List three pets.", "Explain caches to a child in two sentences."]
    found = predictor.upper_bounds(texts)
    assert found == predictor.upper_bounds(texts, 0.9)
    views_of = cdf_of(softmax(predictor.logits([RequestView(t) for t in texts])))
    assert found == bounds.upper(views_of, predictor.config.edges, asked([len(t) for t in texts]), 0.9)
    assert all(a <= b for a, b in zip(predictor.upper_bounds(texts, 0.5), found, strict=True))
    assert predictor.upper_bounds([]) == []
    with pytest.raises(ConfigError, match=r"no bound at 0\.7; this predictor's levels: 0\.5, 0\.8, 0\.9"):
        predictor.upper_bounds(texts, 0.7)
    without = type(predictor).__new__(type(predictor))
    without.__dict__.update({**predictor.__dict__, "calibration": Calibration()})
    with pytest.raises(ConfigError, match="has no bounds"):
        without.upper_bounds(texts)


def test_bounds_are_saved_with_the_checkpoint(boosted: LengthPredictor, boosted_dir: object) -> None:
    again = load_predictor(str(boosted_dir))
    assert again.upper_bounds(["List three pets."]) == boosted.upper_bounds(["List three pets."])


def test_damaged_bounds_are_refused() -> None:
    scores = {"rows": 10, "at": [0.4, 0.8]}
    whole = {"levels": [0.5, 0.9], "whole": scores}
    assert GroupBounds.model_validate(whole).levels == (0.5, 0.9)
    for wrong, says in (
        ({"band_characters": [5]}, "2 bands"),
        ({"band_characters": [5, 5], "bands": [None] * 3}, "bands must ascend"),
        ({"levels": [0.9, 0.5]}, "levels must ascend"),
        ({"levels": [0.5, 0.9, 0.95]}, "fewer scores"),
        ({"whole": {"rows": 10, "at": [0.8, 0.4]}}, "scores must ascend"),
        ({"whole": {"rows": 10, "at": [0.4, 1.0]}}, "scores must ascend"),
    ):
        with pytest.raises(ValidationError, match=says):
            GroupBounds.model_validate({**whole, **wrong})
