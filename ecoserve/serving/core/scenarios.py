"""The KV that a set of requests will hold from now on, as sampled joint futures.

Each of ``count`` scenarios gives every request one length, drawn from its posterior. In one scenario the usage ``t``
steps ahead is the sum over the requests still alive of their tokens now plus ``t``. Lengths are drawn through a
Gaussian copula with one common factor per scenario, of which ``rho`` is the share. A length that has been outlived is
drawn again. As in :mod:`~ecoserve.serving.core.forecast`, a scenario's distance from the mean of all scenarios counts
by 1 / (1 + t / reaction).

Cost: R requests are binned into R x count rests once a step; a question costs count x T.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr, ndtri

from ecoserve.serving.core.settings import SchedulerSettings
from ecoserve.serving.core.tasks import Task

Floats = npt.NDArray[np.float64]


class Scenarios:
    """Joint futures of the requests that hold KV.

    Args:
        block_size: tokens a block.
        upper: the longest response there can be, tokens.
        rho: common share of the lengths' spread, 0 to 1; may change at any time.
        reaction: steps within which admission reacts.
        count: scenarios. points: grid points in time.
        seed: of the draws; the same requests in the same order give the same answers.
    """

    def __init__(
        self,
        block_size: int,
        upper: int,
        rho: float,
        reaction: float,
        count: int = 64,
        points: int = 48,
        seed: int = 0,
    ) -> None:
        self.block_size = block_size
        self.rho = rho
        self.count = count
        self._rng = np.random.default_rng(seed)
        self._steps = np.unique(np.concatenate([[0], np.geomspace(1, max(2, upper), points).astype(int)])).astype(float)
        self._near = 1.0 / (1.0 + self._steps / reaction)
        self._common = ndtri((self._rng.permutation(count) + 0.5) / count)
        self._strata = ndtri((np.arange(count) + 0.5) / count)
        self._lengths = np.ones((64, count))
        self._free_rows = list(range(63, -1, -1))
        shape = (count, len(self._steps))
        self._blocks: Floats = np.zeros(shape)
        self._alive: Floats = np.zeros(shape)
        self._shared = 0

    @classmethod
    def from_settings(cls, settings: SchedulerSettings, block_size: int, upper: int) -> Scenarios:
        """The forecast of the setting ``forecast``."""
        return cls(block_size, upper, settings.rho or 0.0, settings.reaction_steps)

    # -- one request -------------------------------------------------------------------------------------

    def enter(self, task: Task) -> None:
        """Draw a request's lengths; again after its distribution has changed."""
        if task.row < 0:
            if not self._free_rows:
                rows = len(self._lengths)
                self._lengths = np.concatenate([self._lengths, np.ones_like(self._lengths)])
                self._free_rows = list(range(2 * rows - 1, rows - 1, -1))
            task.row = self._free_rows.pop()
        self._lengths[task.row] = self._draw(task, np.arange(self.count))

    def leave(self, task: Task) -> None:
        """Forget a request's lengths."""
        if task.row >= 0:
            self._free_rows.append(task.row)
            task.row = -1

    def _draw(self, task: Task, which: npt.NDArray[np.intp]) -> Floats:
        """Lengths for the scenarios ``which``, each more than the tokens that are out."""
        own = self._rng.permutation(self._strata)[: len(which)]
        level = ndtr(math.sqrt(self.rho) * self._common[which] + math.sqrt(1.0 - self.rho) * own)
        posterior = task.lengths.given_longer_than(task.generated)
        drawn = np.ceil(np.interp(level, posterior.cdf, np.asarray(posterior.edges, dtype=float)))
        return np.asarray(np.maximum(drawn, task.generated + 1), dtype=np.float64)

    # -- all of them -------------------------------------------------------------------------------------

    def rebase(self, tasks: list[Task], shared_blocks: int = 0) -> None:
        """Forecast the requests that hold KV now. ``shared_blocks`` are counted in more than one of them."""
        shape = (self.count, len(self._steps))
        self._shared = shared_blocks
        if not tasks:
            self._blocks, self._alive = np.zeros(shape), np.zeros(shape)
            return
        for task in tasks:
            if task.row < 0:
                self.enter(task)
        rows = np.fromiter((t.row for t in tasks), dtype=np.intp, count=len(tasks))
        generated = np.fromiter((t.generated for t in tasks), dtype=float, count=len(tasks))
        span = np.fromiter((t.span_tokens() for t in tasks), dtype=float, count=len(tasks))
        for i in np.flatnonzero((self._lengths[rows] <= generated[:, None]).any(axis=1)):
            over = np.flatnonzero(self._lengths[rows[i]] <= generated[i])
            self._lengths[rows[i], over] = self._draw(tasks[i], over)
        rest = self._lengths[rows] - generated[:, None]
        # Alive at a grid point means a rest above it: how many grid points a rest passes is its bin.
        passed = np.searchsorted(self._steps, rest, side="left")
        bins = len(self._steps) + 1
        flat = (passed + np.arange(self.count) * bins).ravel()
        tokens = np.broadcast_to(span[:, None] + self.block_size / 2, rest.shape).ravel()
        size = self.count * bins
        alive = np.bincount(flat, minlength=size).reshape(self.count, bins)
        held = np.bincount(flat, weights=tokens, minlength=size).reshape(self.count, bins)
        self._alive = np.cumsum(alive[:, :0:-1], axis=1)[:, ::-1].astype(float)
        held = np.cumsum(held[:, :0:-1], axis=1)[:, ::-1]
        self._blocks = (held + self._alive * self._steps) / self.block_size

    def add(self, task: Task) -> None:
        """Count one more request that will start now."""
        alive, blocks = self._one(task)
        self._alive = self._alive + alive
        self._blocks = self._blocks + blocks

    def _one(self, task: Task) -> tuple[Floats, Floats]:
        if task.row < 0:
            self.enter(task)
        lengths = self._lengths[task.row]
        over = np.flatnonzero(lengths <= task.generated)
        if len(over):
            lengths[over] = self._draw(task, over)
        alive = ((lengths - task.generated)[:, None] > self._steps).astype(float)
        return alive, alive * (task.span_tokens() + self.block_size / 2 + self._steps) / self.block_size

    def fits_with(self, task: Task, limit_blocks: int, epsilon: float) -> bool:
        """Whether at most a share ``epsilon`` of the scenarios ever pass the limit if ``task`` started now."""
        alive, blocks = self._one(task)
        return self._over(self._blocks + blocks, self._alive + alive, limit_blocks) <= epsilon

    def overflow(self, limit_blocks: int) -> float:
        """Share of the scenarios that pass the limit."""
        return self._over(self._blocks, self._alive, limit_blocks)

    def _over(self, blocks: Floats, alive: Floats, limit_blocks: int) -> float:
        if self._shared:
            blocks = blocks - self._shared * alive / np.maximum(alive[:, :1], 1.0)
        mean = blocks.mean(axis=0)
        peaks = (mean + self._near * (blocks - mean)).max(axis=1)
        return float((peaks > limit_blocks).mean())
