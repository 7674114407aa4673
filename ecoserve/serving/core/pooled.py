"""``pooled``, the default KV policy: no request is promised a window; the batch as a whole must fit, now and later.

A request starts if the forecast KV of all holders plus its own stays within the cache at every time ahead, but in a
share ``epsilon`` of the futures. The sum over a batch is known far better than any of its members, so this needs less
room than padding each of them to the same safety. ``promised`` is only a quantile for the reports: outliving it costs
nothing.

*Headroom.* Where long requests may fill the cache, a later short one waits long beside what it needs itself. So the
limit falls with the length's rank among recent arrivals: the longest may start only while ``headroom`` of the cache
stays free, the shortest at any time (trunk reservation, as in telephone networks; docs/log.md has what it brings).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from typing import Final

from ecoserve.serving.core.kv_policy import KVPolicy, PoolForecast
from ecoserve.serving.core.ledger import Ledger
from ecoserve.serving.core.settings import SchedulerSettings
from ecoserve.serving.core.tasks import Task

#: Recent arrivals among which a request's length is ranked.
RECENT: Final = 512


class Pooled(KVPolicy):
    """Admission by the forecast of the whole batch."""

    def __init__(self, settings: SchedulerSettings, ledger: Ledger, forecast: PoolForecast) -> None:
        super().__init__(settings, ledger, forecast)
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
        """Blocks that the batch may come to need with this request."""
        if not self._sorted or self.settings.headroom <= 0:
            return self.open_blocks
        rank = bisect_left(self._sorted, task.expected_rest()) / len(self._sorted)
        return int(self.open_blocks * (1.0 - self.settings.headroom * rank))

    def begin_step(self) -> None:
        self._stale = True

    def _rebase(self) -> None:
        if self._stale:
            self._stale = False
            self.forecast.rebase(self.ledger.holders(), self.ledger.shared_blocks())

    def admits_prompt(self, task: Task) -> bool:
        self._rebase()
        return self.forecast.fits_with(task, self.limit_blocks(task), self.settings.epsilon)

    def admitted(self, task: Task) -> None:
        self._rebase()
        self.forecast.add(task)

    def promise(self, task: Task) -> int:
        return min(task.limit, task.lengths.given_longer_than(task.generated).quantile(self.settings.quantile))
