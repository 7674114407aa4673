"""The order of the two queues, as keys that sort ascending. Each ordering is a class with one method, ``rank``.

=========  ==================================================================================================
``fcfs``   by arrival
``sjf``    shortest whole response first, with linear ageing
``srpt``   shortest remaining response first, with linear ageing
``hrrn``   highest response ratio first: (wait + service) / service
``edf``    earliest deadline first; a request without one counts as due ``max_wait_s`` after arrival
``slo``    least product of remaining and whole response first, with linear ageing; a request that can no longer meet
           its deadline counts :data:`LATE` times its size
``paper``  by ranges (:mod:`ecoserve.serving.baselines.paper_ordering`)
=========  ==================================================================================================

Remaining tokens first is best for the mean latency of a queue, their product with the whole length for its mean
slowdown, the latency over what the request needs by itself, which is what SLOs bound. ``slo`` takes the root of it.

*Size* is the mean of the response's length distribution, or its ``ordering_quantile``, plus the prompt's cost.

*Bounded unfairness.* Linear ageing subtracts ``ageing_tokens_per_s`` per second waited. All requests age alike, so
size + ageing * arrival gives the same order at all times: a request of size S is overtaken only by requests that arrive
within (S - their size) / ageing seconds after it. ``hrrn``, ``slo`` and ``paper`` besides serve a request that has
waited ``max_wait_s`` first come, first served (``slo``: without its penalty). ``edf`` needs no limit: deadlines are
finite.

vLLM's request priority (lower first) goes before all of it. Requests that are still equal go in the order of arrival
at the scheduler, so that a request that is put back keeps its place.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, TypeVar

import numpy as np

from ecoserve.serving.core.kv_use import Floats
from ecoserve.serving.core.settings import SchedulerSettings
from ecoserve.serving.core.tasks import Task, TaskState

#: The pace before a step was seen.
FIRST_GUESS_S = 0.02


class Pace:
    """The engine's recent seconds a token: the period of its busy steps, and the tokens that one gives a decode.

    Exponentially weighted means. Deadlines are judged by them; a wrong pace costs order, never correctness.

    Args:
        step_tokens: the most tokens one step computes. window: steps over which the mean is taken.
        longest_s: a longer gap between two steps is not counted (idle, suspended).
        stages: of the pipeline: a decode has its turn once in so many steps.
    """

    def __init__(self, step_tokens: int, window: int = 64, longest_s: float = 5.0, stages: int = 1) -> None:
        self.step_s = FIRST_GUESS_S
        self._stages = stages
        self._drafted = 0
        self._tokens_per_turn = 1.0
        self._step_tokens = max(1, step_tokens)
        self._weight = 1.0 / window
        self._longest_s = longest_s
        self._last: float | None = None
        self._seen = 0

    def step(self, now: float, busy: bool) -> None:
        """A step begins at ``now``; ``busy``: the one before had work, so the time since then was its."""
        if busy and self._last is not None and 0.0 < now - self._last <= self._longest_s:
            self._seen += 1
            weight = max(self._weight, 1.0 / self._seen)
            self.step_s += weight * (now - self._last - self.step_s)
        self._last = now

    @property
    def tokens_per_step(self) -> float:
        """Tokens that a decode gains in a step: more than 1 by accepted drafts, less in a pipeline."""
        return self._tokens_per_turn / self._stages

    @property
    def token_s(self) -> float:
        return self.step_s / self.tokens_per_step

    def turns(self, turns: int, tokens: int) -> None:
        """So many decodes of a step with drafts have given so many tokens."""
        self._drafted += 1
        weight = max(self._weight, 1.0 / self._drafted)
        self._tokens_per_turn += weight * (tokens / turns - self._tokens_per_turn)

    def prompt_s(self, tokens: int) -> float:
        """Seconds until a prompt with ``tokens`` still to compute has given its first token, if it starts now."""
        return -(-max(1, tokens) // self._step_tokens) * self.step_s


SortKey = tuple[float, ...]
N = TypeVar("N", float, Floats)

#: ``slo``: a late request counts this many times its size. Were it put last (docs/log.md), one of two tokens would wait
#: behind all requests that can still be in time, and save them next to nothing.
LATE: Final = 3.0

#: A prompt token costs about this share of a generated one: prompts are computed in parallel.
PROMPT_WEIGHT: Final = 0.1

#: A newcomer takes the place of a holder only if it is shorter by this share of the tokens whose KV is to be computed
#: for it, and by the same share of the holder's, which is computed again.
PREEMPTION_WEIGHT: Final = 0.2


class Ordering:
    """Base of all orderings, and ``fcfs``. Times are on the clock of :attr:`Task.arrival_s`."""

    #: whether keys depend on the time: then they are computed anew between steps, never within one
    moves = False

    def __init__(self, settings: SchedulerSettings, pace: Pace) -> None:
        self.settings = settings
        self.pace = pace

    def on_arrival(self, task: Task) -> None: ...

    def rank(self, task: Task, now: float, prompt: bool) -> SortKey:
        """Where a request stands among those of equal priority; ``prompt``: in the prefill queue."""
        return ()

    def key(self, task: Task, now: float, prompt: bool) -> SortKey:
        return (task.priority, *self.rank(task, now, prompt), task.arrival_s, float(task.number))

    def places(self, tasks: Sequence[Task], rests: Floats) -> Floats:
        """Where holders of KV and newcomers stand among each other, lower first; ``rests``: expected remaining tokens.

        Like :meth:`rank`, without what moves with time or belongs to one queue.
        """
        return np.fromiter((t.arrival_s for t in tasks), dtype=float, count=len(tasks))

    # -- what ranks are made of --------------------------------------------------------------------------

    def rest(self, task: Task) -> float:
        """Expected remaining tokens."""
        return task.expected_rest(self.settings.ordering_quantile)

    def prompt_size(self, task: Task, prompt: bool) -> float:
        """What the prompt costs, in generated tokens; a decode's prompt is computed already."""
        return PROMPT_WEIGHT * (task.prompt_tokens + task.generated) if prompt else 0.0

    def aged(self, task: Task, size: float) -> SortKey:
        return (size + self.settings.ageing_tokens_per_s * task.arrival_s,)

    def overdue(self, task: Task, now: float) -> bool:
        return now - task.arrival_s > self.settings.max_wait_s


