"""A scheduler for ``try_repeats``: vLLM's default, which spends 5 % of each step's time on nothing."""

from __future__ import annotations

import time
from typing import Any

from try_repeats import PADDING

from ecoserve.serving.adapter.counting import CountingScheduler


class PaddedScheduler(CountingScheduler):
    """Waits a share of the CPU time that has passed since it was last asked for a step, in which it was busy."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._last: float | None = None

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        out = super().update_from_output(scheduler_output, model_runner_output)
        now = time.process_time()
        if self._last is not None:
            until = now + PADDING * (now - self._last)
            while time.process_time() < until:
                pass
        self._last = time.process_time() if self.has_unfinished_requests() else None
        return out
