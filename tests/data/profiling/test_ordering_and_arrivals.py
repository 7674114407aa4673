"""Waits by brute force, arrivals of known processes, and what prompt length and a predictor tell."""

from __future__ import annotations

import numpy as np
import pytest
from profiled import skewed, table_of, trace_of

from ecoserve.data.profiling import Predictions, profile_trace
from ecoserve.data.profiling.over_time import arrivals, busiest, dispersion, piece
from ecoserve.data.profiling.profile import error_curve
from ecoserve.data.profiling.same_prompt import measure, tau
from ecoserve.data.profiling.worth import concentration, guess_by_band, predicted, prompt_length
from ecoserve.errors import TraceError
from ecoserve.lengths import LengthDistribution
from ecoserve.predictor.evaluation import score


def mean_wait(lengths: np.ndarray) -> float:
    """Of requests served one after the other in this order."""
    return float(np.concatenate(([0], np.cumsum(lengths)[:-1])).mean())


def test_the_wait_saved_is_that_of_a_queue() -> None:
    lengths = skewed(4000)
    by_arrival = mean_wait(lengths)
    assert concentration(lengths, lengths) == pytest.approx(1 - mean_wait(np.sort(lengths)) / by_arrival, abs=0.02)
    guess = lengths * np.random.default_rng(1).lognormal(0, 0.7, 4000)
    saved = 1 - mean_wait(lengths[np.argsort(guess)]) / by_arrival
    assert concentration(lengths, guess) == pytest.approx(saved, abs=0.02)
    assert concentration(lengths, np.random.default_rng(2).random(4000)) == pytest.approx(0, abs=0.03)
    assert concentration(lengths, -lengths) == pytest.approx(-concentration(lengths, lengths))


def test_true_lengths_save_their_gini_coefficient() -> None:
    lengths = np.asarray([1, 2, 3, 10])
    gini = np.abs(lengths[:, None] - lengths[None, :]).mean() / (2 * lengths.mean())
    assert concentration(lengths, lengths) == pytest.approx(gini)
    # Nothing is known: nothing is saved.
    assert concentration(lengths, np.ones(4)) == 0.0


def test_a_poisson_process_is_one_and_a_clock_is_not() -> None:
    gaps = np.random.default_rng(0).exponential(0.1, 20_000)
    found, starts, rates = arrivals(table_of([10] * 20_000, arrival_s=np.cumsum(gaps)))
    assert found is not None
    assert found.gap_cv == pytest.approx(1.0, abs=0.03)
    assert found.dispersion_1s == pytest.approx(1.0, abs=0.1)
    assert found.dispersion_10s == pytest.approx(1.0, abs=0.25)
    assert found.rate_rps == pytest.approx(10.0, rel=0.03)
    assert found.output_tokens_per_s == pytest.approx(100.0, rel=0.03)
    assert len(starts) == len(rates) <= 241
    assert np.mean(rates[:-1]) == pytest.approx(10.0, rel=0.03)
    clock, *_ = arrivals(table_of([10] * 1000, arrival_s=np.arange(1000) / 10 + 0.01))
    assert clock is not None
    assert clock.gap_cv == pytest.approx(0.0, abs=1e-6)
    assert clock.dispersion_1s == pytest.approx(0.0, abs=0.05)
    bursts, *_ = arrivals(table_of([10] * 1000, arrival_s=np.repeat(np.arange(100.0), 10)))
    assert bursts is not None
    assert bursts.gap_cv is not None
    assert bursts.gap_cv > 2.5


def test_windows_by_hand() -> None:
    times = np.asarray([0.0, 0.1, 0.2, 1.5, 2.5, 3.5, 4.5, 5.5, 6.5, 7.5, 8.5, 9.5, 10.2])
    # Ten whole seconds with 3, 1, 1, ... arrivals.
    counts = np.asarray([3, 1, 1, 1, 1, 1, 1, 1, 1, 1])
    assert dispersion(times, 1.0) == pytest.approx(counts.var(ddof=1) / counts.mean())
    assert dispersion(times, 2.0) is None
    assert busiest(times, 1.0) == 3.0
    assert busiest(times, 100.0) is None
    assert busiest(np.asarray([0.0, 0.9, 1.1, 1.2, 5.0]), 1.0) == 3.0
    assert piece(3600) == 15
    assert piece(1e9) == pytest.approx(1e9 / 240)


