"""A sample of a stream, drawn while it passes by.

Rule: every item has the same chance, the seed decides which are drawn, and how the stream was cut into batches does
not. Source: Vitter, Random Sampling with a Reservoir, ACM TOMS 1985, algorithm R.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, TypeVar

import numpy as np

T = TypeVar("T")


class Reservoir(Generic[T]):
    """At most ``size`` items of all that were added, each as likely as any other.

    Args:
        size: how many are kept, 1 or more.
        seed: seed of the draws.
    """

    def __init__(self, size: int, seed: int) -> None:
        self._size = size
        self._draws = np.random.default_rng(seed)
        self._kept: list[tuple[int, T]] = []
        #: How many were added.
        self.seen = 0

    def add(self, items: Sequence[T]) -> None:
        """Let ``items`` pass by."""
        # One draw an item, needed or not: so batches make no difference.
        for item, draw in zip(items, self._draws.random(len(items)), strict=True):
            if self.seen < self._size:
                self._kept.append((self.seen, item))
            elif (place := int(draw * (self.seen + 1))) < self._size:
                self._kept[place] = (self.seen, item)
            self.seen += 1

    def items(self) -> list[T]:
        """What is kept, in the order in which it came."""
        return [item for _, item in sorted(self._kept, key=lambda kept: kept[0])]
