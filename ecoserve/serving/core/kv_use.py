"""The model of KV use: how many blocks a request holds for so many tokens, alone and beside others.

Nothing else in the core divides tokens by a block size. A KV cache is made of groups of layers with the same layout; a
request holds blocks of every group. Blocks are counted over all groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from ecoserve.serving.core.tasks import Task

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Group:
    """Layers whose KV is laid out alike.

    Attributes:
        block_size: tokens a block.
        window: most tokens that are kept (sliding window, chunked local attention); None: all of them.
        constant: blocks of a request whatever its length (state-space layers); then the others do not count.
    """

    block_size: int
    window: int | None = None
    constant: int | None = None


class KVUse:
    """Blocks for tokens, summed over ``groups``."""

    def __init__(self, groups: Sequence[Group]) -> None:
        self.groups = tuple(groups)
        full = [g for g in self.groups if g.window is None and g.constant is None]
        #: tokens that one more block of every group of full attention holds; a step of growth
        self.block_size = min((g.block_size for g in full or self.groups), default=1)
        self._simple = len(self.groups) == 1 and bool(full)

    def blocks(self, tokens: int) -> int:
        if self._simple:
            return -(-tokens // self.block_size)
        total = 0
        for g in self.groups:
            if g.constant is not None:
                total += g.constant
                continue
            whole = -(-tokens // g.block_size)
            # A window may begin and end within a block.
            total += whole if g.window is None else min(whole, -(-g.window // g.block_size) + 1)
        return total

    def blocks_at(self, tokens: Floats) -> Floats:
        """:meth:`blocks` of an array of any shape."""
        if self._simple:
            return np.ceil(tokens / self.block_size)
        total = np.zeros_like(tokens)
        for g in self.groups:
            if g.constant is not None:
                total += g.constant
                continue
            whole = np.ceil(tokens / g.block_size)
            total += whole if g.window is None else np.minimum(whole, -(-g.window // g.block_size) + 1)
        return total

    def growth(self, tokens: int) -> int:
        """Blocks that a request gains with ``tokens`` more tokens, at most."""
        return sum(-(-tokens // g.block_size) for g in self.groups if g.constant is None)

    def missing(self, task: Task, tokens: int) -> int:
        """Blocks that a holder must still get to have KV for ``tokens`` tokens."""
        return max(0, self.blocks(tokens) - task.blocks)
