"""``pooled``: nobody is promised a window; the batch as a whole must fit, now and later.

A request starts if what everything that holds KV plus itself will come to need stays within the cache, by a forecast
that, of each time ahead, may be wrong in a share ``epsilon`` of the futures (at some time or other it is oftener;
docs/log.md). The sum over a batch is far better known than any one of its members, so this needs much less room than
padding each of them to the same safety. ``promised`` is then only a quantile for the books: outliving it is an
under-prediction that costs nothing by itself.

*Headroom.* Where long requests may fill the cache, a short one that comes later waits until one of them ends, which is
long beside what it needs itself. So the limit falls with the length: the longest of the recent arrivals may start only
while ``headroom`` of the cache would stay free, the shortest whatever is free; in between by rank. Telephone networks
know this as trunk reservation (docs/log.md has what it brings). Requests that are believed equally long all have the
whole cache.

Forecasts (docs/log.md compares them): ``spread``, mean + z standard deviations
(:mod:`~ecoserve.serving.core.forecast`); ``scenarios``, sampled joint futures
(:mod:`~ecoserve.serving.core.scenarios`); ``padded``, each request at its ``quantile``
(:mod:`~ecoserve.serving.core.padded`).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from typing import Final, Protocol

from ecoserve.serving.core.kv.base import KVKnobs, KVPolicy
from ecoserve.serving.core.ledger import Ledger
from ecoserve.serving.core.tasks import Task

#: Recent arrivals among which a request's length is ranked.
RECENT: Final = 512


class PoolForecast(Protocol):
    """The future KV of the requests that hold some. ``rho``: what of their lengths' spread is common."""

    rho: float

    def rebase(self, tasks: list[Task], shared_blocks: int = 0) -> None:
        """Forecast these holders; ``shared_blocks`` are counted in more than one of them."""

    def add(self, task: Task) -> None:
        """Count one more request that starts now."""

    def fits_with(self, task: Task, limit_blocks: int, epsilon: float) -> bool:
        """Whether ``task`` may start too: the limit is passed in at most a share ``epsilon`` of the futures."""

    def enter(self, task: Task) -> None:
        """Take in what is believed of a request's length; again when that has changed."""

    def leave(self, task: Task) -> None:
        """Forget a request."""


class Pooled(KVPolicy):
    """Admission by the forecast of the whole batch."""

    def __init__(self, knobs: KVKnobs, ledger: Ledger, forecast: PoolForecast) -> None:
        super().__init__(knobs, ledger)
        self.forecast = forecast
        self._stale = True
        self._arrived: deque[float] = deque()
        self._sorted: list[float] = []

    def on_arrival(self, task: Task) -> None:
        length = task.expected_rest()
        self._arrived.append(length)
        insort(self._sorted, length)
        if len(self._arrived) > RECENT:
            del self._sorted[bisect_left(self._sorted, self._arrived.popleft())]

    def limit_blocks(self, task: Task) -> int:
        """Blocks that the batch may come to need if this request is to start."""
        if not self._sorted or self.knobs.headroom <= 0:
            return self.open_blocks
        rank = bisect_left(self._sorted, task.expected_rest()) / len(self._sorted)
        return int(self.open_blocks * (1.0 - self.knobs.headroom * rank))

    def begin_step(self) -> None:
        self._stale = True

    def _stock(self) -> None:
        if self._stale:
            self._stale = False
            self.forecast.rebase(self.ledger.holders(), self.ledger.shared_blocks())

    def admits_prompt(self, task: Task) -> bool:
        self._stock()
        return self.forecast.fits_with(task, self.limit_blocks(task), self.knobs.epsilon)

    def admitted(self, task: Task) -> None:
        self._stock()
        self.forecast.add(task)

    def promise(self, task: Task) -> int:
        return min(task.limit, task.lengths.given_longer_than(task.generated).quantile(self.knobs.quantile))

    def on_release(self, task: Task) -> None:
        self.forecast.leave(task)
