"""The scheduler's clock: arrivals and deadlines on one time line.

A request's ``arrival_time`` is the API server's wall clock, which may be set back or forward; the scheduler's time is
monotonic. Rule: an arrival is converted once, when the scheduler is given the request, by how long ago it was on the
wall clock then.
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


class EngineClock:
    """The clock of a real engine."""

    def now(self) -> float:
        """Monotonic seconds."""
        return time.monotonic()

    def arrival(self, arrival_time: float) -> float:
        """Never in the future, whatever the wall clock says."""
        return time.monotonic() - max(0.0, time.time() - arrival_time)
