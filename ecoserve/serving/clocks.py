"""The two clocks of a run on a real engine.

Rule: what a run compares must not depend on what else the machine does. On a machine of its own the wall clock says
that; on a shared one a process's CPU time comes nearer to it, if one thread does all the work.
"""

from __future__ import annotations

import time


class WallClock:
    """Seconds that pass."""

    def now(self) -> float:
        """Seconds since some fixed moment."""
        return time.monotonic()

    def wait_until(self, when: float) -> None:
        """Sleep until the clock says ``when``."""
        time.sleep(max(0.0, when - self.now()))


class CpuClock:
    """Seconds that this process works; where it would wait, the clock jumps instead."""

    def __init__(self) -> None:
        self._jumped = 0.0

    def now(self) -> float:
        """Seconds worked, and jumped over, so far."""
        return time.process_time() + self._jumped

    def wait_until(self, when: float) -> None:
        """Let the clock say ``when``, at once."""
        self._jumped += max(0.0, when - self.now())
