"""The KV that a set of requests will hold from now on: mean and spread over a grid of future steps.

A request with ``n`` tokens in the cache and ``g`` generated holds ``n + t`` tokens after ``t`` more steps with
probability S(g + t) / S(g), S being the survival function of its length (``r * t`` tokens where a step gives ``r``:
speculative decoding, pipeline stages). Blocks that it shares with others are counted
once for all, and stay. ``rho`` is the share of the spread that the requests have in common:

    variance = (1 - rho) * sum of variances + rho * (sum of standard deviations)^2

Admission can react to what becomes known before it comes: the standard deviation ``t`` steps ahead counts by
1 / (1 + t / :data:`REACTION_STEPS`). Without this, pooling is as cautious as padding in small caches (docs/log.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Final

import numpy as np
import numpy.typing as npt

from ecoserve.serving.core.kv_use import Floats, KVUse
from ecoserve.serving.core.tasks import Task, TaskState

#: The spread of the forecast this many steps ahead counts half.
REACTION_STEPS: Final = 30.0
#: A chance that counts as none.
_GONE: Final = 1e-9


@lru_cache(maxsize=16)
def deviations(epsilon: float) -> float:
    """Standard deviations above the mean that a normal quantity passes with probability ``epsilon``; 0 at a half."""
    return NormalDist().inv_cdf(1.0 - epsilon)


@dataclass(slots=True)
class Usage:
    """KV over the grid of future steps, blocks: mean, variance, and sum of standard deviations (shape T or R x T)."""

    mean: Floats
    var: Floats
    sd: Floats

    def __add__(self, other: Usage) -> Usage:
        return Usage(self.mean + other.mean, self.var + other.var, self.sd + other.sd)

    def cumulative(self) -> Usage:
        """Sums over the first 0, 1, ... R requests: (R + 1) x T."""
        return Usage(*(np.concatenate((np.zeros((1, a.shape[1])), np.cumsum(a, axis=0))) for a in self._arrays()))

    def row(self, index: int) -> Usage:
        return Usage(*(a[index] for a in self._arrays()))

    def _arrays(self) -> tuple[Floats, Floats, Floats]:
        return self.mean, self.var, self.sd


class Forecast:
    """A row of numbers for each request: its survival function and what is under its tail.

    Args:
        upper: the longest response there can be, tokens. rho: common share of the lengths' spread, 0 to 1.
        points: grid points in time. table: grid points of the survival functions.
        quantile: of the remaining tokens, by which requests are ranked; None: by their mean.
    """

    def __init__(
        self,
        kv_use: KVUse,
        upper: int,
        rho: float = 0.0,
        points: int = 48,
        table: int = 128,
        quantile: float | None = None,
    ) -> None:
        self.kv_use = kv_use
        self.rho = rho
        self._quantile = quantile
        #: tokens that a decode gains in a step
        self.tokens_per_step = 1.0
        self._steps = np.unique(np.concatenate([[0], np.geomspace(1, max(2, upper), points).astype(int)])).astype(float)
        self._near = 1.0 / (1.0 + self._steps / REACTION_STEPS)
        grid = np.unique(np.concatenate([[0], np.geomspace(1, 2 * max(2, upper), table).astype(int)]))
        self._grid = grid.astype(float)
        self._place = np.arange(len(grid), dtype=float)
        self._alive = np.ones((64, len(grid)))
        self._area = np.ones((64, len(grid)))
        self._likely = np.ones((64, len(grid)))
        self._free_rows = list(range(63, -1, -1))

    # -- the rows ------------------------------------------------------------------------------------------

    def enter(self, task: Task) -> None:
        """Fill a request's row from its length distribution; again whenever that has changed."""
        if task.row < 0:
            if not self._free_rows:
                rows = len(self._alive)
                for name in ("_alive", "_area", "_likely"):
                    table = getattr(self, name)
                    setattr(self, name, np.concatenate([table, np.ones_like(table)]))
                self._free_rows = list(range(2 * rows - 1, rows - 1, -1))
            task.row = self._free_rows.pop()
        alive = task.lengths.survival_at(self._grid)
        self._alive[task.row] = alive
        # The integral of the survival function from each grid point on: divided by S(g), the mean of the rest.
        pieces = np.diff(self._grid) * (alive[1:] + alive[:-1]) / 2.0
        self._area[task.row, :-1] = np.cumsum(pieces[::-1])[::-1]
        self._area[task.row, -1] = 0.0
        if self._quantile is not None:
            likely = np.interp((self._quantile - 1.0) * alive, -alive, self._grid)
            self._likely[task.row] = np.where(alive > _GONE, likely, self._grid)

    def leave(self, task: Task) -> None:
        if task.row >= 0:
            self._free_rows.append(task.row)
            task.row = -1

    def _at(self, tables: Floats, rows: npt.NDArray[np.intp], tokens: Floats) -> Floats:
        place = np.interp(tokens, self._grid, self._place)
        low = np.minimum(place.astype(np.intp), len(self._grid) - 2)
        below = tables[rows, low]
        value: Floats = below + (tables[rows, low + 1] - below) * (place - low)
        return value

    def _rows(self, tasks: Sequence[Task]) -> npt.NDArray[np.intp]:
        for task in tasks:
            if task.row < 0:
                self.enter(task)
        return np.fromiter((t.row for t in tasks), dtype=np.intp, count=len(tasks))

    # -- what is asked -------------------------------------------------------------------------------------

    def rests(self, tasks: Sequence[Task]) -> Floats:
        """Expected remaining tokens of each request, given those that are out; at least 1."""
        rows = self._rows(tasks)
        generated = np.fromiter((t.generated for t in tasks), dtype=float, count=len(tasks))
        alive = np.maximum(self._at(self._alive, rows, generated), _GONE)
        rests: Floats = np.maximum(1.0, self._at(self._area, rows, generated) / alive)
        return rests

    def likely_rests(self, tasks: Sequence[Task]) -> Floats:
        """Remaining tokens of each request at the quantile by which requests are ranked, given those that are out."""
        if self._quantile is None:
            return self.rests(tasks)
        rows = self._rows(tasks)
        generated = np.fromiter((t.generated for t in tasks), dtype=float, count=len(tasks))
        rests: Floats = np.maximum(1.0, self._at(self._likely, rows, generated) - generated)
        return rests

    def usage(self, tasks: Sequence[Task], within_steps: float = math.inf) -> Usage:
        """Of each request by itself over the next ``within_steps`` steps, R x T; blocks shared with others left out."""
        count = len(tasks)
        steps = self._steps[: np.searchsorted(self._steps, within_steps, side="right")]
        rows = self._rows(tasks)[:, None]
        generated = np.fromiter((t.generated for t in tasks), dtype=float, count=count)[:, None]
        span = np.fromiter((t.span_tokens() for t in tasks), dtype=float, count=count)[:, None]
        shared = np.fromiter((t.shared_blocks for t in tasks), dtype=float, count=count)[:, None]
        gained = steps * self.tokens_per_step
        alive = self._at(self._alive, rows, generated + gained)
        alive = np.clip(alive / np.maximum(alive[:, :1], 1e-9), 0.0, 1.0)
        blocks = self.kv_use.blocks_at(span + (gained + self.kv_use.ahead))
        if not self.kv_use.lasting:
            # While its prompt is computed, a request holds more of a window than later.
            for i, task in enumerate(tasks):
                if task.state in (TaskState.WAITING, TaskState.PREFILL):
                    prompt = self.kv_use.prompt_blocks(task.span_tokens(), task.settled)
                    blocks[i, 0] = max(blocks[i, 0], prompt)
        blocks = np.maximum(blocks - shared, 0.0)
        sd = np.sqrt(alive * (1.0 - alive)) * blocks
        return Usage(alive * blocks, sd * sd, sd)

    def peak(self, usage: Usage, z: float) -> float:
        """Largest mean + z * sd over the steps of ``usage`` (shape T), blocks."""
        var = (1.0 - self.rho) * usage.var + self.rho * usage.sd**2
        return float((usage.mean + z * self._near[: len(var)] * np.sqrt(var)).max())
