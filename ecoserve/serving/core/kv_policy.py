"""What a KV policy is: how much KV a request is promised, and which requests may start.

The planner asks within a step, in this order: ``begin_step``, ``admits_new_decode`` and ``admits_decode`` for decodes,
``admits_prompt`` for the head of the prefill queue, ``admitted`` for every prefill that starts. Answers change nothing
but promises. A ``reserve`` (fraction of the KV cache) is kept out of admission by every policy: under-predictions draw
on it first.
"""

from __future__ import annotations

import math
from typing import Protocol

from ecoserve.serving.core.ledger import Ledger
from ecoserve.serving.core.settings import SchedulerSettings
from ecoserve.serving.core.tasks import Task


class PoolForecast(Protocol):
    """Forecast of the KV of the requests that hold some. ``rho``: correlation of their lengths' errors."""

    rho: float

    def rebase(self, tasks: list[Task], shared_blocks: int = 0) -> None:
        """Forecast these holders; ``shared_blocks`` are counted in more than one of them."""

    def add(self, task: Task) -> None:
        """Count one more request that starts now."""

    def fits_with(self, task: Task, limit_blocks: int, epsilon: float) -> bool:
        """Whether, with ``task`` started too, the limit is exceeded in at most a share ``epsilon`` of the futures."""

    def enter(self, task: Task) -> None:
        """Read a request's length distribution; again whenever it has changed."""

    def leave(self, task: Task) -> None:
        """Forget a request."""


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

    def on_arrival(self, task: Task) -> None:
        """See a new request."""

    def begin_step(self) -> None:
        """The ledger has changed: totals are computed anew at the next question."""

    def admits_prompt(self, task: Task) -> bool:
        """Whether a prefill may start."""
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
        """A request has given up its KV: it has finished or was preempted."""
        self.forecast.leave(task)

    def lent_blocks(self, reserved: int | None = None) -> int:
        """Promised blocks in use by others; ``reserved``: the ledger's ``reserved_blocks()``, if known."""
        return self.ledger.lent_blocks(reserved)
