"""``volume``: smallest volume first: KV space times time, summed over the steps of a response.

A response of n tokens behind a prompt of p holds p + 1, ..., p + n tokens: p n + n (n + 1) / 2 in all, n being the
expected length. The largest volume is preempted.

Source: "smallest volume first" (arXiv 2606.22327).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ecoserve.serving.core.kv_use import Floats
from ecoserve.serving.core.orderings import Ordering, SortKey
from ecoserve.serving.core.tasks import Task


def volume(prompt_tokens: Floats, response_tokens: Floats) -> Floats:
    """KV tokens times steps of a whole response."""
    return prompt_tokens * response_tokens + response_tokens * (response_tokens + 1.0) / 2.0


class Volume(Ordering):
    def rank(self, task: Task, now: float, prompt: bool) -> SortKey:
        return tuple(self.places([task], np.array([self.rest(task)])).tolist())

    def places(self, tasks: Sequence[Task], rests: Floats) -> Floats:
        tokens = np.array([(t.prompt_tokens, t.generated) for t in tasks], dtype=float).reshape(-1, 2)
        return volume(tokens[:, 0], tokens[:, 1] + rests)
