"""``exact``, the paper's allocation, and ``max``, ORCA's: every decode has a window of its own.

``exact``: a decode is promised its predicted length (the posterior median) plus ``padding`` and starts only if all
promises fit together. ``max``: the same with the request's token limit, so that nothing is ever under-predicted and
most of the cache stays empty. Promises are accounting: vLLM takes blocks as they are written.

A prompt may run ahead of its decode's promise while the holders without a promise have at most ``waiting_share`` of
the cache. The claim of a decode that has waited long is kept for it, so that a stream of short ones cannot starve it.

Sources: EcoServe (arXiv 2411.06364), "exact allocation"; ORCA (OSDI 2022), reservation of the maximum.
"""

from __future__ import annotations

import math

from ecoserve.serving.core.forecast import Forecast
from ecoserve.serving.core.kv_policy import KVPolicy
from ecoserve.serving.core.ledger import Ledger
from ecoserve.serving.core.orderings import Ordering
from ecoserve.serving.core.settings import SchedulerSettings
from ecoserve.serving.core.tasks import Task, TaskState


class Exact(KVPolicy):
    """A window of its own for every decode, of its padded predicted length."""

    exclusive = True

    def __init__(self, settings: SchedulerSettings, ledger: Ledger, forecast: Forecast, ordering: Ordering) -> None:
        super().__init__(settings, ledger, forecast, ordering)
        #: promises given, and what is held without one
        self._promised_blocks = 0
        #: held without a promise: by waiting decodes and by prefills
        self._waiting_blocks = 0
        #: what those of them that were passed by for long claim beyond it
        self._claimed_blocks = 0
        self._stale = True

    def begin_step(self) -> None:
        self._stale = True

    def _recount(self) -> None:
        if not self._stale:
            return
        self._stale = False
        ledger = self.ledger
        holders = ledger.holders()
        self._promised_blocks = sum(self.charge(t) for t in holders)
        without = [t for t in holders if t.promised <= t.generated and t.state is not TaskState.DECODE]
        self._waiting_blocks = sum(ledger.blocks(t.span_tokens()) for t in without)
        self._claimed_blocks = sum(max(0, self.whole(t) - self.charge(t)) for t in without if t.passed_by)

    def charge(self, task: Task) -> int:
        return self.ledger.promised_blocks(task)

    def whole(self, task: Task) -> int:
        """Blocks of prompt and response if the promise were made now."""
        return self.ledger.blocks(task.prompt_tokens + self.promise(task))

    def admits_prompt(self, task: Task) -> bool:
        self._recount()
        if self._promised_blocks + self._claimed_blocks + self.whole(task) <= self.open_blocks:
            return True
        prompt = self.ledger.blocks(task.span_tokens() + 1)
        ahead = self._waiting_blocks + prompt <= self.settings.waiting_share * self.ledger.usable_blocks
        return ahead and self._promised_blocks + prompt <= self.open_blocks

    def admitted(self, task: Task) -> None:
        self._recount()
        whole = self.whole(task)
        if self._promised_blocks + self._claimed_blocks + whole <= self.open_blocks:
            self._promised_blocks += whole
        else:
            prompt = self.ledger.blocks(task.span_tokens() + 1)
            self._promised_blocks += prompt
            self._waiting_blocks += prompt

    def admits_new_decode(self, task: Task) -> bool:
        """It may unless that takes from a decode that was passed by for long: then it waits in order."""
        self._recount()
        return self._fits(task, self.promise(task), self.open_blocks - self._claimed_blocks)

    def admits_decode(self, task: Task) -> bool:
        return self._fits(task, self.promise(task), self.open_blocks)

    def lends_reserve(self, task: Task) -> bool:
        return self._fits(task, task.generated + self.ledger.kv_use.block_size, self.ledger.usable_blocks)

    def extends(self, task: Task) -> bool:
        next_span = task.prompt_tokens + task.generated + 1
        if self.ledger.blocks(next_span) > self.ledger.promised_blocks(task):
            return False
        self.reserve_for(task, task.generated + 1)
        return True

    def _fits(self, task: Task, response_tokens: int, limit_blocks: int) -> bool:
        self._recount()
        others = self._promised_blocks - self.charge(task)
        return others + self.ledger.blocks(task.prompt_tokens + response_tokens) <= limit_blocks

    def reserve_for(self, task: Task, response_tokens: int) -> None:
        before = self.charge(task)
        super().reserve_for(task, response_tokens)
        self._promised_blocks += self.charge(task) - before

    def promise(self, task: Task) -> int:
        middle = task.lengths.given_longer_than(task.generated).quantile(0.5)
        return min(task.limit, max(task.generated + 1, math.ceil(middle * (1.0 + self.settings.padding))))


class Max(Exact):
    def promise(self, task: Task) -> int:
        return task.limit
