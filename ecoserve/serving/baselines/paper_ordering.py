"""``paper``: the ordering of EcoServe (arXiv 2411.06364), by ranges that are each twice as wide as the one before.

Time to the deadline first, then KV held (more first: it is released sooner), then length (longer first, or shorter).
"""

from __future__ import annotations

import math

from ecoserve.serving.core.orderings import Ordering, SortKey
from ecoserve.serving.core.tasks import Task


class PaperOrdering(Ordering):
    """By ranges of deadline, KV held and length; after ``max_wait_s`` first come, first served."""

    moves = True

    def rank(self, task: Task, now: float, prompt: bool) -> SortKey:
        if self.overdue(task, now):
            return (0.0,)
        length = task.prompt_tokens if prompt else self.rest(task)
        sign = -1.0 if self.settings.longer_first else 1.0
        held = 0 if prompt else task.written
        return (1.0, self._time_range(task, now), -_power(held), sign * _power(length))

    def _time_range(self, task: Task, now: float) -> float:
        """Range of the time left to the deadline, in tokens; without a deadline the last range."""
        due = task.due_s() if task.generated else min(task.due_s(), task.first_token_due_s())
        return 64.0 if due == math.inf else _power((due - now) / self.pace.token_s)


def _power(value: float) -> float:
    """The exponent of the power of two that ``value`` reaches; 0 below 2."""
    return float(math.frexp(min(value, 2.0**60))[1] - 1) if value >= 2 else 0.0
