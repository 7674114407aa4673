"""What a KV policy is: how much KV a request is promised, and which requests may start; and ``pooled``, the default.

The planner asks within a step, in this order: ``begin_step``, ``admits_new_decode`` and ``admits_decode`` for decodes,
``admits_prompt`` for the head of the prefill queue, ``admitted`` for every prefill that starts. Answers change nothing
but promises. A ``reserve`` (fraction of the KV cache) is kept out of admission by every policy: under-predictions draw
on it first.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from typing import Final

from ecoserve.serving.core.forecast import PoolForecast
from ecoserve.serving.core.ledger import Ledger
from ecoserve.serving.core.settings import SchedulerSettings
from ecoserve.serving.core.tasks import Task


class KVPolicy:
    """Base of all policies, and ``on-demand``: every request may start, nothing is promised."""

    #: whether a promise is a window that others may not use: then the global reserve has to be asked for
    exclusive = False

    def __init__(self, settings: SchedulerSettings, ledger: Ledger, forecast: PoolForecast) -> None:
        self.settings = settings
        self.ledger = ledger
        self.forecast = forecast
        self.reserve_blocks = math.ceil(settings.reserve * ledger.usable_blocks)
        self.open_blocks = ledger.usable_blocks - self.reserve_blocks

    def on_arrival(self, task: Task) -> None: ...

    def begin_step(self) -> None:
        """The ledger has changed: totals are computed anew at the next question."""

    def admits_prompt(self, task: Task) -> bool:
        return True

    def admitted(self, task: Task) -> None:
        """Count a prefill that has started, until the next ``begin_step``."""

    def admits_new_decode(self, task: Task) -> bool:
        """Whether a prefill that has just finished may decode, ahead of the decodes that wait for their promise."""
        return self.admits_decode(task)

    def admits_decode(self, task: Task) -> bool:
        """Whether a decode may go on under a new promise."""
        return True

    def lends_reserve(self, task: Task) -> bool:
        """Whether the reserve has room for one more block of a decode that outlived its promise."""
        return True

    def extends(self, task: Task) -> bool:
        """Give a decode that outlived its promise one token of its own unlent space; False if there is none."""
        return False

    def reserve_for(self, task: Task, response_tokens: int) -> None:
        """Promise a holder KV for a response of ``response_tokens`` tokens."""
        task.promised = min(task.limit, response_tokens)

    def promise(self, task: Task) -> int:
        """Response length, in tokens, that a promise made now would cover."""
        return task.generated

    def overdue_guests(self) -> list[Task]:
        """Guests whose host has reached the KV lent to them."""
        return []

    def rehome(self, guest: Task) -> bool:
        """Give a guest a window of its own; False if none fits."""
        return True

    def evict(self, guest: Task) -> None:
        """End a guest's loan: from now on it is charged for what it holds and was promised."""

    def on_release(self, task: Task) -> None:
        self.forecast.leave(task)

    def lent_blocks(self, reserved: int | None = None) -> int:
        """Promised blocks in use by others; ``reserved``: the ledger's ``reserved_blocks()``, if known."""
        return self.ledger.lent_blocks(reserved)


#: Recent arrivals among which a request's length is ranked.
RECENT: Final = 512


class Pooled(KVPolicy):
    """``pooled``: no request is promised a window; the batch as a whole must fit, now and later.

    A request starts if the forecast KV of all holders plus its own stays within the cache at every time ahead, but in a
    share ``epsilon`` of the futures. ``promised`` is only a quantile for the reports: outliving it costs nothing.

    *Headroom.* Where long requests may fill the cache, a later short one waits long beside what it needs itself. So the
    limit falls with the length's rank among recent arrivals: the longest may start only while ``headroom`` of the cache
    stays free, the shortest at any time (trunk reservation; docs/log.md has what it brings).
    """

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
