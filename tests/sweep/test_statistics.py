"""Spread over seeds and paired differences, against values worked out by hand and against scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from ecoserve.sweep.statistics import paired, spread, t_interval

finite = st.floats(min_value=-1e6, max_value=1e6, allow_nan=False)


def test_spread_of_three_seeds():
    s = spread([3.0, 1.0, 2.0])
    assert s is not None
    assert (s.n, s.mean, s.low, s.high) == (3, 2.0, 1.0, 3.0)
    assert spread([]) is None


def test_t_interval_is_scipys():
    values = [1.0, 2.0, 4.0, 8.0]
    expected = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert t_interval(values) == pytest.approx((expected.low, expected.high))
    assert t_interval([1.0]) is None


def test_pairing_removes_what_the_seed_does_to_both():
    # The seeds differ by a factor of ten, the setting by 5 % at each of them.
    theirs = {0: 10.0, 1: 50.0, 2: 100.0}
    ours = {seed: value * factor for (seed, value), factor in zip(theirs.items(), (0.949, 0.95, 0.951), strict=True)}
    c = paired(ours, theirs, "lower")
    assert c is not None
    assert c.verdict == "better"
    assert c.relative == pytest.approx(-0.05)
    assert c.low is not None
    assert c.high is not None
    assert c.low < -0.05 < c.high < 0
    assert paired(ours, theirs, "higher").verdict == "worse"


def test_no_verdict_when_the_interval_holds_zero():
    c = paired({0: 1.0, 1: 2.0, 2: 3.0}, {0: 2.0, 1: 2.0, 2: 2.0}, "lower")
    assert c is not None
    assert c.verdict == "no difference shown"
    assert not c.shown


def test_a_sure_but_tiny_difference_does_not_matter():
    theirs = {0: 100.0, 1: 100.0, 2: 100.0}
    ours = {0: 99.50, 1: 99.51, 2: 99.49}
    assert paired(ours, theirs, "lower").verdict == "no difference shown"
    assert paired({seed: v - 1.0 for seed, v in ours.items()}, theirs, "lower").verdict == "better"


def test_one_seed_gives_no_verdict_and_no_interval():
    c = paired({7: 1.0}, {7: 2.0}, "lower")
    assert c is not None
    assert (c.n, c.verdict, c.low, c.high, c.relative) == (1, "too few seeds", None, None, -0.5)


def test_only_shared_seeds_count():
    c = paired({0: 1.0, 1: 1.0, 2: 1.0, 9: 99.0}, {0: 2.0, 1: 2.1, 2: 1.9, 8: 0.0}, "lower")
    assert c is not None
    assert c.n == 3
    assert c.ours == 1.0
    assert paired({0: 1.0}, {1: 1.0}, "lower") is None


def test_a_baseline_of_zero_falls_back_to_absolute_differences():
    c = paired({0: 5.0, 1: 6.0, 2: 5.5}, {0: 0.0, 1: 0.0, 2: 0.0}, "lower")
    assert c is not None
    assert c.relative is None
    assert c.verdict == "worse"
    assert c.low == pytest.approx(t_interval([5.0, 6.0, 5.5])[0])


def test_identical_runs_are_no_difference():
    same = {0: 3.0, 1: 4.0}
    assert paired(same, same, "lower").verdict == "no difference shown"


def test_noise_is_seldom_called_a_difference_and_five_percent_nearly_always():
    """Issue of false alarms: 0.5 % noise on equal settings, and a true 5 % difference under the same noise."""
    rng = np.random.default_rng(1)
    false, found = 0, 0
    for _ in range(200):
        base = dict(enumerate(100 * (1 + 0.005 * rng.standard_normal(5))))
        same = dict(enumerate(100 * (1 + 0.005 * rng.standard_normal(5))))
        five = dict(enumerate(105 * (1 + 0.005 * rng.standard_normal(5))))
        false += paired(same, base, "lower").shown
        found += paired(five, base, "lower").verdict == "worse"
    assert false <= 4  # the smallest difference that matters makes it rarer than the interval's 5 %
    assert found == 200


@given(st.dictionaries(st.integers(0, 9), finite, min_size=1), st.dictionaries(st.integers(0, 9), finite, min_size=1))
def test_comparison_is_consistent(ours, theirs):
    c = paired(ours, theirs, "lower")
    if not ours.keys() & theirs.keys():
        assert c is None
        return
    assert c.difference == pytest.approx(c.ours - c.theirs, rel=1e-6, abs=1e-6)
    if c.low is not None:
        assert c.low <= c.high
        center = c.difference if c.relative is None else c.relative
        assert c.low <= center + abs(center) * 1e-9 + 1e-9
    if c.shown:
        assert c.low > 0 or c.high < 0
    assert not math.isnan(c.difference)
