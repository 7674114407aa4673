"""The scheduler's clock: arrivals and deadlines on one time line.

A request's ``arrival_time`` is the API server's wall clock, which may be set back or forward; the scheduler's time is
monotonic. An arrival is converted once, when the scheduler is given the request, by the difference of the two
clocks; that is kept as long as the wall clock was not set, so that equal arrivals stay equal.
"""

from __future__ import annotations

import time
from typing import Protocol


class SchedulerClock(Protocol):
    """Seconds on the scheduler's time line."""

    def now(self) -> float:
        """The time now."""

    def arrival(self, arrival_time: float) -> float:
        """The arrival of a request that was just handed over; ``arrival_time`` as the front end wrote it down."""


#: A difference of the clocks that has moved by more than this many seconds is a wall clock that was set.
_SET_S = 0.25


class EngineClock:
    """The clock of a real engine."""

    def __init__(self) -> None:
        self._ahead = time.time() - time.monotonic()

    def now(self) -> float:
        """Monotonic seconds."""
        return time.monotonic()

    def arrival(self, arrival_time: float) -> float:
        """Never in the future, whatever the wall clock says."""
        now = time.monotonic()
        ahead = time.time() - now
        if abs(ahead - self._ahead) > _SET_S:
            self._ahead = ahead
        return min(now, arrival_time - self._ahead)
