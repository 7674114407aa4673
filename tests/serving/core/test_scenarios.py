"""Sampled joint futures, against the closed form and against a plain count."""

from __future__ import annotations

import math

import numpy as np
import pytest
from core_rig import a_task, distributions, holder
from hypothesis import given, settings
from hypothesis import strategies as st

from ecoserve.lengths import LengthDistribution
from ecoserve.serving.core.forecast import Forecast
from ecoserve.serving.core.scenarios import Scenarios
from ecoserve.serving.core.tasks import Task, TaskState

BLOCK = 16


def some(**fields: float) -> Scenarios:
    return Scenarios(**({"block_size": BLOCK, "upper": 4096, "rho": 0.0, "reaction": 1e12} | fields))  # type: ignore[arg-type]


def batch(n: int, sigma: float, generated: int = 10) -> list[Task]:
    return [
        holder(
            str(i),
            TaskState.DECODE,
            16 + 5 * i % 16 + generated,
            prompt_tokens=16 + 5 * i % 16,  # block by block, rounding evens out over a batch
            lengths=LengthDistribution.lognormal(200 + 7 * i, sigma, 4096),
            generated=generated,
        )
        for i in range(n)
    ]


def test_known_lengths_overflow_surely_or_never() -> None:
    hosts = [holder(str(i), TaskState.DECODE, 16, lengths=LengthDistribution.point(64)) for i in range(10)]
    forecast = some()
    forecast.rebase(hosts)
    assert overflow(forecast, 60) == 0.0
    assert overflow(forecast, 40) == 1.0


def overflow(forecast: Scenarios, limit_blocks: int) -> float:
    """Share of the scenarios that pass the limit."""
    return forecast._over(forecast._blocks, forecast._alive, limit_blocks)


@given(lengths=distributions(), generated=st.integers(0, 250))
@settings(max_examples=60, deadline=None)
def test_drawn_lengths_follow_the_distribution(lengths: LengthDistribution, generated: int) -> None:
    task = a_task(lengths=lengths, generated=generated)
    forecast = some(count=512)
    forecast.enter(task)
    drawn = forecast._tables[task.row]
    posterior = lengths.given_longer_than(generated)
    assert drawn.min() > generated
    assert drawn.max() <= posterior.upper
    for level in (0.25, 0.5, 0.75):
        n = posterior.quantile(level)
        assert (drawn <= n).mean() >= level - 0.01
        assert (drawn <= n - 1).mean() <= level + 0.01


def test_the_usage_is_the_plain_sum_over_those_alive() -> None:
    tasks = batch(12, 0.7)
    forecast = some(count=16)
    forecast.rebase(tasks)
    for k in range(16):
        for j, t in enumerate(forecast._steps):
            alive = [task for task in tasks if forecast._tables[task.row, k] - task.generated > t]
            blocks = sum((task.span_tokens() + t) / BLOCK + 0.5 for task in alive)
            assert forecast._alive[k, j] == len(alive)
            assert forecast._blocks[k, j] == pytest.approx(blocks)


def test_adding_one_is_taking_stock_with_it() -> None:
    tasks = batch(8, 0.7)
    forecast = some()
    forecast.rebase(tasks)
    known = forecast._blocks
    forecast.rebase(tasks[:-1])
    forecast.add(tasks[-1])
    assert np.allclose(forecast._blocks, known)


def test_scenarios_and_the_normal_sum_agree_on_mean_and_spread() -> None:
    tasks = batch(60, 0.8)
    forecast, normal = some(count=256), Forecast(BLOCK, 4096, 0.0, 1e12)
    forecast.rebase(tasks)
    copies = batch(60, 0.8)
    normal.rebase(copies)
    assert forecast._blocks.mean(axis=0)[:30] == pytest.approx(normal._mean[:30], rel=0.08)
    j = 35
    sd = forecast._blocks[:, j].std()
    assert sd == pytest.approx(math.sqrt(normal._var[j]), rel=0.35)


def test_common_error_widens_the_sum() -> None:
    def spread(rho: float) -> float:
        forecast = some(rho=rho)
        forecast.rebase(batch(60, 0.8))
        return float(forecast._blocks[:, 30].std())

    assert spread(0.5) > 2 * spread(0.0)


def test_an_outlived_length_is_drawn_again() -> None:
    tasks = batch(4, 0.7)
    forecast = some()
    forecast.rebase(tasks)
    before = forecast._tables[[t.row for t in tasks]].copy()
    for task in tasks:
        task.generated = 180
        task.written = 196
    forecast.rebase(tasks)
    after = forecast._tables[[t.row for t in tasks]]
    assert (after > 180).all()
    assert (after == before)[before > 180].all(), "what was not outlived stays"


def test_a_smaller_epsilon_admits_less() -> None:
    def admitted(epsilon: float) -> int:
        forecast = some()
        forecast.rebase([])
        for i in range(300):
            task = a_task(str(i), lengths=LengthDistribution.lognormal(300, 0.8, 4000))
            if not forecast.fits_with(task, 400, epsilon):
                return i
            forecast.add(task)
        raise AssertionError("every request was admitted")

    assert admitted(0.01) < admitted(0.1) < admitted(0.5)


def test_rows_are_used_again() -> None:
    forecast = some()
    for round_ in range(5):
        tasks = batch(100, 0.5)
        forecast.rebase(tasks)
        assert len({t.row for t in tasks}) == 100, round_
        for task in tasks:
            forecast.leave(task)
    assert len(forecast._tables) == 128


def test_the_same_requests_give_the_same_answers() -> None:
    def answers() -> list[float]:
        forecast = some()
        forecast.rebase(batch(20, 0.8))
        return [overflow(forecast, limit) for limit in range(100, 600, 25)]

    assert answers() == answers()
    assert sorted(answers(), reverse=True) == answers()
