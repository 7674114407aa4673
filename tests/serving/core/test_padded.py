"""Padding one by one: each request ends at its quantile, and nothing is left to chance."""

from __future__ import annotations

import math

import pytest
from core_rig import a_task
from hypothesis import given
from hypothesis import strategies as st

from ecoserve.lengths import LengthDistribution
from ecoserve.serving.core.forecast import Padded
from ecoserve.serving.core.settings import SchedulerSettings
from ecoserve.serving.core.tasks import Task

BLOCK = 16


def tasks(medians: list[int], generated: int = 0) -> list[Task]:
    return [
        a_task(
            str(i),
            lengths=LengthDistribution.lognormal(float(m), 0.6, 2000),
            prompt_tokens=40,
            generated=generated,
            written=40 + generated,
        )
        for i, m in enumerate(medians)
    ]


@given(
    st.lists(st.integers(20, 400), min_size=1, max_size=6),
    st.sampled_from([0.2, 0.5, 0.9]),
    st.integers(0, 15),
)
def test_the_peak_is_that_of_all_requests_ending_at_the_quantile(
    medians: list[int], quantile: float, generated: int
) -> None:
    held = tasks(medians, generated)
    forecast = Padded.from_settings(SchedulerSettings(quantile=quantile, rho=0.5), BLOCK, 2000)
    forecast.rebase(held)
    ends = [max(1, t.lengths.given_longer_than(generated).quantile(quantile) - generated) for t in held]
    exact = max(
        sum(math.ceil((t.span_tokens() + step) / BLOCK) for t, end in zip(held, ends, strict=True) if step < end)
        for step in {0, *(end - 1 for end in ends)}
    )
    # The grid of steps is coarse: between two of them every one of them can grow into a block more.
    widest = max(b - a for a, b in zip(forecast._steps[:-1], forecast._steps[1:], strict=True) if a < max(ends))
    assert forecast.peak(3.0) <= exact + 1e-9
    assert forecast.peak(3.0) >= exact - len(held) * math.ceil(widest / BLOCK) - max(
        math.ceil((40 + end) / BLOCK) for end in ends
    )


def test_a_higher_quantile_lets_fewer_in_and_epsilon_says_nothing() -> None:
    def admitted(quantile: float, epsilon: float) -> int:
        forecast = Padded.from_settings(SchedulerSettings(quantile=quantile), BLOCK, 2000)
        forecast.rebase([])
        count = 0
        for task in tasks([150] * 200):
            if not forecast.fits_with(task, 400, epsilon):
                break
            forecast.enter(task)
            forecast.add(task)
            count += 1
        return count

    counts = [admitted(q, 0.1) for q in (0.2, 0.5, 0.8)]
    assert counts[0] > counts[1] > counts[2] > 0
    assert admitted(0.5, 0.001) == pytest.approx(counts[1])
