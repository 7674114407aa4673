"""Who is next: orderings of the two queues, as keys that sort ascending.

A queue is a list sorted by these keys. Most keys never change while a request waits; those of ``hrrn``, ``paper`` and
``slo`` depend on the time and are made anew between steps (:attr:`Ordering.moves`), never within one.

=========  ==================================================================================================
``fcfs``   by arrival
``sjf``    shortest whole response first, with linear ageing
``srpt``   shortest rest first (what is still to come), with linear ageing
``hrrn``   highest response ratio first: (wait + service) / service
``edf``    earliest deadline first; without a deadline, as if it were ``max_wait_s`` after arrival
``paper``  by ranges: time to the deadline, then KV held (more first, it will be released sooner), then length (longer
           first, or shorter); EcoServe, arXiv 2411.06364
``slo``    as ``srpt``, but whoever cannot meet its deadline any more counts for :data:`LATE` times its size
=========  ==================================================================================================

*Size* is the mean of the response's length distribution, or its ``quantile``, plus what its prompt costs.

*How long one can be overtaken.* Linear ageing subtracts ``ageing`` tokens a second waited. Since all age alike, size +
ageing * arrival gives the same order at all times, and a request of size S is overtaken only by requests that arrive
within (S - their size) / ageing seconds after it. ``hrrn``, ``paper`` and ``slo`` have a guard besides: whoever has
waited longer than ``max_wait_s`` is overtaken by no later arrival (``paper``, ``hrrn``), or is no longer held back for
its deadline (``slo``). ``edf`` needs none: deadlines are finite. No ordering lets anybody wait for ever.

vLLM's request priority (lower first) goes before all of it; it is 0 for everybody unless clients set it. What is still
equal (siblings of one request, a batch that arrived at once) goes in the order in which the scheduler was given it, so
that whoever is put back keeps its place.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal

from ecoserve.serving.core.pace import Pace
from ecoserve.serving.core.tasks import Task

OrderingName = Literal["fcfs", "sjf", "srpt", "hrrn", "edf", "paper", "slo"]
SortKey = tuple[float, ...]

#: ``slo``: a request that is late already counts for so many times its size. Were it simply put last (docs/log.md), one
#: of two tokens would wait behind all that can still be in time, and save them next to nothing.
LATE: Final = 3.0

#: A prompt token costs about this share of a generated one: prompts are computed in parallel.
PROMPT_WEIGHT: Final = 0.1

_MOVING: Final = frozenset({"hrrn", "paper", "slo"})


@dataclass(frozen=True, slots=True)
class OrderingKnobs:
    """An ordering and its knobs.

    Attributes:
        ageing: tokens a second that waiting makes up for (``sjf``, ``srpt``, ``slo``).
        quantile: of the length, in place of its mean.
        max_wait_s: see the module's docstring.
        longer_first: ``paper``: the longer of two in the same ranges goes first.
    """

    name: OrderingName = "slo"
    ageing: float = 5.0
    quantile: float | None = None
    max_wait_s: float = 120.0
    longer_first: bool = True


class Ordering:
    """Keys of one ordering. ``now`` is on the clock of :attr:`Task.arrival_s`."""

    def __init__(self, knobs: OrderingKnobs, pace: Pace) -> None:
        self.knobs = knobs
        self.pace = pace
        #: whether any request ever had a deadline: until then ``slo`` does not move
        self.deadlines = False

    @property
    def moves(self) -> bool:
        """Whether keys depend on the time now."""
        name = self.knobs.name
        return name in _MOVING and (name != "slo" or self.deadlines)

    def on_arrival(self, task: Task) -> None:
        """See a new request."""
        self.deadlines = self.deadlines or task.has_slo()

    def prefill_key(self, task: Task, now: float) -> SortKey:
        """The key of a prefill in its queue."""
        return self._key(task, now, PROMPT_WEIGHT * (task.prompt_tokens + task.generated), prompt=True)

    def decode_key(self, task: Task, now: float) -> SortKey:
        """The key of a decode in its queue: its prompt's KV is there, so only the response counts."""
        return self._key(task, now, 0.0, prompt=False)

    def _key(self, task: Task, now: float, prompt_size: float, prompt: bool) -> SortKey:
        knobs = self.knobs
        tail = (task.arrival_s, float(task.number))
        match knobs.name:
            case "fcfs":
                return (task.priority, *tail)
            case "sjf":
                size = task.expected_rest(knobs.quantile) + task.generated + prompt_size
                return (task.priority, size + knobs.ageing * task.arrival_s, *tail)
            case "srpt":
                size = task.expected_rest(knobs.quantile) + prompt_size
                return (task.priority, size + knobs.ageing * task.arrival_s, *tail)
            case "edf":
                due = min(task.due_s(), task.first_token_due_s() if prompt else math.inf)
                return (task.priority, due if due < math.inf else task.arrival_s + knobs.max_wait_s, *tail)
        overdue = now - task.arrival_s > knobs.max_wait_s
        if knobs.name == "slo":
            size = task.expected_rest(knobs.quantile) + prompt_size
            if not overdue and not self.can_meet(task, now, prompt):
                size *= LATE
            return (task.priority, size + knobs.ageing * task.arrival_s, *tail)
        if overdue:
            return (task.priority, 0.0, *tail)
        if knobs.name == "hrrn":
            service = max(1.0, task.expected_rest(knobs.quantile) + prompt_size) * self.pace.token_s
            return (task.priority, 1.0, -(now - task.arrival_s + service) / service, *tail)
        length = task.prompt_tokens if prompt else task.expected_rest(knobs.quantile)
        sign = -1.0 if knobs.longer_first else 1.0
        held = 0 if prompt else task.written
        return (task.priority, 1.0, self._time_range(task, now), -_power(held), sign * _power(length), *tail)

    def can_meet(self, task: Task, now: float, prompt: bool) -> bool:
        """Whether the request's deadlines can be met if it starts now and every step takes as long as of late."""
        pace = self.pace
        start = now
        if prompt:
            start += pace.prompt_s(task.prompt_tokens + task.generated - task.written)
            if not task.generated and start > task.first_token_due_s():
                return False
        due = task.due_s()
        return due == math.inf or start + task.expected_rest(self.knobs.quantile) * pace.token_s <= due

    def _time_range(self, task: Task, now: float) -> float:
        """Range of the time left to the deadline: each twice as wide as the one before; none: the last."""
        due = task.due_s() if task.generated else min(task.due_s(), task.first_token_due_s())
        return 64.0 if due == math.inf else _power((due - now) / self.pace.token_s)


def _power(value: float) -> float:
    """The power of two that ``value`` reaches; 0 for all below 2."""
    return float(math.frexp(min(value, 2.0**60))[1] - 1) if value >= 2 else 0.0
