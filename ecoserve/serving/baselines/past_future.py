"""``past-future``: a request starts if the batch's future peak of KV fits, by lengths that the past gives.

A response is as long as a draw from the history of finished responses (a window of the last thousand), given that it is
longer than what is out. The draw of a request keeps its quantile, so that runs repeat. The peak is reached when some
request ends: those that still run then have grown as many tokens as it had left. First come, first served.

Source: Past-Future scheduling (LightLLM, ASPLOS 2025).
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np

from ecoserve.serving.core.kv_policy import KVPolicy
from ecoserve.serving.core.kv_use import KVUse
from ecoserve.serving.core.tasks import Task


def peak_blocks(spans: Any, rests: Any, kv_use: KVUse) -> float:
    """The most blocks that requests with ``spans`` tokens of KV will hold if each ends after ``rests`` more tokens."""
    span, rest = np.asarray(spans, dtype=float), np.asarray(rests, dtype=float)
    at_each_end = kv_use.blocks_at(span + rest[:, None]) * (rest >= rest[:, None])
    return float(at_each_end.sum(axis=1).max(initial=0.0))


class PastFuture(KVPolicy):
    def begin_step(self) -> None:
        self._new: list[Task] = []

    def admits_prompt(self, task: Task) -> bool:
        batch = [*self.ledger.holders(), *self._new, task]
        spans = [t.span_tokens() for t in batch]
        return peak_blocks(spans, [self.rest(t) for t in batch], self.ledger.kv_use) <= self.open_blocks

    def admitted(self, task: Task) -> None:
        self._new.append(task)

    def rest(self, task: Task) -> int:
        """Tokens that a response still has, by its draw from the history."""
        level = random.Random(task.request_id).uniform(0.001, 0.999)
        whole = task.lengths.given_longer_than(task.generated).quantile(level)
        return max(1, min(task.limit, whole) - task.generated)
