"""``pooled``: nobody is promised a window; the batch as a whole must fit, now and later.

A request starts if what everything that holds KVC plus itself will come to need stays within the cache, by a forecast
that may be wrong in a share ``epsilon`` of the futures. The sum over a batch is far better known than any one of its
members, so this needs much less room than padding each of them to the same safety. ``promised`` is then only a quantile
for the books: outliving it is an under-prediction that costs nothing by itself.

Two forecasts (docs/log.md compares them): ``spread``, mean + z standard deviations
(:mod:`~ecoserve.serving.core.forecast`), and ``scenarios``, sampled joint futures
(:mod:`~ecoserve.serving.core.scenarios`).
"""

from __future__ import annotations

from typing import Protocol

from ecoserve.serving.core.kvc.base import KvcKnobs, KvcPolicy
from ecoserve.serving.core.ledger import Ledger
from ecoserve.serving.core.tasks import Task


class PoolForecast(Protocol):
    """The future KVC of the requests that hold some."""

    def rebase(self, tasks: list[Task], shared_blocks: int = 0) -> None:
        """Forecast these holders; ``shared_blocks`` are counted in more than one of them."""

    def add(self, task: Task) -> None:
        """Count one more request that starts now."""

    def fits_with(self, task: Task, limit_blocks: int, epsilon: float) -> bool:
        """Whether ``task`` may start too: the limit is passed in at most a share ``epsilon`` of the futures."""

    def enter(self, task: Task) -> None:
        """Take in what is believed of a request's length; again when that has changed."""

    def leave(self, task: Task) -> None:
        """Forget a request."""


class Pooled(KvcPolicy):
    """Admission by the forecast of the whole batch."""

    def __init__(self, knobs: KvcKnobs, ledger: Ledger, forecast: PoolForecast) -> None:
        super().__init__(knobs, ledger)
        self.forecast = forecast
        self._stale = True

    def begin_step(self) -> None:
        self._stale = True

    def _stock(self) -> None:
        if self._stale:
            self._stale = False
            self.forecast.rebase(self.ledger.holders(), self.ledger.shared_blocks())

    def admits_prompt(self, task: Task) -> bool:
        self._stock()
        return self.forecast.fits_with(task, self.open_blocks, self.knobs.epsilon)

    def admitted(self, task: Task) -> None:
        self._stock()
        self.forecast.add(task)

    def promise(self, task: Task) -> int:
        return min(task.limit, task.lengths.given_longer_than(task.generated).quantile(self.knobs.quantile))

    def left(self, task: Task) -> None:
        self.forecast.leave(task)
