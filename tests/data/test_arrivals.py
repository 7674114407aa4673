"""Arrival processes have the rate, the unevenness and the clumping they are asked for."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from arrival_statistics import ArrivalStatistics, index_of_dispersion

from ecoserve.data.arrivals import (
    RateProfile,
    burst_arrivals,
    gamma_arrivals,
    poisson_arrivals,
    resampled_arrivals,
    varying_arrivals,
)
from ecoserve.errors import TraceError

DAY = RateProfile.of_waves([(0.6, 15.0, 1), (0.3, 10.0, 2)], day_s=600.0)

Make = Callable[[int, float, int], np.ndarray]
PROCESSES: dict[str, Make] = {
    "poisson": poisson_arrivals,
    "gamma": lambda n, rate, seed: gamma_arrivals(n, rate, 2.5, seed),
    "metronome": lambda n, rate, seed: gamma_arrivals(n, rate, 0.0, seed),
    "diurnal": lambda n, rate, seed: varying_arrivals(n, rate, DAY, seed, cv=1.5, start_s=200.0),
    "bursts": lambda n, rate, seed: burst_arrivals(n, rate, factor=8, burst_s=5, calm_s=20, seed=seed),
}
each = pytest.mark.parametrize("make", PROCESSES.values(), ids=PROCESSES)


@each
def test_arrivals_ascend_at_the_rate_and_a_longer_load_begins_with_the_shorter(make: Make) -> None:
    times = make(60_000, 5.0, 3)
    assert times.shape == (60_000,)
    assert times[0] > 0
    assert np.all(np.diff(times) >= 0)
    assert 60_000 / times[-1] == pytest.approx(5.0, rel=0.05)
    assert make(1000, 5.0, 3) == pytest.approx(times[:1000])
    assert make(0, 5.0, 3).shape == (0,)


@each
def test_the_seed_decides(make: Make) -> None:
    assert np.array_equal(make(300, 5.0, 3), make(300, 5.0, 3))
    if make is not PROCESSES["metronome"]:
        assert not np.array_equal(make(300, 5.0, 3), make(300, 5.0, 4))


@each
def test_more_rate_brings_each_request_earlier(make: Make) -> None:
    assert np.all(make(500, 7.0, 3) < make(500, 5.0, 3))


@pytest.mark.parametrize("name", ["poisson", "gamma", "metronome"])
def test_another_rate_only_stretches(name: str) -> None:
    assert PROCESSES[name](500, 10.0, 3) * 2.0 == pytest.approx(PROCESSES[name](500, 5.0, 3))


def test_another_rate_only_stretches_the_clock_of_a_varying_rate() -> None:
    """The day stays as long as it is; on the clock on which the rate is constant, arrivals are stretched."""
    slow, fast = (varying_arrivals(500, rate, DAY, 3, start_s=200.0) for rate in (5.0, 10.0))
    start = DAY.integral(200.0)
    assert 2.0 * (DAY.integral(fast + 200.0) - start) == pytest.approx(DAY.integral(slow + 200.0) - start)


@pytest.mark.parametrize("cv", [0.0, 0.5, 1.0, 3.0])
def test_gaps_vary_as_much_as_asked_and_know_nothing_of_each_other(cv: float) -> None:
    seen = ArrivalStatistics.of(gamma_arrivals(100_000, 20.0, cv, seed=1))
    assert seen.rate_rps == pytest.approx(20.0, rel=0.04)
    assert seen.gap_cv == pytest.approx(cv, rel=0.04, abs=1e-6)
    if cv:
        assert abs(seen.gap_correlation or 0) < 0.02
        # Over windows of many gaps a renewal process has the index of dispersion cv squared.
        assert seen.dispersion[10.0] == pytest.approx(cv**2, rel=0.2)


def test_a_days_rate_is_followed() -> None:
    times = varying_arrivals(130_000, 50.0, DAY, seed=2)
    hour = (times[times < 4 * 600.0] % 600.0) / 25.0
    seen, _ = np.histogram(hour, bins=24, range=(0, 24))
    want = np.asarray(DAY.relative)[30::60]
    assert seen / seen.mean() == pytest.approx(want, rel=0.07, abs=0.02)
    assert index_of_dispersion(times, 1.0) > 1.5
    # On the profile's own clock they are Poisson.
    assert ArrivalStatistics.of(DAY.integral(times)).gap_cv == pytest.approx(1.0, rel=0.02)


def test_a_load_may_start_at_any_hour() -> None:
    night, noon = (varying_arrivals(2000, 50.0, DAY, seed=2, start_s=at) for at in (25.0, 350.0))
    assert noon[-1] < night[-1] / 1.5


def test_bursts_clump_as_the_theory_says() -> None:
    """Limit of the index of dispersion of a two-state Markov-modulated Poisson process (Heffes and Lucantoni 1986)."""
    factor, burst, calm, rate = 6.0, 2.0, 8.0, 10.0
    times = burst_arrivals(400_000, rate, factor=factor, burst_s=burst, calm_s=calm, seed=5)
    low = rate * (burst + calm) / (calm + factor * burst)
    high = factor * low
    leave_burst, leave_calm = 1 / burst, 1 / calm
    total = leave_burst + leave_calm
    limit = 1 + 2 * (high - low) ** 2 * leave_burst * leave_calm / (total**2 * (high * leave_calm + low * leave_burst))
    assert index_of_dispersion(times, 60.0) == pytest.approx(limit, rel=0.15)
    assert limit > 10
    seen = ArrivalStatistics.of(times)
    assert seen.gap_cv is not None
    assert seen.gap_cv > 1.3
    assert seen.gap_correlation is not None
    assert seen.gap_correlation > 0.1


def test_a_burst_of_factor_one_is_a_poisson_process() -> None:
    assert burst_arrivals(500, 4.0, factor=1, burst_s=3, calm_s=9, seed=6) == pytest.approx(
        poisson_arrivals(500, 4.0, 6)
    )


def test_bursts_do_not_depend_on_the_rate() -> None:
    """At a hundred times the rate, the busy stretches are the same ones."""
    slow, fast = (burst_arrivals(n, r, factor=20, burst_s=5, calm_s=20, seed=9) for n, r in ((500, 5), (50_000, 500)))
    end = min(slow[-1], fast[-1])
    windows = np.arange(0, end, 5.0)
    counts = [np.histogram(t, bins=windows)[0] for t in (slow, fast)]
    assert np.corrcoef(*counts)[0, 1] > 0.9


def test_a_profile_with_silent_hours_has_none_there() -> None:
    hours = [0.0] * 8 + [1.0] * 10 + [0.0] * 6
    profile = RateProfile.of_hours(hours, day_s=2400.0)
    times = varying_arrivals(20_000, 10.0, profile, seed=1) % 2400.0 / 100.0
    assert times.min() >= 7.0
    assert times.max() <= 18.0
    assert RateProfile.of_hours([2.0] * 24, 60.0).relative == pytest.approx([1.0] * 1440)


def test_profile_and_its_inverse_belong_together() -> None:
    for profile in (DAY, RateProfile(10.0, (0.0, 3.0, 0.0, 1.0))):
        mass = np.linspace(0.013, 3 * profile.period_s, 700)
        for start in (0.0, 0.3 * profile.period_s, 2.7 * profile.period_s):
            t = profile.invert(mass, start)
            assert np.all(np.diff(t) > 0)
            assert profile.integral(t + start) - profile.integral(start) == pytest.approx(mass)
    assert RateProfile(10.0, (2.0, 6.0)).relative == (0.5, 1.5)


def test_a_recorded_profile_is_found_again() -> None:
    times = varying_arrivals(100_000, 500.0, DAY, seed=4)
    seen = RateProfile.of_arrivals(times[times <= 200.0], windows=20)
    want = np.asarray(DAY.relative)[12:480:24]
    assert seen.relative == pytest.approx(want / want.mean(), rel=0.1)
    assert seen.period_s == pytest.approx(200.0, rel=0.01)


def test_a_rate_that_is_constant_gets_a_flat_profile() -> None:
    """What windows differ by chance is not taken for a pattern."""
    flat = poisson_arrivals(4000, 5.0, seed=8)
    seen, rising = (RateProfile.of_arrivals(times, windows=20) for times in (flat, flat**0.8))
    assert np.std(seen.relative) < 0.04
    assert rising.relative[-1] > 1.1


def on_and_off(n: int, seed: int) -> np.ndarray:
    """Trains of requests a few milliseconds apart, with pauses of seconds between them, twice as often at the end."""
    rng = np.random.default_rng(seed)
    train = rng.random(n) < 0.9
    gaps = np.where(train, rng.exponential(0.01, n), rng.lognormal(0.5, 0.5, n))
    return np.cumsum(np.where(np.arange(n) < n / 2, gaps, gaps / 2.0))


def test_resampled_arrivals_are_like_the_recorded_ones() -> None:
    recorded = on_and_off(8000, 1)
    want = ArrivalStatistics.of(recorded)
    made = [ArrivalStatistics.of(resampled_arrivals(8000, recorded + 50.0, seed)) for seed in range(4)]
    assert np.mean([m.rate_rps for m in made]) == pytest.approx(want.rate_rps, rel=0.05)
    assert np.mean([m.gap_cv for m in made]) == pytest.approx(want.gap_cv, rel=0.1)
    for window in (1.0, 10.0, 60.0):
        assert np.mean([m.dispersion[window] for m in made]) == pytest.approx(want.dispersion[window], rel=0.25)
    # What one law would miss: most gaps are milliseconds, some are seconds.
    shares = (0.25, 0.5, 0.85, 0.95)
    gaps = np.quantile(np.diff(resampled_arrivals(8000, recorded, seed=0)), shares)
    assert gaps == pytest.approx(np.quantile(np.diff(recorded), shares), rel=0.2)
    assert want.rate_rps is not None
    assert want.gap_cv is not None
    gamma = np.quantile(np.diff(gamma_arrivals(8000, want.rate_rps, want.gap_cv, seed=0)), shares)
    assert gamma[1] < gaps[1] / 10


def test_resampled_arrivals_repeat_go_on_and_thin_out() -> None:
    recorded = on_and_off(3000, 2)
    long = resampled_arrivals(9000, recorded, seed=5)
    assert np.array_equal(long, resampled_arrivals(9000, recorded, seed=5))
    assert resampled_arrivals(500, recorded, seed=5) == pytest.approx(long[:500])
    assert not np.array_equal(resampled_arrivals(500, recorded, seed=6), long[:500])
    assert np.all(np.diff(long) >= 0)
    assert long[-1] == pytest.approx(3 * (recorded[-1] - recorded[0]), rel=0.1)
    half = resampled_arrivals(1500, recorded, seed=5, share=0.5)
    assert half[-1] == pytest.approx(recorded[-1] - recorded[0], rel=0.15)
    with pytest.raises(TraceError, match="4 arrivals at fewer than three times"):
        resampled_arrivals(5, [1.0, 1.0, 2.0, 2.0], seed=0)


def test_statistics_of_little() -> None:
    assert ArrivalStatistics.of([]).rate_rps is None
    assert ArrivalStatistics.of([3.0, 3.0]).gap_cv is None
    three = ArrivalStatistics.of([5.0, 1.0, 3.0])
    assert (three.n, three.duration_s, three.rate_rps, three.gap_cv) == (3, 4.0, 0.5, 0.0)
    assert three.dispersion == {}
    assert ArrivalStatistics.of(np.arange(500.0)).as_dict()["dispersion_10s"] == 0.0


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: gamma_arrivals(5, 1.0, -1.0, 0), "coefficient of variation of -1"),
        (lambda: gamma_arrivals(5, 1.0, math.nan, 0), "coefficient of variation of nan"),
        (lambda: varying_arrivals(5, 0.0, DAY, 0), "rate of 0.0 requests"),
        (lambda: burst_arrivals(5, 1.0, factor=0.5, burst_s=1, calm_s=1, seed=0), "factor of 1 or more"),
        (lambda: burst_arrivals(5, 1.0, factor=2, burst_s=0, calm_s=1, seed=0), "burst_s 0 is not a duration"),
        (lambda: burst_arrivals(5, 1.0, factor=2, burst_s=1, calm_s=math.inf, seed=0), "calm_s inf is not"),
        (lambda: RateProfile(0.0, (1.0,)), "cannot repeat after 0.0 s"),
        (lambda: RateProfile(1.0, ()), "numbers of at least 0"),
        (lambda: RateProfile(1.0, (0.0, 0.0)), "not all 0"),
        (lambda: RateProfile(1.0, (1.0, -1.0)), "numbers of at least 0"),
        (lambda: RateProfile.of_hours([1.0] * 23, 60.0), "a day has 24 hours, 23 rates are given"),
        (lambda: RateProfile.of_waves([(1.5, 3.0, 1)], 60.0), r"negative at 15\.0 h; lower the amplitudes"),
        (lambda: RateProfile.of_arrivals([4.0, 4.0], 3), "2 arrivals at one time have no rate"),
    ],
)
def test_impossible_processes_are_refused_in_one_line(make: Callable[[], object], said: str) -> None:
    with pytest.raises(TraceError, match=said):
        make()


# -- Poisson -----------------------------------------------------------------------------------------------------------


def test_gaps_are_exponential_at_the_rate() -> None:
    times = poisson_arrivals(20_000, 4.0, seed=3)
    gaps = np.diff(times, prepend=0.0)
    assert gaps.min() > 0
    assert gaps.mean() == pytest.approx(0.25, rel=0.03)
    assert gaps.std() == pytest.approx(0.25, rel=0.05)
    # Memoryless: of those longer than the mean, the rest is as long as any.
    assert (gaps[gaps > 0.25] - 0.25).mean() == pytest.approx(0.25, rel=0.05)


def test_the_seed_decides_and_the_rate_stretches() -> None:
    one = poisson_arrivals(100, 1.0, seed=5)
    assert np.array_equal(one, poisson_arrivals(100, 1.0, seed=5))
    assert not np.array_equal(one, poisson_arrivals(100, 1.0, seed=6))
    assert poisson_arrivals(100, 8.0, seed=5) * 8.0 == pytest.approx(one)
    assert np.array_equal(one[:10], poisson_arrivals(10, 1.0, seed=5))
    assert poisson_arrivals(0, 1.0, seed=5).shape == (0,)


@pytest.mark.parametrize(("n", "rate"), [(-1, 1.0), (5, 0.0), (5, -2.0), (5, math.nan), (5, math.inf)])
def test_impossible_arrivals_are_refused(n: int, rate: float) -> None:
    with pytest.raises(TraceError):
        poisson_arrivals(n, rate, seed=0)
