"""KVC policies: what a request is promised, and who may start.

``on-demand``: vLLM's own. Nothing is promised, whoever fits now may start.

``exact`` (the paper's allocation): a GT is promised its predicted length plus ``padding`` and starts only if all
promises together fit; accounting, since vLLM takes blocks as they are written. A prompt may run ahead of its GT's
promise as long as those who hold KVC without one (waiting GTs, prompts on their way) hold at most ``waiting_share`` of
the cache. What a waiting GT claims is kept for it once it was passed by long enough: else a stream of short ones would
keep a long one waiting for ever.

``pooled``: nobody is promised a fixed window. A request starts if the forecast of everything that holds KVC plus
itself, mean + z standard deviations, stays within the cache at all future steps. ``promised`` is then only a quantile
for the books: outliving it is an under-prediction that costs nothing by itself.

A ``reserve`` (share of the cache) is kept out of admission for all of them: under-predictions draw on it first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from ecoserve.serving.core.forecast import Forecast
from ecoserve.serving.core.ledger import Ledger
from ecoserve.serving.core.tasks import Task, TaskState

KvcPolicyName = Literal["on-demand", "exact", "pooled"]


@dataclass(slots=True)
class KvcKnobs:
    """Knobs of the KVC policies. See the module's docstring for their rules."""

    policy: KvcPolicyName = "pooled"
    z: float = 2.0
    padding: float = 0.15
    quantile: float = 0.8
    reserve: float = 0.02
    waiting_share: float = 0.25


class KvcPolicy:
    """Answers admission questions about the ledger's requests; changes nothing but promises."""

    def __init__(self, knobs: KvcKnobs, ledger: Ledger, forecast: Forecast) -> None:
        self.knobs = knobs
        self.ledger = ledger
        self.forecast = forecast
        self.reserve_blocks = math.ceil(knobs.reserve * ledger.usable_blocks)
        self.open_blocks = ledger.usable_blocks - self.reserve_blocks
        #: promises given, and what is held without one
        self._promised_blocks = 0
        #: held by those who are without a promise: waiting GTs and prompts on their way
        self._waiting_blocks = 0
        #: what those of them claim beyond it who have been passed by long enough
        self._claimed_blocks = 0
        self._stale = True

    # -- one scheduling step -------------------------------------------------------------------------

    def begin_step(self) -> None:
        """Forget the last stock-taking: the ledger has changed. Stock is taken again when somebody asks."""
        self._stale = True

    def _stock(self) -> None:
        if not self._stale:
            return
        self._stale = False
        ledger = self.ledger
        if self.knobs.policy == "pooled":
            self.forecast.rebase(ledger.holders(), ledger.shared_blocks())
        elif self.knobs.policy == "exact":
            holders = ledger.holders()
            self._promised_blocks = sum(ledger.promised_blocks(t) for t in holders)
            without = [t for t in holders if t.promised <= t.generated and t.state is not TaskState.DECODE]
            self._waiting_blocks = sum(ledger.blocks(t.span_tokens()) for t in without)
            self._claimed_blocks = sum(
                max(0, self._whole(t) - ledger.promised_blocks(t)) for t in without if t.passed_by
            )

    def admits_prompt(self, task: Task) -> bool:
        """Whether a PT may start (its prompt, and what comes of it)."""
        if self.knobs.policy == "on-demand":
            return True
        self._stock()
        if self.knobs.policy == "pooled":
            return self.forecast.peak_with(task, self.knobs.z) <= self.open_blocks
        if self._promised_blocks + self._claimed_blocks + self._whole(task) <= self.open_blocks:
            return True
        prompt = self.ledger.blocks(task.span_tokens() + 1)
        ahead = self._waiting_blocks + prompt <= self.knobs.waiting_share * self.ledger.usable_blocks
        return ahead and self._promised_blocks + prompt <= self.open_blocks

    def admits_generation(self, task: Task) -> bool:
        """Whether a GT may go on generating under a new promise."""
        if self.knobs.policy != "exact":
            return True
        return self._fits_exactly(task, self.promise(task), self.open_blocks)

    def enters_generation(self, task: Task) -> bool:
        """Whether a PT that has just finished may start generating, before the GTs that wait for their promise.

        It may unless that takes from one that was passed by long enough: then it takes its place among them.
        """
        if self.knobs.policy != "exact":
            return self.admits_generation(task)
        self._stock()
        return self._fits_exactly(task, self.promise(task), self.open_blocks - self._claimed_blocks)

    def lends_reserve(self, task: Task) -> bool:
        """Whether the global reserve has room for one more block of an outlived GT."""
        if self.knobs.policy != "exact":
            return True
        return self._fits_exactly(task, task.generated + self.ledger.block_size, self.ledger.usable_blocks)

    def _fits_exactly(self, task: Task, response_tokens: int, limit_blocks: int) -> bool:
        self._stock()
        others = self._promised_blocks - self.ledger.promised_blocks(task)
        return others + self.ledger.blocks(task.prompt_tokens + response_tokens) <= limit_blocks

    def reserve_for(self, task: Task, response_tokens: int) -> None:
        """Promise a holder KVC for ``response_tokens`` tokens of response."""
        before = self.ledger.promised_blocks(task)
        task.promised = min(task.limit, response_tokens)
        self._promised_blocks += self.ledger.promised_blocks(task) - before

    def admitted(self, task: Task) -> None:
        """Count a PT that was just let through, until stock is taken again."""
        if self.knobs.policy == "pooled":
            self._stock()
            self.forecast.add(task)
        elif self.knobs.policy == "exact":
            self._stock()
            whole = self._whole(task)
            if self._promised_blocks + self._claimed_blocks + whole <= self.open_blocks:
                self._promised_blocks += whole
            else:
                prompt = self.ledger.blocks(task.span_tokens() + 1)
                self._promised_blocks += prompt
                self._waiting_blocks += prompt

    def _whole(self, task: Task) -> int:
        """Blocks of prompt and response if the promise were made now."""
        return self.ledger.blocks(task.prompt_tokens + self.promise(task))

    # -- promises ------------------------------------------------------------------------------------

    def promise(self, task: Task) -> int:
        """The response length a reservation made now would cover, in tokens, given what is already out."""
        if self.knobs.policy == "on-demand":
            return task.generated
        posterior = task.lengths.given_longer_than(task.generated)
        if self.knobs.policy == "pooled":
            return min(task.limit, posterior.quantile(self.knobs.quantile))
        middle = posterior.quantile(0.5)
        return min(task.limit, max(task.generated + 1, math.ceil(middle * (1.0 + self.knobs.padding))))
