from __future__ import annotations

import time

import pytest

from ecoserve.serving.adapter import scheduler as module
from ecoserve.serving.adapter.scheduler import EngineClock


class Clocks:
    """Both clocks of the machine, by hand."""

    def __init__(self) -> None:
        self.wall, self.steady = 1_700_000_000.0, 50.0

    def time(self) -> float:
        self.wall += 1e-6
        return self.wall

    def monotonic(self) -> float:
        self.steady += 1e-6
        return self.steady


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> Clocks:
    hand = Clocks()
    monkeypatch.setattr(module, "time", hand)
    return hand


def test_an_arrival_is_as_long_ago_as_the_wall_clock_says(clocks: Clocks) -> None:
    clock = EngineClock()
    assert clock.now() - clock.arrival(clocks.wall - 3.0) == pytest.approx(3.0, abs=1e-4)


def test_equal_arrivals_stay_equal(clocks: Clocks) -> None:
    clock = EngineClock()
    arrived = clocks.wall - 1.0
    assert len({clock.arrival(arrived) for _ in range(50)}) == 1


def test_a_wall_clock_that_was_set_is_followed(clocks: Clocks) -> None:
    clock = EngineClock()
    clocks.wall -= 3600.0
    assert clock.now() - clock.arrival(clocks.wall - 2.0) == pytest.approx(2.0, abs=1e-4)


def test_nothing_arrives_in_the_future(clocks: Clocks) -> None:
    clock = EngineClock()
    assert clock.arrival(clocks.wall + 100.0) <= clock.now()


def test_on_this_machine() -> None:
    clock = EngineClock()
    assert clock.arrival(time.time()) <= clock.now() <= clock.now()
