"""A bounded queue, by predicted work: with more of it open than the engine does in ``max_queue_s``, requests get 429.

Work is generated tokens. Open work is what is predicted for the responses that are not complete; one without a
prediction counts like the mean of those that have finished. The engine's rate is what it generated per second while
requests waited in it, so at its capacity, over the last half minute of such time. Before there was any nothing is
refused, and an engine with places to spare has less open work than fills the bound.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from ecoserve.serving.adapter.metrics import middleware_metrics

#: Seconds at capacity by which an observation loses two thirds of its weight, and those without which there is no rate.
_MEMORY_S: Final = 30.0
_LEAST_S: Final = 1.0
#: Weight of a finished response in the mean length.
_WEIGHT: Final = 0.02


@dataclass(slots=True)
class _Engine:
    last_s: float
    waited: bool = False
    tokens: float = 0.0
    seconds: float = 0.0


class WorkBound:
    """The open work of one API server, and the rate of its engines.

    Args:
        max_queue_s: the bound, seconds; None: nothing is refused.
        clock: seconds, monotonic.
    """

    def __init__(self, max_queue_s: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._most_s = max_queue_s
        self._clock = clock
        #: requests that are open, predicted tokens of those with a prediction, and the number of the others
        self._open = 0
        self._predicted = 0.0
        self._unknown = 0
        self._engines: dict[int, _Engine] = {}
        self._mean: float | None = None

    def step(self, engine: int, tokens: int, waiting: bool) -> None:
        """An engine has generated ``tokens`` since its last step; ``waiting``: requests wait in it."""
        now = self._clock()
        seen = self._engines.setdefault(engine, _Engine(now))
        if waiting and seen.waited:
            took = now - seen.last_s
            keep = math.exp(-took / _MEMORY_S)
            seen.tokens = seen.tokens * keep + tokens
            seen.seconds = seen.seconds * keep + took
        seen.last_s, seen.waited = now, waiting
        metrics = middleware_metrics()
        metrics.open_work.labels().set(self.open_tokens())
        metrics.work_rate.labels().set(self.rate() or 0.0)

    def finished(self, tokens: int) -> None:
        """A response of ``tokens`` has finished."""
        self._mean = float(tokens) if self._mean is None else self._mean + _WEIGHT * (tokens - self._mean)

    def open_tokens(self) -> float:
        return self._predicted + self._unknown * (self._mean or 0.0)

    def rate(self) -> float | None:
        """Tokens per second at capacity; None as long as that was not seen."""
        rates = [e.tokens / e.seconds for e in self._engines.values() if e.seconds >= _LEAST_S]
        return sum(rates) or None

    def retry_after_s(self) -> int | None:
        """Seconds until there is room for another request; None: now."""
        rate = self.rate()
        if self._most_s is None or rate is None:
            return None
        over = self.open_tokens() / rate - self._most_s
        return math.ceil(over) if over > 0 else None

    @contextmanager
    def serving(self, tokens: float | None) -> Iterator[None]:
        """A request is open for which ``tokens`` are predicted, None without a prediction."""
        self._count(tokens, 1)
        try:
            yield
        finally:
            self._count(tokens, -1)

    def _count(self, tokens: float | None, sign: int) -> None:
        self._open += sign
        self._unknown += sign * (tokens is None)
        # Starting anew at zero, rounding errors do not add up.
        self._predicted = self._predicted + sign * (tokens or 0.0) if self._open else 0.0
