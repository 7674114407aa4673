"""The model of KV use: how many blocks a request holds for so many tokens, alone and beside others.

Nothing else in the core divides tokens by a block size. A KV cache is made of groups of layers with the same layout,
which share one pool of blocks; a request holds blocks of every group, and they are counted over all groups. A group's
block table has an entry for every block of the sequence; blocks that no later token reads (before a sliding window, of
an earlier chunk, old states) are given back, and their entries stay, empty.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


class Table(NamedTuple):
    """A request's block table in one group: its entries, and how many of them are empty."""

    entries: int
    empty: int


class Holder(Protocol):
    """What :class:`~ecoserve.serving.core.tasks.Task` says of the KV that it holds."""

    tables: tuple[Table, ...]
    passing_shared: int
    settled: int


@dataclass(frozen=True, slots=True)
class Group:
    """Layers whose KV is laid out alike. Without ``window`` and ``chunk``, KV is kept to the end.

    Attributes:
        block_size: tokens a block.
        copies: groups of this layout.
        window: tokens before the next one whose KV is kept (sliding window; 1: the last state only).
        chunk: only KV of the next token's chunk of so many tokens is kept (chunked local attention).
        extra: blocks beyond those for tokens (states of speculative tokens).
        most: most blocks at a time, for which vLLM makes room before a prompt starts; None: no bound.
        states: most states that a step adds, whatever its tokens (Mamba, mode ``align``); None: one per block.
    """

    block_size: int
    copies: int = 1
    window: int | None = None
    chunk: int | None = None
    extra: int = 0
    most: int | None = None
    states: int | None = None

    @property
    def lasting(self) -> bool:
        """Whether KV is kept to the end."""
        return self.window is None and self.chunk is None

    def entries(self, tokens: int) -> int:
        """Entries of the block table for ``tokens`` tokens."""
        return -(-tokens // self.block_size) + self.extra

    def passed(self, computed: int) -> int:
        """Entries that are empty once ``computed`` tokens are computed and their outputs are there."""
        if self.window is not None:
            return max(0, computed - self.window) // self.block_size
        if self.chunk is not None:
            return max(0, computed) // self.chunk * self.chunk // self.block_size
        return 0

    def span(self, tokens: int, computed: int) -> int:
        """Blocks for ``tokens`` tokens, of which ``computed`` are computed, in one of the ``copies``."""
        blocks = self.entries(tokens) - self.passed(computed)
        return blocks if self.most is None else min(blocks, self.most)

    def spans(self, tokens: Floats) -> Floats:
        """:meth:`span` of decodes, whose last token is to be computed; an array of any shape."""
        blocks = np.ceil(tokens / self.block_size) + self.extra
        if self.window is not None:
            blocks -= np.maximum(tokens - 1 - self.window, 0) // self.block_size
        elif self.chunk is not None:
            blocks -= np.maximum(tokens - 1, 0) // self.chunk * self.chunk // self.block_size
        return blocks if self.most is None else np.minimum(blocks, self.most)


class KVUse:
    """Blocks for tokens, summed over ``groups``, which are of different layouts.

    ``ahead``: tokens beyond the next one that a step may need KV for: drafts of speculative decoding, and lookahead.
    """

    def __init__(self, groups: Sequence[Group], ahead: int = 0) -> None:
        self.groups = tuple(groups)
        self.ahead = ahead
        grows = [g for g in self.groups if g.lasting] or self.groups
        #: tokens that one more block of every group of full attention holds; a step of growth
        self.block_size = min((g.block_size for g in grows), default=1)
        #: blocks per token of a growing request
        self.blocks_per_token = sum(g.copies / g.block_size for g in grows)
        self._plain = len(self.groups) == 1 and self.groups[0] == Group(self.block_size)
        #: tokens of which a prompt's chunks are multiples
        self.least_chunk = max((g.block_size for g in self.groups if g.states is not None), default=1)
        #: whether a prompt being computed holds no more than a decode of its length
        self.lasting = all(g.lasting for g in self.groups)

    def blocks(self, tokens: int) -> int:
        """Of a decode whose last token is to be computed."""
        return self.prompt_blocks(tokens, tokens - 1)

    def blocks_at(self, tokens: Floats) -> Floats:
        """:meth:`blocks` of an array of any shape."""
        if self._plain:
            return np.ceil(tokens / self.block_size)
        total = np.zeros_like(tokens)
        for g in self.groups:
            total += g.copies * g.spans(tokens)
        return total

    def prompt_blocks(self, tokens: int, computed: int = 0) -> int:
        """At most, while a prompt of ``tokens`` tokens is computed on from its first ``computed`` ones."""
        if self._plain:
            return -(-tokens // self.block_size)
        return sum(g.copies * g.span(tokens, computed) for g in self.groups)

    def tokens_in(self, blocks: int) -> int:
        """Tokens by which a request can grow in ``blocks`` blocks."""
        return int(blocks / self.blocks_per_token) if self.blocks_per_token else 0

    def growth(self, tokens: int) -> int:
        """Blocks that a request gains with ``tokens`` more tokens, at most."""
        return sum(g.copies * (-(-tokens // g.block_size)) for g in self.groups)

    def missing(self, task: Holder, tokens: int) -> int:
        """Blocks that must be free for a holder to get KV for ``tokens`` tokens: new ones less those that it gives
        back first. A block of a window that others hold too is not given back."""
        need = 0
        for i, g in enumerate(self.groups):
            table = task.tables[i] if task.tables else Table(0, 0)
            new = g.entries(tokens) - table.entries
            if g.states is not None:
                new = min(new, g.states + (0 if table.entries else g.extra))
            elif g.most is not None:
                new = min(new, g.most)
            back = 0 if task.passing_shared else max(0, g.passed(task.settled) - table.empty)
            need += g.copies * (max(0, new) - back)
        return max(0, need)
