"""``fastserve``: a skip-join multi-level feedback queue, which needs no lengths.

Queue i has a quantum of 2^i iterations. A request joins the first queue whose quantum covers its prompt, and goes one
queue down whenever it has used up the quantum of its own. The batch is what stands first, by queue and then by arrival:
a decode gives way, its KV kept, to one of a higher queue that waits, and is preempted when its KV is needed. A request
that has waited ``max_wait_s`` joins the first queue again.

Source: FastServe (arXiv 2305.05920). It swaps the KV of what gives way to host memory; vLLM 0.32 has no swapping, so
what does not fit is computed again. Its profiled prompt times are a constant here, of a 13B model on an A100.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from ecoserve.serving.core.kv_policy import KVPolicy
from ecoserve.serving.core.kv_use import Floats
from ecoserve.serving.core.orderings import Ordering, SortKey
from ecoserve.serving.core.tasks import Task, TaskState

#: Prompt tokens that are computed in the time of one iteration of a decode.
PROMPT_TOKENS: Final = 128
_FAR: Final = 1e9


def queue_of(prompt_tokens: int, generated: int) -> int:
    """The queue of a request that has ``generated`` tokens out, 0 being the first."""
    first = max(1, -(-prompt_tokens // PROMPT_TOKENS))
    queue = (first - 1).bit_length()
    used = first + max(0, generated - 1)
    while used > 2**queue:
        used -= 2**queue
        queue += 1
    return queue


class SkipJoin(Ordering):
    moves = True

    def rank(self, task: Task, now: float, prompt: bool) -> SortKey:
        waits = task.state in (TaskState.WAITING, TaskState.PAUSED)
        promoted = waits and now - task.waits_since_s > self.settings.max_wait_s
        return (0.0 if promoted else float(queue_of(task.prompt_tokens, task.generated)),)

    def places(self, tasks: Sequence[Task], rests: Floats) -> Floats:
        queues = np.array([queue_of(t.prompt_tokens, t.generated) for t in tasks], dtype=float)
        return queues * _FAR + super().places(tasks, rests)


class BestOfBatch(KVPolicy):
    """The batch is the first ``places`` requests in the order, whether they run or wait; KV on demand."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._batch: set[Task] = set()

    def gives_way(self, running: Sequence[Task], places: int, now: float) -> list[Task]:
        def key(task: Task) -> SortKey:
            return self.ordering.key(task, now, prompt=task.state is TaskState.WAITING)

        self._batch = set(sorted(self.ledger.tasks.values(), key=key)[:places])
        return [t for t in running if t.state is TaskState.DECODE and t not in self._batch]

    def admits_decode(self, task: Task) -> bool:
        return task in self._batch
