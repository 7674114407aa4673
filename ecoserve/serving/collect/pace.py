"""When the next request may go out: a rate that is not exceeded, and waits that all requests share.

Rules: slots are evenly spaced, so that no second sees more than the rate. Where a server says when to come back, or
is not there at all, everybody waits, not only the request that was told so. Waits grow from one attempt to the next and
are spread at random, so that those who were sent away together do not come back together.

No clock of its own: ``now`` is a monotonic time in seconds.
"""

from __future__ import annotations

import random
from typing import Final

#: Longest wait between two attempts, in seconds, unless the server asks for more.
LONGEST_S: Final = 60.0


def backoff(base_s: float, attempt: int, rng: random.Random) -> float:
    """Seconds to wait before attempt ``attempt`` (1: the first repetition): doubled each time, half of it by chance."""
    return min(LONGEST_S, base_s * 2.0 ** min(attempt - 1, 32)) * rng.uniform(0.5, 1.0)


class Pace:
    """A token bucket that holds one token: at most ``rate`` requests a second, None for no limit."""

    def __init__(self, rate: float | None) -> None:
        self._gap = 0.0 if rate is None else 1.0 / rate
        self._next = float("-inf")

    def take(self, now: float) -> float:
        """Take the next slot; returns how long to wait for it, in seconds."""
        at = max(now, self._next)
        self._next = at + self._gap
        return at - now


class Gate:
    """Whether the server is there for us, for all requests at once.

    Args:
        base_s: first wait while it is away, in seconds; doubles.
        rng: spreads the waits.
    """

    def __init__(self, base_s: float, rng: random.Random) -> None:
        self._base_s = base_s
        self._rng = rng
        self._opens = float("-inf")
        self._away_since: float | None = None
        self._strikes = 0

    def wait(self, now: float) -> float:
        """How long everybody has to wait, in seconds; 0 while the gate is open."""
        return max(0.0, self._opens - now)

    def hold(self, now: float, seconds: float) -> None:
        """The server asks to be left alone for ``seconds``."""
        self._opens = max(self._opens, now + seconds)

    def away(self, now: float) -> float:
        """Nobody answered at all; returns for how long that has been so, in seconds."""
        if self._away_since is None:
            self._away_since = now
        # Requests that were sent together find the door closed together: that is one strike.
        if self.wait(now) == 0.0:
            self._strikes += 1
            self.hold(now, backoff(self._base_s, self._strikes, self._rng))
        return now - self._away_since

    def away_for(self, now: float) -> float:
        """For how long nobody has answered, in seconds; 0 while somebody does."""
        return 0.0 if self._away_since is None else now - self._away_since

    def reached(self) -> None:
        """Somebody answered, whatever it was."""
        self._away_since = None
        self._strikes = 0
