from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecoserve.errors import TraceError
from ecoserve.predictor.bins import Bins, BinSettings, soft_targets


@given(st.lists(st.integers(1, 4000), min_size=2, max_size=300), st.integers(2, 60))
def test_every_length_falls_into_the_bin_that_covers_it(lengths: list[int], count: int) -> None:
    if len(set(lengths)) < 2:
        lengths = [*lengths, max(lengths) + 1]
    bins = Bins.fit(lengths, BinSettings(bins=count))
    assert bins.edges[0] == 0
    assert all(a < b for a, b in zip(bins.edges, bins.edges[1:], strict=False))
    for length, k in zip(lengths, bins.index(lengths), strict=True):
        assert bins.edges[k] < length <= bins.edges[k + 1]
    assert bins.shares(lengths).sum() == pytest.approx(1.0)


def test_bins_hold_about_equal_numbers_of_lengths() -> None:
    lengths = np.random.default_rng(0).lognormal(5, 1, 20_000).astype(int) + 1
    bins = Bins.fit(lengths, BinSettings(bins=20))
    shares = np.bincount(bins.index(lengths), minlength=len(bins)) / len(lengths)
    assert shares[:19].min() > 0.04
    assert shares[:19].max() < 0.06


def test_a_cap_closes_the_last_bin_and_has_it_for_itself() -> None:
    lengths = [*range(1, 400), *[512] * 20]
    bins = Bins.fit(lengths)
    assert bins.edges[-2:] == (511, 512)


def test_without_a_cap_there_is_room_above_the_largest_length_seen() -> None:
    bins = Bins.fit(list(range(1, 1001)), BinSettings(bins=10, headroom=0.1))
    assert bins.edges[-2:] == (1000, 1100)
    assert Bins.fit(list(range(1, 1001)), BinSettings(bins=10, upper=4096)).edges[-1] == 4096


def test_lengths_above_a_stated_upper_one_count_to_the_last_bin() -> None:
    bins = Bins.fit([10, 20, 30, 500], BinSettings(bins=3, upper=100))
    assert bins.index([500])[0] == len(bins) - 1


def test_nothing_to_predict_is_said() -> None:
    with pytest.raises(TraceError, match="nothing to predict"):
        Bins.fit([7] * 200, BinSettings(upper=7))
    with pytest.raises(TraceError, match="no lengths"):
        Bins.fit([])


def test_all_samples_of_a_prompt_count_alike() -> None:
    bins = Bins((0, 10, 20, 30))
    target = soft_targets(bins, [5], [[15, 15, 25]], [False])
    assert target.tolist() == [[0.25, 0.5, 0.25]]


def test_a_censored_answer_says_only_that_it_is_longer() -> None:
    bins = Bins((0, 10, 20, 30))
    target = soft_targets(bins, [15, 5, 15, 25], [[], [], [], []], [True, False, False, False])
    assert target[0, 0] == 0
    assert target[0, 1] > 0
    assert target[0, 2] > 0
    assert target[0].sum() == pytest.approx(1.0)
    assert target[2].tolist() == [0, 1, 0]


@given(st.floats(0.1, 5.0), st.integers(1, 100))
def test_smoothing_keeps_the_mass_and_the_place(smoothing: float, length: int) -> None:
    bins = Bins(tuple(range(0, 101, 10)))
    target = soft_targets(bins, [length], [[]], [False], smoothing=smoothing)
    assert target.sum() == pytest.approx(1.0, abs=1e-5)
    assert target[0].argmax() == bins.index([length])[0]
    assert (target > 0).sum() > 1 or smoothing < 0.3
