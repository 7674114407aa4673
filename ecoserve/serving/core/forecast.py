"""The KV that a set of requests will hold from now on: mean and spread over a grid of future steps.

A request with ``n`` tokens in the cache and ``g`` generated holds ``n + t`` tokens after ``t`` more steps with
probability S(g + t) / S(g), S being the survival function of its length. ``rho`` is the share of the spread that the
requests have in common:

    variance = (1 - rho) * sum of variances + rho * (sum of standard deviations)^2

Admission can react to what becomes known before it comes: the standard deviation ``t`` steps ahead counts by
1 / (1 + t / reaction). Without this, pooling is as cautious as padding in small caches (docs/log.md).
"""

from __future__ import annotations

from functools import lru_cache
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from ecoserve.lengths import LengthDistribution
from ecoserve.serving.core.settings import SchedulerSettings
from ecoserve.serving.core.tasks import Task

Floats = npt.NDArray[np.float64]


@lru_cache(maxsize=16)
def deviations(epsilon: float) -> float:
    """Standard deviations above the mean that a normal quantity passes with probability ``epsilon``; 0 at a half."""
    return NormalDist().inv_cdf(1.0 - epsilon)


class PoolForecast:
    """Base of all forecasts: a row of numbers for each request that holds KV, on a grid of future steps.

    Args:
        upper: the longest response there can be, tokens. rho: common share of the lengths' spread, 0 to 1.
        reaction: steps within which admission reacts. points: grid points in time. width: numbers in a row.
    """

    def __init__(self, block_size: int, upper: int, rho: float, reaction: float, points: int, width: int) -> None:
        self.block_size = block_size
        self.rho = rho
        self._steps = np.unique(np.concatenate([[0], np.geomspace(1, max(2, upper), points).astype(int)])).astype(float)
        self._near = 1.0 / (1.0 + self._steps / reaction)
        self._tables = np.ones((64, width))
        self._free_rows = list(range(63, -1, -1))

    def rebase(self, tasks: list[Task], shared_blocks: int = 0) -> None:
        """Forecast these holders; ``shared_blocks`` are counted in more than one of them."""
        raise NotImplementedError

    def add(self, task: Task) -> None:
        """Count one more request that starts now."""
        raise NotImplementedError

    def fits_with(self, task: Task, limit_blocks: int, epsilon: float) -> bool:
        """Whether, with ``task`` started too, the limit is exceeded in at most a share ``epsilon`` of the futures."""
        raise NotImplementedError

    def enter(self, task: Task) -> None:
        """Fill a request's row from its length distribution; again whenever that has changed."""
        if task.row < 0:
            if not self._free_rows:
                rows = len(self._tables)
                self._tables = np.concatenate([self._tables, np.ones_like(self._tables)])
                self._free_rows = list(range(2 * rows - 1, rows - 1, -1))
            task.row = self._free_rows.pop()
        self._tables[task.row] = self._row(task)

    def leave(self, task: Task) -> None:
        if task.row >= 0:
            self._free_rows.append(task.row)
            task.row = -1

    def _row(self, task: Task) -> Floats:
        raise NotImplementedError


class Forecast(PoolForecast):
    """Mean and spread of the future KV; ``table``: grid points of the survival functions."""

    def __init__(
        self, block_size: int, upper: int, rho: float, reaction: float, points: int = 48, table: int = 128
    ) -> None:
        self._grid = np.unique(np.concatenate([[0], np.geomspace(1, 2 * max(2, upper), table).astype(int)])).astype(
            float
        )
        super().__init__(block_size, upper, rho, reaction, points, len(self._grid))
        self._place = np.arange(len(self._grid), dtype=float)
        self._mean: Floats = np.zeros(len(self._steps))
        self._var: Floats = np.zeros(len(self._steps))
        self._sd: Floats = np.zeros(len(self._steps))
        self._known: tuple[Task, LengthDistribution, int, int] | None = None
        self._answer = (self._mean, self._sd)

    @classmethod
    def from_settings(cls, settings: SchedulerSettings, block_size: int, upper: int) -> Forecast:
        return cls(block_size, upper, settings.rho or 0.0, settings.reaction_steps)

    def _row(self, task: Task) -> Floats:
        return task.lengths.survival_at(self._grid)

    def _usage(self, tasks: list[Task]) -> tuple[Floats, Floats]:
        """(probability alive, blocks if alive), both R x T."""
        rows = np.fromiter((t.row for t in tasks), dtype=np.intp, count=len(tasks))
        generated = np.fromiter((t.generated for t in tasks), dtype=float, count=len(tasks))
        span = np.fromiter((t.span_tokens() for t in tasks), dtype=float, count=len(tasks))
        place = np.interp(generated[:, None] + self._steps[None, :], self._grid, self._place)
        low = np.minimum(place.astype(np.intp), len(self._grid) - 2)
        part = place - low
        table = self._tables[rows[:, None], low]
        alive = table + (self._tables[rows[:, None], low + 1] - table) * part
        alive = np.clip(alive / np.maximum(alive[:, :1], 1e-9), 0.0, 1.0)
        blocks = np.ceil((span[:, None] + self._steps[None, :]) / self.block_size)
        return alive, blocks

    def rebase(self, tasks: list[Task], shared_blocks: int = 0) -> None:
        if not tasks:
            self._mean = np.zeros(len(self._steps))
            self._var = np.zeros(len(self._steps))
            self._sd = np.zeros(len(self._steps))
            return
        for task in tasks:
            if task.row < 0:
                self.enter(task)
        alive, blocks = self._usage(tasks)
        spread = np.sqrt(alive * (1.0 - alive)) * blocks
        self._mean = (alive * blocks).sum(axis=0) - shared_blocks * alive.mean(axis=0)
        self._var = (spread * spread).sum(axis=0)
        self._sd = spread.sum(axis=0)

    def add(self, task: Task) -> None:
        mean, spread = self._one(task)
        self._mean = self._mean + mean
        self._var = self._var + spread * spread
        self._sd = self._sd + spread

    def peak(self, z: float, task: Task | None = None) -> float:
        """Largest mean + z * sd over the future, in blocks, of the holders, and of ``task`` if it started now."""
        mean, spread = self._one(task) if task is not None else (0.0, 0.0)
        var = (1.0 - self.rho) * (self._var + spread * spread) + self.rho * (self._sd + spread) ** 2
        return float((self._mean + mean + z * self._near * np.sqrt(var)).max())

    def fits_with(self, task: Task, limit_blocks: int, epsilon: float) -> bool:
        # The sum over a batch is taken to be normal.
        return self.peak(deviations(epsilon), task) <= limit_blocks

    def _one(self, task: Task) -> tuple[Floats, Floats]:
        # The head of a queue is asked about in every step, and while it waits nothing about it changes.
        known = self._known
        span = task.span_tokens()
        if known is None or known[0] is not task or known[1] is not task.lengths or known[2:] != (task.generated, span):
            self._answer = self._compute_one(task)
            self._known = (task, task.lengths, task.generated, span)
        return self._answer

    def _compute_one(self, task: Task) -> tuple[Floats, Floats]:
        was_in = task.row >= 0
        if not was_in:
            self.enter(task)
        alive, blocks = self._usage([task])
        if not was_in:
            self.leave(task)
        return (alive * blocks)[0], (np.sqrt(alive * (1.0 - alive)) * blocks)[0]


class Padded(Forecast):
    """A forecast in which each request reaches the same ``quantile`` of its own length: padding one by one.

    What pooling is compared with (docs/log.md).
    """

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
