"""The KV that a set of requests will hold from now on, as sampled joint futures.

Each scenario gives every request one length, drawn from its posterior through a Gaussian copula with one common factor,
of which ``rho`` is the share. A length that has been outlived is drawn again. As in
:mod:`~ecoserve.serving.core.forecast`, a scenario's distance from the mean counts by 1 / (1 + t / reaction).
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr, ndtri

from ecoserve.serving.core.forecast import Floats, PoolForecast
from ecoserve.serving.core.settings import SchedulerSettings
from ecoserve.serving.core.tasks import Task


class Scenarios(PoolForecast):
    """``count`` joint futures of the requests that hold KV; ``seed``: of the draws."""

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
        super().__init__(block_size, upper, rho, reaction, points, count)
        self.count = count
        self._rng = np.random.default_rng(seed)
        self._common = ndtri((self._rng.permutation(count) + 0.5) / count)
        self._strata = ndtri((np.arange(count) + 0.5) / count)
        self._blocks: Floats = np.zeros((count, len(self._steps)))
        self._alive = self._blocks
        self._shared = 0

    @classmethod
    def from_settings(cls, settings: SchedulerSettings, block_size: int, upper: int) -> Scenarios:
        return cls(block_size, upper, settings.rho or 0.0, settings.reaction_steps)

    def _row(self, task: Task) -> Floats:
        return self._draw(task, np.arange(self.count))

    def _draw(self, task: Task, which: npt.NDArray[np.intp]) -> Floats:
        """Lengths for the scenarios ``which``, each more than the tokens that are out."""
        own = self._rng.permutation(self._strata)[: len(which)]
        level = ndtr(math.sqrt(self.rho) * self._common[which] + math.sqrt(1.0 - self.rho) * own)
        posterior = task.lengths.given_longer_than(task.generated)
        drawn = np.ceil(np.interp(level, posterior.cdf, np.asarray(posterior.edges, dtype=float)))
        return np.asarray(np.maximum(drawn, task.generated + 1), dtype=np.float64)

    def rebase(self, tasks: list[Task], shared_blocks: int = 0) -> None:
        self._shared = shared_blocks
        if not tasks:
            self._blocks = self._alive = np.zeros((self.count, len(self._steps)))
            return
        for task in tasks:
            if task.row < 0:
                self.enter(task)
        rows = np.fromiter((t.row for t in tasks), dtype=np.intp, count=len(tasks))
        generated = np.fromiter((t.generated for t in tasks), dtype=float, count=len(tasks))
        span = np.fromiter((t.span_tokens() for t in tasks), dtype=float, count=len(tasks))
        for i in np.flatnonzero((self._tables[rows] <= generated[:, None]).any(axis=1)):
            over = np.flatnonzero(self._tables[rows[i]] <= generated[i])
            self._tables[rows[i], over] = self._draw(tasks[i], over)
        rest = self._tables[rows] - generated[:, None]
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
        alive, blocks = self._one(task)
        self._alive = self._alive + alive
        self._blocks = self._blocks + blocks

    def _one(self, task: Task) -> tuple[Floats, Floats]:
        if task.row < 0:
            self.enter(task)
        lengths = self._tables[task.row]
        over = np.flatnonzero(lengths <= task.generated)
        if len(over):
            lengths[over] = self._draw(task, over)
        alive = ((lengths - task.generated)[:, None] > self._steps).astype(float)
        return alive, alive * (task.span_tokens() + self.block_size / 2 + self._steps) / self.block_size

    def fits_with(self, task: Task, limit_blocks: int, epsilon: float) -> bool:
        alive, blocks = self._one(task)
        return self._over(self._blocks + blocks, self._alive + alive, limit_blocks) <= epsilon

    def _over(self, blocks: Floats, alive: Floats, limit_blocks: int) -> float:
        """Share of the scenarios that ever pass the limit."""
        if self._shared:
            blocks = blocks - self._shared * alive / np.maximum(alive[:, :1], 1.0)
        mean = blocks.mean(axis=0)
        peaks = (mean + self._near * (blocks - mean)).max(axis=1)
        return float((peaks > limit_blocks).mean())
