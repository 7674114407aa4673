"""The forecast against sums over all lengths, and against futures drawn at random."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from core_rig import a_task, distributions, draw_lengths
from hypothesis import given, settings
from hypothesis import strategies as st

from ecoserve.lengths import LengthDistribution
from ecoserve.serving.core.forecast import REACTION_STEPS, Forecast, Usage
from ecoserve.serving.core.kv_use import Group, KVUse
from ecoserve.serving.core.tasks import Task

BLOCK = 16
UPPER = 200
#: so many grid points that every whole number of tokens is one
EVERY = 6000


def fine(rho: float = 0.0) -> Forecast:
    """A forecast that looks at every step and tabulates every length."""
    return Forecast(KVUse([Group(BLOCK)]), UPPER, rho, points=EVERY, table=EVERY)


def coarse(rho: float = 0.0, upper: int = 2000) -> Forecast:
    """A forecast with the grids that serve."""
    return Forecast(KVUse([Group(BLOCK)]), upper, rho)


def total(forecast: Forecast, tasks: Sequence[Task]) -> Usage:
    """What all of them use together."""
    return forecast.usage(tasks).cumulative().row(len(tasks))


def exact(tasks: Sequence[Task], steps: Sequence[float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, variance and sum of standard deviations of the blocks held, for each step ahead."""
    mean, var, sd = (np.zeros(len(steps)) for _ in range(3))
    for task in tasks:
        now = task.lengths.survival(task.generated)
        for i, t in enumerate(steps):
            alive = task.lengths.survival(task.generated + t) / now
            blocks = math.ceil((task.span_tokens() + t) / BLOCK)
            spread = math.sqrt(alive * (1 - alive)) * blocks
            mean[i] += alive * blocks
            var[i] += spread**2
            sd[i] += spread
    return mean, var, sd


@st.composite
def holders(draw: st.DrawFn) -> list[Task]:
    """Tasks that decode, each somewhere within its response."""
    out = []
    for i in range(draw(st.integers(1, 6))):
        lengths = draw(distributions(UPPER))
        generated = draw(st.integers(0, lengths.upper - 1))
        if lengths.survival(generated) < 1e-3:
            generated = 0
        prompt = draw(st.integers(1, 300))
        out.append(
            a_task(str(i), lengths=lengths, prompt_tokens=prompt, generated=generated, written=prompt + generated)
        )
    return out


@settings(max_examples=60)
@given(holders(), st.floats(0, 1), st.floats(0, 4))
def test_mean_and_spread_are_the_sums_over_all_lengths(tasks: list[Task], rho: float, z: float) -> None:
    forecast = fine(rho)
    usage = total(forecast, tasks)
    mean, var, sd = exact(tasks, forecast._steps)
    np.testing.assert_allclose(usage.mean, mean, atol=1e-6)
    np.testing.assert_allclose(usage.var, var, atol=1e-5)
    np.testing.assert_allclose(usage.sd, sd, atol=1e-5)
    near = 1 / (1 + forecast._steps / REACTION_STEPS)
    peak = (mean + z * near * np.sqrt((1 - rho) * var + rho * sd**2)).max()
    assert forecast.peak(usage, z) == pytest.approx(peak, abs=1e-4)


@settings(max_examples=60)
@given(holders(), st.floats(0, 1), st.floats(0, 4))
def test_adding_one_by_one_is_forecasting_them_together(tasks: list[Task], rho: float, z: float) -> None:
    forecast = coarse(rho)
    one_by_one = total(forecast, [])
    for count, task in enumerate(tasks, 1):
        one_by_one = one_by_one + forecast.usage([task]).row(0)
        assert forecast.peak(one_by_one, z) == pytest.approx(forecast.peak(total(forecast, tasks[:count]), z))


@settings(max_examples=60)
@given(holders())
def test_expected_rests_are_the_means_of_the_posteriors(tasks: list[Task]) -> None:
    for task, rest in zip(tasks, fine().rests(tasks), strict=True):
        steps = np.arange(task.generated, UPPER + 1)
        survival = task.lengths.survival_at(steps)
        area = float(((survival[1:] + survival[:-1]) / 2).sum()) / survival[0]
        assert rest == pytest.approx(max(1.0, area), rel=1e-6)
        task.row = -1  # of another forecast
    known = [t.expected_rest() for t in tasks]
    np.testing.assert_allclose(coarse(upper=UPPER).rests(tasks), known, rtol=0.2, atol=4.0)


@settings(max_examples=60)
@given(holders(), st.sampled_from([0.2, 0.5, 0.8]))
def test_likely_rests_are_the_quantiles_of_the_posteriors(tasks: list[Task], quantile: float) -> None:
    forecast = Forecast(KVUse([Group(BLOCK)]), UPPER, points=EVERY, table=EVERY, quantile=quantile)
    rests = forecast.likely_rests([*(replace(t) for t in tasks for _ in range(64)), *tasks])[-len(tasks) :]
    for task, rest in zip(tasks, rests, strict=True):
        at = task.generated + np.array([rest - 1.0, rest + 1.0])
        before, after = task.lengths.survival_at(at) / task.lengths.survival(task.generated)
        assert before >= 1.0 - quantile - 1e-6 or rest == 1.0
        assert after <= 1.0 - quantile + 1e-6


