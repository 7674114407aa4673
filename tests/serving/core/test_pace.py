from __future__ import annotations

import pytest

from ecoserve.serving.core.orderings import FIRST_GUESS_S, Pace


def test_the_pace_is_the_period_of_busy_steps() -> None:
    pace = Pace(512)
    for i in range(400):
        pace.step(0.05 * i, busy=True)
    assert pace.token_s == pytest.approx(0.05)


def test_idle_time_and_long_pauses_are_no_steps() -> None:
    pace = Pace(512)
    for now, busy in ((0.0, False), (4.0, False), (100.0, True), (100.0, True)):
        pace.step(now, busy)
    assert pace.token_s == FIRST_GUESS_S


def test_the_pace_follows_a_change() -> None:
    pace = Pace(512, window=16)
    now = 0.0
    for period in [0.01] * 100 + [0.04] * 100:
        pace.step(now, busy=True)
        now += period
    assert pace.token_s == pytest.approx(0.04, rel=0.02)


def test_a_prompt_takes_as_many_steps_as_it_fills() -> None:
    pace = Pace(512)
    assert pace.prompt_s(512) == pace.token_s
    assert pace.prompt_s(513) == 2 * pace.token_s
    assert pace.prompt_s(0) == pace.token_s
