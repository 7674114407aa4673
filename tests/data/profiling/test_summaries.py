"""Moments, percentiles, their intervals and what is cut off, against NumPy, SciPy and known laws."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from profiled import skewed, table_of, trace_of
from scipy import stats

from ecoserve.data.profiling import profile_trace
from ecoserve.data.profiling.summaries import PERCENTILES, count, design_effect, interval, quantile, summarise

LENGTHS = st.lists(st.integers(1, 5000), min_size=1, max_size=60)


@given(LENGTHS)
@settings(max_examples=200, deadline=None)
def test_percentiles_are_numpys(lengths: list[int]) -> None:
    found = summarise(count(np.asarray(lengths)))
    for name, q in PERCENTILES.items():
        assert getattr(found, name) == np.quantile(lengths, q, method="inverted_cdf"), name
    assert (found.min, found.max, found.n) == (min(lengths), max(lengths), len(lengths))


@given(LENGTHS)
@settings(max_examples=100, deadline=None)
def test_moments_are_numpys(lengths: list[int]) -> None:
    found = summarise(count(np.asarray(lengths)))
    assert found.mean == pytest.approx(np.mean(lengths))
    assert found.sd == pytest.approx(np.std(lengths, ddof=1) if len(lengths) > 1 else 0.0, abs=1e-6)
    if np.ptp(lengths) > 0:
        assert found.skew == pytest.approx(stats.skew(lengths), abs=1e-6)
    else:
        assert found.skew is None


def test_percentiles_of_a_whole_profile() -> None:
    lengths = skewed(5000)
    found = profile_trace(trace_of(lengths)).response
    assert [found.p50, found.p90, found.p99] == [
        np.quantile(lengths, q, method="inverted_cdf") for q in (0.5, 0.9, 0.99)
    ]
    assert (found.km_p50, found.censored_share) == (None, 0.0)


def test_cut_off_answers_are_corrected_as_scipy_does() -> None:
    rng = np.random.default_rng(3)
    wanted, limit = skewed(3000, seed=4), rng.integers(50, 900, 3000)
    lengths, cut = np.minimum(wanted, limit), wanted > limit
    found = summarise(count(lengths, cut))
    reference = stats.ecdf(stats.CensoredData.right_censored(lengths.astype(float), cut)).cdf
    for name, q in (("km_p50", 0.5), ("km_p90", 0.9), ("km_p95", 0.95)):
        expected = reference.quantiles[np.flatnonzero(reference.probabilities >= q - 1e-12)[0]]
        assert getattr(found, name) == expected, name
    # What they would have been without a limit; counted as they are, they are far too short.
    assert found.km_p90 == pytest.approx(np.quantile(wanted, 0.9), rel=0.1)
    assert found.p90 is not None
    assert found.p90 < 0.9 * np.quantile(wanted, 0.9)
    assert found.censored_share == pytest.approx(cut.mean())


def test_a_quantile_that_lies_beyond_every_limit_is_not_given() -> None:
    lengths = np.minimum(skewed(1000), 250)
    found = summarise(count(lengths, lengths == 250))
    assert found.km_p50 is not None
    assert (found.km_p90, found.p90) == (None, 250)


@pytest.mark.parametrize("q", [0.5, 0.9])
def test_an_interval_holds_the_true_quantile_in_19_of_20_traces(q: float) -> None:
    true = np.exp(np.log(200) + 0.6 * stats.norm.ppf(q))
    hits = 0
    for seed in range(600):
        low, high = interval(count(skewed(300, seed=seed)), q)
        hits += low <= round(true) <= high
    assert 0.93 <= hits / 600 <= 0.995


def test_an_interval_covers_when_answers_come_in_clusters() -> None:
    """Ten answers a conversation that are nearly the same: as many intervals hold the median as should."""
    hits = naive = 0
    for seed in range(300):
        rng = np.random.default_rng(seed)
        common = np.repeat(rng.lognormal(np.log(200), 0.5, 60), 10)
        lengths = np.maximum(1, np.round(common * rng.lognormal(0, 0.1, 600))).astype(int)
        clusters = np.repeat(np.arange(60), 10)
        counts = count(lengths)
        low, high = interval(counts, 0.5, design_effect(lengths, clusters))
        hits += low <= 200 <= high
        low, high = interval(counts, 0.5)
        naive += low <= 200 <= high
    assert hits / 300 >= 0.92
    assert naive / 300 < 0.7


def test_design_effect_of_copies_is_their_number() -> None:
    lengths, copies = skewed(2000), 5
    assert design_effect(np.repeat(lengths, copies), np.repeat(np.arange(2000), copies)) == pytest.approx(
        copies, rel=0.01
    )
    assert design_effect(lengths, np.arange(2000)) == 1.0
    assert design_effect(np.asarray([7]), np.asarray([0])) == 1.0
    assert design_effect(np.full(50, 7), np.zeros(50, dtype=int)) == 1.0


def test_no_lengths_are_no_figures() -> None:
    found = summarise(count(np.zeros(0, dtype=int)))
    assert (found.n, found.mean, found.p50, found.km_p50) == (0, None, None, None)


def test_quantile_of_counts_takes_the_cut_off_as_they_are() -> None:
    table = table_of([1, 2, 3, 4], censored=[False, False, True, True])
    assert [quantile(count(table.response, table.censored), q) for q in (0.25, 0.5, 0.75, 1.0)] == [1, 2, 3, 4]


def test_an_absurd_length_is_counted_like_any_other() -> None:
    lengths, cut = np.asarray([3, 2**30, 3, 8]), np.asarray([False, True, True, False])
    counts = count(lengths, cut)
    assert (counts.lengths.tolist(), counts.ended.tolist(), counts.cut.tolist()) == (
        [3, 8, 2**30],
        [1, 1, 0],
        [1, 0, 1],
    )
    plain = count(lengths[[0, 2, 3]], cut[[0, 2, 3]])
    assert (plain.lengths.tolist(), plain.ended.tolist(), plain.cut.tolist()) == ([3, 8], [1, 1], [1, 0])