def test_futures_drawn_at_random_have_this_mean_and_spread() -> None:
    rng = np.random.default_rng(0)
    tasks = []
    for i in range(40):
        lengths = LengthDistribution.lognormal(float(rng.uniform(50, 500)), 0.6, 2000)
        generated = int(rng.integers(0, 100))
        tasks.append(a_task(str(i), lengths=lengths, generated=generated, written=16 + generated))
    forecast = coarse()
    usage = total(forecast, tasks)
    steps = forecast._steps
    futures = np.zeros((4000, len(steps)))
    for task in tasks:
        drawn = draw_lengths(task.lengths, task.generated, len(futures), rng)
        blocks = np.ceil((task.span_tokens() + steps) / BLOCK)
        futures += np.where(drawn[:, None] > task.generated + steps[None, :], blocks[None, :], 0.0)
    scale = futures.mean(axis=0).max()
    # Where the longest responses end, the grid blurs the end by one of its cells.
    seen = steps < 1500
    np.testing.assert_allclose(usage.mean[seen], futures.mean(axis=0)[seen], atol=0.02 * scale)
    np.testing.assert_allclose(np.sqrt(usage.var)[seen], futures.std(axis=0)[seen], atol=0.02 * scale)
    near = 1 / (1 + steps / REACTION_STEPS)
    drawn_peak = (futures.mean(axis=0) + 2 * near * futures.std(axis=0)).max()
    assert forecast.peak(usage, 2.0) == pytest.approx(drawn_peak, rel=0.02)


def test_the_batch_is_better_known_than_its_members() -> None:
    def spread(count: int) -> float:
        forecast = coarse()
        usage = total(forecast, crowd(count))
        return (forecast.peak(usage, 2.0) - forecast.peak(usage, 0.0)) / forecast.peak(usage, 0.0)

    assert spread(100) < spread(10) / 2 < spread(1) / 4


def crowd(count: int, median: float = 300) -> list[Task]:
    return [a_task(str(i), lengths=LengthDistribution.lognormal(median, 0.6, 2000)) for i in range(count)]


def test_errors_in_common_do_not_average_out() -> None:
    def margin(rho: float) -> float:
        forecast = coarse(rho)
        usage = total(forecast, crowd(50))
        return forecast.peak(usage, 2.0) - forecast.peak(usage, 0.0)

    assert margin(0.0) < margin(0.1) < margin(1.0)


def test_uncertainty_far_ahead_counts_less() -> None:
    forecast = coarse()
    usage = total(forecast, crowd(10, 500))
    undiscounted = (usage.mean + 3.0 * np.sqrt(usage.var)).max()
    assert forecast.peak(usage, 0.0) < forecast.peak(usage, 3.0) < undiscounted


def test_the_forecast_of_now_is_what_is_held() -> None:
    tasks = [a_task(str(i), generated=i, written=16 + i, prompt_tokens=16) for i in range(20)]
    for task in tasks[:3]:
        task.shared_blocks = 1
    usage = total(coarse(), tasks)
    assert usage.mean[0] == pytest.approx(sum(math.ceil((16 + i) / BLOCK) for i in range(20)) - 3)
    assert usage.var[0] == 0.0


def test_no_holders_hold_nothing() -> None:
    forecast = coarse()
    assert forecast.peak(total(forecast, []), 6.0) == 0.0


def test_a_known_length_is_all_there_until_it_ends() -> None:
    forecast = fine()
    task = a_task(lengths=LengthDistribution.point(100), prompt_tokens=60, written=60)
    usage = total(forecast, [task])
    assert forecast.peak(usage, 6.0) == math.ceil((60 + 99) / BLOCK)
    assert usage.mean[list(forecast._steps).index(100)] == 0.0


# -- the tables ------------------------------------------------------------------------------------------


def test_rows_are_lent_returned_and_lent_again() -> None:
    forecast = coarse()
    many = [a_task(str(i), lengths=LengthDistribution.point(1 + i)) for i in range(150)]
    before = total(forecast, many).mean
    assert len({t.row for t in many}) == 150
    assert len(forecast._alive) == len(forecast._area) == 256
    for task in many:
        forecast.leave(task)
        forecast.leave(task)  # leaving twice is not returning two rows
    assert sorted(forecast._free_rows) == list(range(256))
    np.testing.assert_array_equal(total(forecast, many).mean, before)


def test_a_new_distribution_replaces_the_row() -> None:
    forecast = coarse()
    task = a_task(lengths=LengthDistribution.point(10))
    low = forecast.peak(total(forecast, [task]), 0.0)
    task.lengths = LengthDistribution.point(1500)
    forecast.enter(task)
    assert forecast.peak(total(forecast, [task]), 0.0) > 10 * low
    assert forecast.rests([task])[0] == pytest.approx(1500, rel=0.05)


# -- the model of KV use -----------------------------------------------------------------------------------


@given(
    st.lists(
        st.builds(
            Group,
            st.sampled_from([16, 32, 64]),
            copies=st.integers(1, 3),
            window=st.one_of(st.none(), st.integers(1, 300)),
            chunk=st.one_of(st.none(), st.sampled_from([48, 64])),
            extra=st.integers(0, 2),
            most=st.one_of(st.none(), st.integers(1, 40)),
        ),
        min_size=1,
        max_size=4,
    ),
    st.lists(st.integers(0, 5000), min_size=1, max_size=20),
)
def test_blocks_of_arrays_are_those_of_numbers(groups: list[Group], tokens: list[int]) -> None:
    kv_use = KVUse(groups)
    assert kv_use.blocks_at(np.array(tokens, dtype=float)).tolist() == [kv_use.blocks(n) for n in tokens]


def test_blocks_are_summed_over_groups() -> None:
    kv_use = KVUse([Group(16), Group(16, copies=2, window=63), Group(4096, window=1, extra=1)])
    assert [kv_use.blocks(n) for n in (1, 16, 17, 80, 81, 1600)] == [5, 5, 8, 15, 18, 110]
