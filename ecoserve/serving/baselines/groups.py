"""Time-synced batching: decodes of about equal predicted length start together and end together.

Waiting decodes are put into bins of predicted response length, ``ratio`` wide. Bins are served one after the other, in
the order of their best member; within a bin, members keep the queue's order. As many members as fit start at once; the
rest of a bin goes first next time. A member that ends before its window leaves a *vacancy* until the window's end:
decodes whose window is of the same bin as the rest of a vacancy go first, as they will end when the group does.

Source: EcoServe (arXiv 2411.06364), "time-synced batching"; bins and refilling are decided here.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable

from ecoserve.serving.core.orderings import SortKey
from ecoserve.serving.core.tasks import Task


class Groups:
    """The order of waiting decodes by bins, ``ratio`` (> 1) wide; ``window``: the response length promised now."""

    def __init__(self, ratio: float, window: Callable[[Task], int]) -> None:
        self._log = math.log(ratio)
        self._window = window
        #: steps at which the windows of members that ended early end
        self._vacant_until: list[int] = []
        self._refill: Counter[int] = Counter()
        self._best: dict[int, SortKey] = {}

    def bin_of(self, tokens: float) -> int:
        return math.floor(math.log(max(1.0, tokens)) / self._log + 1e-9)

    def begin_step(self, step: int, waiting: Iterable[tuple[Task, SortKey]]) -> None:
        self._vacant_until = [end for end in self._vacant_until if end > step]
        self._refill = Counter(self.bin_of(end - step) for end in self._vacant_until)
        self._best = {}
        for task, key in waiting:
            bin_ = self.bin_of(self._rest(task))
            best = self._best.get(bin_)
            if best is None or key < best:
                self._best[bin_] = key

    def key(self, task: Task, own: SortKey) -> SortKey:
        bin_ = self.bin_of(self._rest(task))
        best = min(own, self._best.get(bin_, own))
        return (own[0], 0.0 if self._refill[bin_] else 1.0, *best[1:], float(bin_), *own[1:])

    def started(self, task: Task, step: int) -> None:
        """A decode resumes; if there is a vacancy of its bin, it fills one."""
        bin_ = self.bin_of(self._rest(task))
        if self._refill[bin_]:
            self._refill[bin_] -= 1
            for end in self._vacant_until:
                if self.bin_of(end - step) == bin_:
                    self._vacant_until.remove(end)
                    break

    def ended(self, task: Task, step: int) -> None:
        """A decode has finished; a vacancy is left if its window goes on."""
        if task.promised > task.generated:
            self._vacant_until.append(step + task.promised - task.generated)

    def _rest(self, task: Task) -> int:
        return max(1, self._window(task) - task.generated)
