"""A bounded queue, by predicted work: with more of it open than the engine does in ``max_queue_s``, requests get 429.

Work is generated tokens. Open work is what is predicted for the responses that are not complete; one without a
prediction counts like the mean of those that have finished. The engine's rate is what it generated per second while
requests waited in it, so at its capacity, over the last half minute of such time; or what it generates per second now,
if that is more, so that a rate that was once too low does not keep requests out for good. Before the engine was seen at
its capacity nothing is refused.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from ecoserve.serving.adapter.metrics import middleware_metrics

#: Seconds by which an observation loses two thirds of its weight: those at capacity, and any.
_MEMORY_S: Final = 30.0
_NOW_S: Final = 5.0
#: Seconds at capacity without which there is no rate.
_LEAST_S: Final = 1.0
#: Weight of a finished response in the mean length.
_WEIGHT: Final = 0.02


@dataclass(slots=True)
class _Rate:
    memory_s: float
    tokens: float = 0.0
    seconds: float = 0.0

    def add(self, tokens: int, seconds: float) -> None:
        keep = math.exp(-seconds / self.memory_s)
        self.tokens = self.tokens * keep + tokens
        self.seconds = self.seconds * keep + seconds

    def value(self) -> float:
        return self.tokens / self.seconds if self.seconds >= _LEAST_S else 0.0


class _Engine:
    def __init__(self, now: float) -> None:
        self.last_s = now
        self.waited = False
        self.at_capacity = _Rate(_MEMORY_S)
        self.now = _Rate(_NOW_S)


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
        took = now - seen.last_s
        seen.now.add(tokens, took)
        if waiting and seen.waited:
            seen.at_capacity.add(tokens, took)
        seen.last_s, seen.waited = now, waiting
        middleware_metrics().work_rate.labels().set(self.rate() or 0.0)

    def finished(self, tokens: int) -> None:
        """A response of ``tokens`` has finished."""
        self._mean = float(tokens) if self._mean is None else self._mean + _WEIGHT * (tokens - self._mean)

    def open_tokens(self) -> float:
        return self._predicted + self._unknown * (self._mean or 0.0)

    def rate(self) -> float | None:
        """Tokens per second at capacity; None as long as that was not seen."""
        rates = [(e.at_capacity.value(), e.now.value()) for e in self._engines.values()]
        return sum(max(pair) for pair in rates if pair[0]) or None

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
        middleware_metrics().open_work.labels().set(self.open_tokens())
