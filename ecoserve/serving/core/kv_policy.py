"""What a KV policy is: how much KV a request is promised, and which requests may start; and ``ranked``, the default.

The planner asks within a step, in this order: ``begin_step``, ``admits_new_decode`` and ``admits_decode`` for decodes,
``admits_prompt`` for the head of the prefill queue, ``admitted`` for every prefill that starts. Answers change nothing
but promises. A ``reserve`` (fraction of the KV cache) is kept out of admission by every policy: under-predictions draw
on it first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np

from ecoserve.serving.core.forecast import Forecast, Usage, deviations
from ecoserve.serving.core.kv_use import Floats
from ecoserve.serving.core.ledger import Ledger
from ecoserve.serving.core.orderings import Ordering
from ecoserve.serving.core.settings import SchedulerSettings
from ecoserve.serving.core.tasks import Task, TaskState


class KVPolicy:
    """Base of all policies, and ``on-demand``: every request may start, nothing is promised."""

    #: whether a promise is a window that others may not use: then the global reserve has to be asked for
    exclusive = False

    def __init__(self, settings: SchedulerSettings, ledger: Ledger, forecast: Forecast, ordering: Ordering) -> None:
        self.ordering = ordering
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

    def gives_way(self, running: Sequence[Task], places: int, now: float) -> list[Task]:
        """Running decodes that pause for requests that wait; ``places``: of requests in the batch."""
        return []

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


#: Steps ahead that admission by rank looks.
NEXT_STEPS: Final = 10.0


def ranks(tasks: Sequence[Task], forecast: Forecast, ordering: Ordering) -> tuple[Floats, Floats]:
    """Client priority and place of each request, to be compared in this order; lower goes first."""
    priority = np.fromiter((t.priority for t in tasks), dtype=float, count=len(tasks))
    return priority, ordering.places(tasks, forecast.likely_rests(tasks))


class Ranked(KVPolicy):
    """``ranked``: a request starts if it and the holders that rank before it fit, now and in the next steps.

    The rank is that of the queues: client priority, then the ordering's. KV of requests that rank behind counts as
    room: they give way when it is needed (:mod:`~ecoserve.serving.core.shortage`). The new blocks of its prompt must be
    free now. Forecasts of :data:`NEXT_STEPS` steps stay within the cache but in a share ``epsilon`` of the futures; to
    look further ahead gains nothing, and leaves KV empty that could have been used until then (docs/log.md).

    ``promised`` is only a quantile for the reports: outliving it costs nothing.
    """

    within_steps: float = NEXT_STEPS

    def __init__(self, settings: SchedulerSettings, ledger: Ledger, forecast: Forecast, ordering: Ordering) -> None:
        super().__init__(settings, ledger, forecast, ordering)
        self.begin_step()

    def begin_step(self) -> None:
        self._before: tuple[Floats, Floats, Usage] | None = None
        self._missing: int | None = None
        self._new: list[Task] = []
        self._taken = 0
        self._asked: dict[Task, Usage] = {}

    def admits_prompt(self, task: Task) -> bool:
        room = self.open_blocks - self.ledger.held_blocks - self._taken - self._new_blocks(task)
        if room < 0:
            return False
        if room >= self._most_growth():
            return True
        usage = self._ahead(task)
        for other in (*self._new, task):
            usage = usage + self._own(other)
        usage.mean = usage.mean + self.ledger.shared_blocks()
        peak = self.forecast.peak(usage, deviations(self.settings.epsilon))
        return peak <= self.open_blocks

    def _new_blocks(self, task: Task) -> int:
        kv_use = self.ledger.kv_use
        return kv_use.prompt_blocks(task.span_tokens() + 1 + kv_use.ahead, task.settled) - task.shared_blocks

    def _most_growth(self) -> float:
        """Blocks that all holders and the newcomer gain in the next steps if no response ends, at most."""
        if self.within_steps == math.inf:
            return math.inf
        kv_use, holders = self.ledger.kv_use, self.ledger.holders()
        if self._missing is None:
            prompts = (t for t in holders if t.state is TaskState.PREFILL)
            self._missing = sum(kv_use.missing(t, t.span_tokens()) for t in prompts)
        # A decode's newest token is not written yet.
        tokens = math.ceil(self.within_steps * max(1.0, self.forecast.tokens_per_step)) + 1 + kv_use.ahead
        return self._missing + (len(holders) + len(self._new) + 1) * kv_use.growth(tokens)

    def _ahead(self, task: Task) -> Usage:
        """KV use of the holders that rank before ``task``."""
        if self._before is None:
            holders = [t for t in self.ledger.holders() if not t.idle]
            priority, rank = ranks(holders, self.forecast, self.ordering)
            order = np.lexsort((rank, priority))
            usage = self.forecast.usage([holders[i] for i in order], self.within_steps).cumulative()
            self._before = priority, rank, usage
        priority, rank, usage = self._before
        own_priority, own_rank = self._place(task)
        before = (priority < own_priority) | ((priority == own_priority) & (rank <= own_rank))
        return usage.row(int(np.count_nonzero(before)))

    def _place(self, task: Task) -> tuple[float, float]:
        (priority,), (rank,) = ranks([task], self.forecast, self.ordering)
        return float(priority), float(rank)

    def _own(self, task: Task) -> Usage:
        if task not in self._asked:
            self._asked[task] = self.forecast.usage([task], self.within_steps).row(0)
        return self._asked[task]

    def admitted(self, task: Task) -> None:
        self._new.append(task)
        self._taken += self._new_blocks(task)

    def promise(self, task: Task) -> int:
        return min(task.limit, task.lengths.given_longer_than(task.generated).quantile(self.settings.quantile))


class Pooled(Ranked):
    """``pooled``: as ``ranked``, but all holders count, whatever their rank, and to their end."""

    within_steps = math.inf

    def _place(self, task: Task) -> tuple[float, float]:
        return math.inf, math.inf
