"""The forecast against sums over all lengths, and against futures drawn at random."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from core_rig import a_task, distributions, draw_lengths
from hypothesis import given, settings
from hypothesis import strategies as st

from ecoserve.lengths import LengthDistribution
from ecoserve.serving.core.forecast import Forecast
from ecoserve.serving.core.tasks import Task

BLOCK = 16
UPPER = 200
#: so many grid points that every whole number of tokens is one
EVERY = 6000


def fine(rho: float = 0.0, reaction: float = math.inf) -> Forecast:
    """A forecast that looks at every step and tabulates every length."""
    return Forecast(BLOCK, UPPER, rho, reaction, points=EVERY, table=EVERY)


def coarse(rho: float = 0.0, reaction: float = math.inf, upper: int = 2000) -> Forecast:
    """A forecast with the grids that serve."""
    return Forecast(BLOCK, upper, rho, reaction)


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
    forecast.rebase(tasks)
    mean, var, sd = exact(tasks, forecast._steps)
    np.testing.assert_allclose(forecast._mean, mean, atol=1e-6)
    np.testing.assert_allclose(forecast._var, var, atol=1e-5)
    np.testing.assert_allclose(forecast._sd, sd, atol=1e-5)
    total = mean + z * np.sqrt((1 - rho) * var + rho * sd**2)
    assert forecast.peak(z) == pytest.approx(total.max(), abs=1e-4)


@settings(max_examples=60)
@given(holders(), st.floats(0, 1), st.floats(0, 4), st.floats(1, 1000))
def test_adding_one_by_one_is_forecasting_them_together(
    tasks: list[Task], rho: float, z: float, reaction: float
) -> None:
    one_by_one, together = coarse(rho, reaction), coarse(rho, reaction)
    one_by_one.rebase([])
    for task in tasks:
        asked = one_by_one.peak(z, task)
        one_by_one.add(task)
        assert asked == pytest.approx(one_by_one.peak(z))
    together.rebase(tasks)
    assert one_by_one.peak(z) == pytest.approx(together.peak(z))


def test_futures_drawn_at_random_have_this_mean_and_spread() -> None:
    rng = np.random.default_rng(0)
    tasks = []
    for i in range(40):
        lengths = LengthDistribution.lognormal(float(rng.uniform(50, 500)), 0.6, 2000)
        generated = int(rng.integers(0, 100))
        tasks.append(a_task(str(i), lengths=lengths, generated=generated, written=16 + generated))
    forecast = coarse()
    forecast.rebase(tasks)
    steps = forecast._steps
    futures = np.zeros((4000, len(steps)))
    for task in tasks:
        drawn = draw_lengths(task.lengths, task.generated, len(futures), rng)
        blocks = np.ceil((task.span_tokens() + steps) / BLOCK)
        futures += np.where(drawn[:, None] > task.generated + steps[None, :], blocks[None, :], 0.0)
    scale = futures.mean(axis=0).max()
    # Where the longest responses end, the grid blurs the end by one of its cells.
    seen = steps < 1500
    np.testing.assert_allclose(forecast._mean[seen], futures.mean(axis=0)[seen], atol=0.02 * scale)
    np.testing.assert_allclose(np.sqrt(forecast._var)[seen], futures.std(axis=0)[seen], atol=0.02 * scale)
    assert forecast.peak(2.0) == pytest.approx((futures.mean(axis=0) + 2 * futures.std(axis=0)).max(), rel=0.02)


def test_the_batch_is_better_known_than_its_members() -> None:
    def spread(count: int) -> float:
        forecast = coarse()
        forecast.rebase(crowd(count))
        return (forecast.peak(2.0) - forecast.peak(0.0)) / forecast.peak(0.0)

    assert spread(100) < spread(10) / 2 < spread(1) / 4


def crowd(count: int, median: float = 300) -> list[Task]:
    return [a_task(str(i), lengths=LengthDistribution.lognormal(median, 0.6, 2000)) for i in range(count)]


def test_errors_in_common_do_not_average_out() -> None:
    def margin(rho: float) -> float:
        forecast = coarse(rho)
        forecast.rebase(crowd(50))
        return forecast.peak(2.0) - forecast.peak(0.0)

    assert margin(0.0) < margin(0.1) < margin(1.0)


def test_uncertainty_far_ahead_counts_less() -> None:
    def peak(reaction: float, z: float = 3.0) -> float:
        forecast = coarse(reaction=reaction)
        forecast.rebase(crowd(10, 500))
        return forecast.peak(z)

    assert peak(1.0, 0.0) == peak(1e9, 0.0) < peak(30.0) < peak(1e9)


def test_the_forecast_of_now_is_what_is_held() -> None:
    tasks = [a_task(str(i), generated=i, written=16 + i, prompt_tokens=16) for i in range(20)]
    forecast = coarse()
    forecast.rebase(tasks, shared_blocks=3)
    assert forecast._mean[0] == pytest.approx(sum(math.ceil((16 + i) / BLOCK) for i in range(20)) - 3)
    assert forecast._var[0] == 0.0


def test_no_holders_hold_nothing() -> None:
    forecast = coarse()
    forecast.rebase([a_task()])
    forecast.rebase([])
    assert forecast.peak(6.0) == 0.0


def test_a_known_length_is_all_there_until_it_ends() -> None:
    forecast = fine()
    task = a_task(lengths=LengthDistribution.point(100), prompt_tokens=60, written=60)
    forecast.rebase([task])
    assert forecast.peak(6.0) == math.ceil((60 + 99) / BLOCK)
    assert forecast._mean[list(forecast._steps).index(100)] == 0.0


# -- the tables ------------------------------------------------------------------------------------------


def test_asking_about_a_newcomer_takes_no_row() -> None:
    forecast = coarse()
    free = sorted(forecast._free_rows)
    task = a_task()
    forecast.peak(2.0, task)
    forecast.add(task)
    assert task.row == -1
    assert sorted(forecast._free_rows) == free


def test_rows_are_lent_returned_and_lent_again() -> None:
    forecast = coarse()
    many = [a_task(str(i), lengths=LengthDistribution.point(1 + i)) for i in range(150)]
    forecast.rebase(many)
    assert len({t.row for t in many}) == 150
    assert len(forecast._tables) == 256
    before = forecast.peak(0.0)
    for task in many:
        forecast.leave(task)
        forecast.leave(task)  # leaving twice is not returning two rows
    assert sorted(forecast._free_rows) == list(range(256))
    forecast.rebase(many)
    assert forecast.peak(0.0) == before


def test_a_new_belief_replaces_the_table() -> None:
    forecast = coarse()
    task = a_task(lengths=LengthDistribution.point(10))
    forecast.rebase([task])
    low = forecast.peak(0.0)
    task.lengths = LengthDistribution.point(1500)
    forecast.enter(task)
    forecast.rebase([task])
    assert forecast.peak(0.0) > 10 * low


def test_a_newcomers_answer_is_renewed_when_anything_about_it_changes() -> None:
    forecast = coarse()
    forecast.rebase([])
    task = a_task(lengths=LengthDistribution.lognormal(300, 0.6, 2000))
    changes = (
        {},
        {"lengths": LengthDistribution.lognormal(500, 0.6, 2000)},
        {"generated": 100},
        {"prompt_tokens": 800},
    )
    answers = []
    for change in changes:
        for name, value in change.items():
            setattr(task, name, value)
        answers.append(forecast.peak(2.0, task))
        assert answers[-1] == forecast.peak(2.0, task)
        unasked = coarse()
        unasked.rebase([])
        assert answers[-1] == unasked.peak(2.0, task)
    assert len(set(answers)) == len(changes)
    assert forecast.peak(2.0, a_task("other")) not in answers
