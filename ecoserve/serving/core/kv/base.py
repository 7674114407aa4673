"""What a KV policy is: what a request is promised, and who may start.

A policy answers admission questions about the ledger's requests and changes nothing but promises; the adapter asks, in
this order, within a step: ``begin_step`` (the ledger has changed), ``admits_new_decode`` and ``admits_decode`` for
decodes, ``admits_prompt`` for the head of the prefill queue, ``admitted`` for every prefill that was let through.

A ``reserve`` (share of the cache) is kept out of admission for all policies: under-predictions draw on it first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from ecoserve.serving.core.ledger import Ledger
from ecoserve.serving.core.tasks import Task

KVPolicyName = Literal["on-demand", "max", "exact", "pipelined", "pooled"]
ForecastName = Literal["spread", "scenarios", "padded"]


@dataclass(slots=True)
class KVKnobs:
    """Knobs of the KV policies; each policy's module says what its own mean."""

    policy: KVPolicyName = "pooled"
    reserve: float = 0.02
    #: exact, pipelined: added to the predicted length, as a share
    padding: float = 0.15
    #: exact, max, pipelined: the most KV that those without a promise may hold, as a share
    waiting_share: float = 0.25
    #: pooled: how the batch's future is forecast, and the share of it that may overflow
    forecast: ForecastName = "spread"
    epsilon: float = 0.1
    #: pooled: share of the cache that the longest requests leave to shorter ones
    headroom: float = 0.1
    #: pooled: quantile of the length that the books call promised; forecast padded: that requests are padded to
    quantile: float = 0.8
    #: pipelined: tokens between a guest's expected end and its host's arrival; or the guest's own quantile
    buffer_tokens: int = 16
    buffer_quantile: float | None = None
    #: pipelined: guests of guests, so many levels deep
    lending_depth: int = 3
    #: pipelined: lend a stretch again after its guest has left
    relend: bool = True


class KVPolicy:
    """The questions, answered as ``on-demand`` does: whoever fits now may start, nothing is promised.

    Args:
        knobs: the policy's knobs.
        ledger: the books.
    """

    #: whether a promise is a window that others may not use: then the global reserve has to be asked for
    exclusive = False

    def __init__(self, knobs: KVKnobs, ledger: Ledger) -> None:
        self.knobs = knobs
        self.ledger = ledger
        self.reserve_blocks = math.ceil(knobs.reserve * ledger.usable_blocks)
        self.open_blocks = ledger.usable_blocks - self.reserve_blocks

    def on_arrival(self, task: Task) -> None:
        """See a new request."""

    def begin_step(self) -> None:
        """Forget the last stock-taking: the ledger has changed. Stock is taken again when somebody asks."""

    def admits_prompt(self, task: Task) -> bool:
        """Whether a prefill may start (its prompt, and what comes of it)."""
        return True

    def admitted(self, task: Task) -> None:
        """Count a prefill that was just let through, until stock is taken again."""

    def admits_new_decode(self, task: Task) -> bool:
        """Whether a prefill that has just finished may start generating, before the decodes that wait for their
        promise.
        """
        return self.admits_decode(task)

    def admits_decode(self, task: Task) -> bool:
        """Whether a decode may go on generating under a new promise."""
        return True

    def lends_reserve(self, task: Task) -> bool:
        """Whether the global reserve has room for one more block of an outlived decode."""
        return True

    def extends(self, task: Task) -> bool:
        """Give an outlived decode one token more of its own unlent space; whether there was one."""
        return False

    def reserve_for(self, task: Task, response_tokens: int) -> None:
        """Promise a holder KV for ``response_tokens`` tokens of response."""
        task.promised = min(task.limit, response_tokens)

    def promise(self, task: Task) -> int:
        """The response length a reservation made now would cover, in tokens, given what is already out."""
        return task.generated

    def overdue_guests(self) -> list[Task]:
        """Guests whose host has come to the KV that they were lent."""
        return []

    def rehome(self, guest: Task) -> bool:
        """Whether a guest whose host has come can have a window of its own; if so, it has it."""
        return True

    def evict(self, guest: Task) -> None:
        """Take its loan from a guest: from now on it is charged for what it holds and was promised."""

    def on_release(self, task: Task) -> None:
        """A holder holds nothing any more: it has finished, or its KV was dropped."""

    def lent_blocks(self, reserved: int | None = None) -> int:
        """Promised blocks that others may be using now: promises and holdings beyond what there is.

        ``reserved`` is the ledger's ``reserved_blocks()``, if the caller has it.
        """
        return self.ledger.lent_blocks(reserved)
