"""KV over time: what is kept are averages, whatever the length of the run."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecoserve.serving.runs import FIRST_WIDTH_S, MOST, KVSeries


def test_averages_of_hand_worked_intervals():
    series = KVSeries(usable_blocks=10)
    series.add(0.0, FIRST_WIDTH_S / 2, 10, 4, 2, 1)
    series.add(FIRST_WIDTH_S / 2, FIRST_WIDTH_S, 0, 0, 0, 0)
    first, second = series.points()
    assert (first.at_s, first.seconds) == (0.0, pytest.approx(FIRST_WIDTH_S))
    assert (first.held, first.reserved, first.lent, first.wasted) == pytest.approx((0.5, 0.2, 0.1, 0.05))
    assert second.seconds == pytest.approx(FIRST_WIDTH_S / 2)
    assert second.held == 0.0


def test_an_idle_engine_counts_as_empty():
    series = KVSeries(usable_blocks=4, replica=3)
    series.add(1000.0, 1000.0, 4, 0, 0, None)
    points = series.points()
    assert points[0].held == 0.0
    assert points[-1].held == pytest.approx(1.0)
    assert sum(p.held * p.seconds for p in points) == pytest.approx(1000.0)
    assert {p.replica for p in points} == {3}
    assert {p.wasted for p in points} == {None}


def test_nothing_said():
    assert KVSeries(5).points() == []


@given(
    st.lists(
        st.tuples(st.floats(0, 1e4), st.floats(1e-4, 1e4), st.integers(0, 50), st.integers(0, 50)),
        min_size=1,
        max_size=60,
    )
)
def test_no_block_second_is_lost_and_room_is_bounded(states):
    series = KVSeries(usable_blocks=50)
    now = area = waste = 0.0
    for gap, seconds, held, wasted in states:
        now += gap
        series.add(now, seconds, held, 0, 0, wasted)
        now += seconds
        area += held * seconds
        waste += wasted * seconds
    points = series.points()
    assert len(points) <= MOST
    assert sum(p.held * p.seconds for p in points) * 50 == pytest.approx(area)
    assert sum(p.wasted * p.seconds for p in points) * 50 == pytest.approx(waste)
    assert points[-1].at_s + points[-1].seconds == pytest.approx(now)
    assert all(a.at_s + a.seconds == pytest.approx(b.at_s) for a, b in pairwise(points))
    assert all(0 <= p.held <= 1 + 1e-9 for p in points)
