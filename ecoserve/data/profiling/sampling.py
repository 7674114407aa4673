"""A sample of a stream, drawn in one pass without knowing how long the stream is.

Rule: every row draws a number, and the rows with the smallest ones are the sample (Efraimidis and Spirakis 2006, with
equal weights). So the sample depends on the seed and the rows, not on how they came in batches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

T = TypeVar("T")


class SeededSample(Generic[T]):
    """At most ``size`` items of a stream.

    Args:
        size: how many to keep; 0 keeps none and costs nothing.
        seed: which ones.
    """

    def __init__(self, size: int, seed: int) -> None:
        self._size = size
        self._rng = np.random.default_rng(seed)
        self._kept: list[tuple[float, int, T]] = []
        self._below = 1.0

    def offer(self, first_row: int, batch: Sequence[Any], item: Callable[[Any], T | None]) -> None:
        """Offer the rows ``first_row, first_row + 1, ...``; ``item`` makes what is kept, or ``None``."""
        if not self._size:
            return
        keys = self._rng.random(len(batch))
        for i in np.flatnonzero(keys < self._below).tolist():
            made = item(batch[i])
            if made is not None:
                self._kept.append((float(keys[i]), first_row + i, made))
        if len(self._kept) > 2 * self._size:
            self._prune()

    def _prune(self) -> None:
        self._kept.sort(key=lambda entry: entry[0])
        del self._kept[self._size :]
        if self._size and len(self._kept) == self._size:
            self._below = self._kept[-1][0]

    def result(self) -> tuple[npt.NDArray[np.int64], list[T]]:
        """The rows kept (shape ``[k]``, ascending) and what was kept of them."""
        self._prune()
        chosen = sorted(self._kept, key=lambda entry: entry[1])
        return np.asarray([row for _, row, _ in chosen], dtype=np.int64), [made for _, _, made in chosen]