class BySize(Ordering):
    """Base of orderings by aged size."""

    @staticmethod
    def length(rest: N, generated: N) -> N:
        """The response's part of the size: numbers or arrays of tokens that are expected to remain, and are out."""
        raise NotImplementedError

    def places(self, tasks: Sequence[Task], rests: Floats) -> Floats:
        count = len(tasks)
        generated = np.fromiter((t.generated for t in tasks), dtype=float, count=count)
        prompts = np.fromiter((t.prompt_tokens for t in tasks), dtype=float, count=count)
        waiting = np.fromiter((t.state is TaskState.WAITING for t in tasks), dtype=bool, count=count)
        costs = np.where(waiting, PREEMPTION_WEIGHT, -PREEMPTION_WEIGHT) * (prompts + generated)
        aged = self.settings.ageing_tokens_per_s * super().places(tasks, rests)
        places: Floats = self.length(rests, generated) + costs + aged
        return places

    def size(self, task: Task, prompt: bool) -> float:
        return self.length(self.rest(task), float(task.generated)) + self.prompt_size(task, prompt)

    def rank(self, task: Task, now: float, prompt: bool) -> SortKey:
        return self.aged(task, self.size(task, prompt))


class SJF(BySize):
    @staticmethod
    def length(rest: N, generated: N) -> N:
        return rest + generated


class SRPT(BySize):
    @staticmethod
    def length(rest: N, generated: N) -> N:
        return rest


class HRRN(Ordering):
    moves = True

    def rank(self, task: Task, now: float, prompt: bool) -> SortKey:
        if self.overdue(task, now):
            return (0.0,)
        service = max(1.0, self.rest(task) + self.prompt_size(task, prompt)) * self.pace.token_s
        return (1.0, -(now - task.arrival_s + service) / service)


class EDF(Ordering):
    def rank(self, task: Task, now: float, prompt: bool) -> SortKey:
        due = min(task.due_s(), task.first_token_due_s() if prompt else math.inf)
        return (due if due < math.inf else task.arrival_s + self.settings.max_wait_s,)


class SLO(BySize):
    """``slo``; its keys move only once a request with an SLO has arrived."""

    @staticmethod
    def length(rest: N, generated: N) -> N:
        root: N = (rest * (rest + generated)) ** 0.5
        return root

    def on_arrival(self, task: Task) -> None:
        self.moves = self.moves or task.has_slo()

    def rank(self, task: Task, now: float, prompt: bool) -> SortKey:
        size = self.size(task, prompt)
        late = not self.overdue(task, now) and not self.can_meet(task, now, prompt)
        return self.aged(task, size * LATE if late else size)

    def can_meet(self, task: Task, now: float, prompt: bool) -> bool:
        """Whether the deadlines can be met if the request starts now and steps take as long as of late."""
        pace = self.pace
        start = now
        if prompt:
            start += pace.prompt_s(task.prompt_tokens + task.generated - task.written)
            if not task.generated and start > task.first_token_due_s():
                return False
        due = task.due_s()
        return due == math.inf or start + self.rest(task) * pace.token_s <= due
