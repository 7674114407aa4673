"""vLLM's scheduler with a stopwatch: how long does each step of an engine take, and what work was in it?

Rule: a step lasts from its ``schedule()`` to the next one, in CPU time of this process: all that an engine in one
thread does for it. Where the engine had nothing to do in between it used no CPU time either.
"""

from __future__ import annotations

import itertools
import time
from typing import Any

from ecoserve.serving.adapter.counting import CountingScheduler
from ecoserve.serving.simulate.cost import StepWork
from ecoserve.serving.simulate.replica import step_work

_seen: list[tuple[StepWork, float]] = []


def begin() -> None:
    """Forget what was seen."""
    _seen.clear()


def seen() -> list[tuple[StepWork, float]]:
    """Work of each step that was followed by another, and its seconds."""
    return [(work, later - at) for (work, at), (_, later) in itertools.pairwise(_seen) if work.requests]


class ProbedScheduler(CountingScheduler):
    """Notes when each step begins and what it computes."""

    def schedule(self, throttle_prefills: bool = False) -> Any:
        at = time.process_time()
        output = super().schedule(throttle_prefills)
        _seen.append((step_work(output, self.requests)[0], at))
        return output
