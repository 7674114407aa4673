"""The KV that a set of requests will hold if each comes to the same quantile of its own length: padding one by one.

What pooling is compared with (docs/log.md): every request is taken to end at its quantile, given what is out already,
and the batch must fit on the way there. How many of the futures overflow follows from the quantile, the load and how
far lengths err together; it is not asked for.
"""

from __future__ import annotations

import numpy as np

from ecoserve.serving.core.forecast import Floats, Forecast
from ecoserve.serving.core.tasks import Task


class Padded(Forecast):
    """A forecast without spread.

    Args:
        block_size, upper, rho, reaction: as of :class:`~ecoserve.serving.core.forecast.Forecast`; without spread the
            last two say nothing.
        quantile: of each request's length.
    """

    def __init__(self, block_size: int, upper: int, rho: float, reaction: float, quantile: float) -> None:
        super().__init__(block_size, upper, rho, reaction)
        self.quantile = quantile

    def _usage(self, tasks: list[Task]) -> tuple[Floats, Floats]:
        rest = np.fromiter((t.expected_rest(self.quantile) for t in tasks), dtype=float, count=len(tasks))
        span = np.fromiter((t.span_tokens() for t in tasks), dtype=float, count=len(tasks))
        alive = (self._steps[None, :] < rest[:, None]).astype(float)
        return alive, np.ceil((span[:, None] + self._steps[None, :]) / self.block_size)
