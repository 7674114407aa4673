"""The KV that a set of requests will hold if each reaches the same quantile of its own length: padding one by one.

What pooling is compared with (docs/log.md). There is no spread: how many of the futures overflow follows from the
quantile, the load and how far lengths err together.
"""

from __future__ import annotations

import numpy as np

from ecoserve.serving.core.forecast import Floats, Forecast
from ecoserve.serving.core.settings import SchedulerSettings
from ecoserve.serving.core.tasks import Task


class Padded(Forecast):
    """A forecast without spread; ``quantile``: of each request's length."""

    quantile = 0.5

    @classmethod
    def from_settings(cls, settings: SchedulerSettings, block_size: int, upper: int) -> Padded:
        out = cls(block_size, upper, 0.0, settings.reaction_steps)
        out.quantile = settings.quantile
        return out

    def _usage(self, tasks: list[Task]) -> tuple[Floats, Floats]:
        rest = np.fromiter((t.expected_rest(self.quantile) for t in tasks), dtype=float, count=len(tasks))
        span = np.fromiter((t.span_tokens() for t in tasks), dtype=float, count=len(tasks))
        alive = (self._steps[None, :] < rest[:, None]).astype(float)
        return alive, np.ceil((span[:, None] + self._steps[None, :]) / self.block_size)