def test_no_arrivals_or_all_at_once_are_none() -> None:
    assert arrivals(table_of([1] * 50))[0] is None
    assert arrivals(table_of([1] * 50, arrival_s=[3.0] * 50))[0] is None
    assert profile_trace(trace_of([1] * 50, arrival_s=[float("nan")] * 50)).arrivals is None


def test_prompt_length_that_decides_and_one_that_does_not() -> None:
    rng = np.random.default_rng(0)
    prompts = rng.integers(10, 2000, 4000)
    lengths = np.maximum(1, (prompts * rng.lognormal(0, 0.1, 4000))).astype(int)
    table = table_of(lengths, prompt_tokens=prompts)
    bands = guess_by_band(table)
    assert bands is not None
    found = prompt_length(table, bands, 0)
    assert found.r2_log > 0.95
    assert found.spearman > 0.95
    assert found.mae_tokens < 0.3 * found.mae_constant_tokens
    noise = table_of(skewed(4000), prompt_tokens=prompts)
    bands = guess_by_band(noise)
    assert bands is not None
    found = prompt_length(noise, bands, 0)
    assert found.r2_log_bands < 0.01
    # What is learned on one half and tried on the other cannot look better than it is.
    assert found.mae_tokens == pytest.approx(found.mae_constant_tokens, rel=0.02)
    assert guess_by_band(table_of([1, 2, 3])) is None
    assert guess_by_band(table_of(skewed(200), prompt_tokens=[5] * 200)) is None


def test_measures_are_those_of_the_evaluation() -> None:
    rng = np.random.default_rng(0)
    true = skewed(500)
    distributions = [LengthDistribution.lognormal(float(m), 0.5, 4096) for m in true * rng.lognormal(0, 0.4, 500)]
    quantiles = {q: np.asarray([d.quantile(q) for d in distributions]) for q in (0.5, 0.9, 0.95)}
    found, scored = (
        predicted(table_of(true), Predictions("p", np.arange(500), quantiles), 0),
        score(distributions, true),
    )
    for key in (
        "rows",
        "mae_tokens",
        "within_50",
        "within_100",
        "kendall_tau",
        *(f"coverage_{q}" for q in (50, 90, 95)),
    ):
        assert getattr(found, key) == pytest.approx(scored[key]), key


def test_small_measures_by_hand() -> None:
    found = measure([10, 20, 300], [10, 90, 200], 0)
    assert (found.targets, found.within_50, found.within_100) == (3, pytest.approx(1 / 3), 1.0)
    assert found.mae_tokens == pytest.approx(170 / 3)
    assert found.kendall_tau == pytest.approx(1.0)
    assert tau(np.ones(5), np.arange(5), 0) == 0.0
    assert error_curve(np.asarray([1, 5, 9]), np.asarray([0, 5, 100])) == [0.0, pytest.approx(2 / 3), 1.0]


def test_a_predictors_figures() -> None:
    lengths = skewed(1000)
    table = table_of(lengths)
    rows = np.arange(1000)
    measured = predicted(table, Predictions("p", rows, {0.5: lengths, 0.9: lengths, 0.95: lengths + 1}, True), 0)
    assert (measured.mae_tokens, measured.within_50, measured.r2_log, measured.coverage_50, measured.rows_are) == (
        0,
        1,
        1,
        1,
        "held out",
    )
    constant = np.full(1000, int(np.median(lengths)))
    p90 = np.full(1000, int(np.quantile(lengths, 0.9)))
    none = predicted(table, Predictions("p", rows, {0.5: constant, 0.9: p90, 0.95: p90 * 2}), 0)
    assert none.mae_tokens == pytest.approx(none.mae_constant_tokens, rel=0.01)
    assert none.kendall_tau == 0.0
    assert none.r2_log <= 0.01
    assert none.coverage_90 == pytest.approx(0.9, abs=0.01)
    with pytest.raises(TraceError, match="quantiles"):
        Predictions("p", rows, {0.5: lengths})


def test_the_busiest_time_may_lie_across_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    times = np.sort(np.random.default_rng(0).uniform(0, 100, 500))
    whole = busiest(times, 7.0)
    monkeypatch.setattr("ecoserve.data.profiling.over_time._BLOCK", 3)
    assert busiest(times, 7.0) == whole == max(np.sum((times >= t) & (times < t + 7)) for t in times) / 7
