"""The history of response lengths: the length distribution of requests without a prediction.

The idea is that of Past-Future scheduling (LightLLM): the next response resembles the last thousand. Short responses
finish first, so those that have finished are not a fair sample. The history is therefore a life table (Kaplan-Meier
over a period): the hazard of a length is the number of responses that ended there over the number that reached it,
whether these have ended, still run, or were cut off. A response that was aborted, or that reached its token limit,
is censored: it would have been longer. Where nothing was seen, a broad log-normal stands in.

Counts are kept in bins, single tokens at first and then 2 % wide, so the work does not depend on the window.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

import numpy as np

from ecoserve.lengths import MAX_LENGTH, LengthDistribution
from ecoserve.serving.core.kv_use import Floats

#: Lengths that have a bin of their own; the relative width of the bins above them.
_SINGLE, _WIDTH = 64, 1.02
_EDGES: Final = np.unique(
    np.concatenate([np.arange(_SINGLE + 1), np.geomspace(_SINGLE, MAX_LENGTH, 630).astype(np.int64), [MAX_LENGTH]])
)
_EDGE_LIST: Final = _EDGES.tolist()
_BINS: Final = len(_EDGES) - 1
#: Weight of the log-normal, in responses.
_PRIOR: Final = 1.0
#: Responses before which the log-normal alone serves.
_FEWEST: Final = 8
#: Quantiles whose bins are kept in the distribution.
_KEPT: Final = np.array([*np.linspace(0.0, 1.0, 33)[1:-1], 0.99, 0.999])
#: Token limits whose distribution is kept until the history changes.
_MOST_LIMITS: Final = 256


def _bin(length: int) -> int:
    return bisect_left(_EDGE_LIST, min(length, MAX_LENGTH)) - 1


class LengthHistory:
    """A window of the responses that have ended or were cut off, and those that run.

    Args:
        window: responses kept. upper: largest possible response, tokens.
        refresh: the distribution is computed anew after this many responses (and after each of the first few).
        running: tokens that each running response has so far.
    """

    def __init__(
        self, window: int, upper: int, refresh: int = 32, running: Callable[[], Iterable[int]] = tuple
    ) -> None:
        self._lengths: deque[tuple[int, bool]] = deque(maxlen=window)
        self._upper = max(1, upper)
        self._refresh = refresh
        self._running = running
        self._since = 0
        self._ended = np.zeros(_BINS)
        self._cut = np.zeros(_BINS)
        # Ages of what ran when the window began: those that ended since were not all seen from their first token.
        self._every = max(1, min(refresh, window // 8))
        self._recorded = 0
        self._starts: deque[tuple[int, Floats]] = deque([(0, np.zeros(_BINS))], maxlen=window // self._every + 2)
        self._current = LengthDistribution.lognormal(min(200.0, max(1.0, upper / 4)), 1.0, max(2, upper))
        self._prior = self._current.survival_at(_EDGES)
        self._closed: dict[int, LengthDistribution] = {}

    def __len__(self) -> int:
        return len(self._lengths)

    def record(self, length: int, ended: bool = True) -> None:
        """A response is over after ``length`` tokens; ``ended``: by itself, otherwise it would have been longer."""
        lengths = self._lengths
        if len(lengths) == lengths.maxlen:
            oldest, was_end = lengths[0]
            (self._ended if was_end else self._cut)[oldest] -= 1.0
        place = _bin(max(1, length))
        lengths.append((place, ended))
        (self._ended if ended else self._cut)[place] += 1.0
        self._since += 1
        self._recorded += 1
        if self._recorded % self._every == 0:
            self._starts.append((self._recorded, self._ages()))

    def distribution(self, limit: int) -> LengthDistribution:
        """The distribution of the next response, which may have ``limit`` tokens at most."""
        known = len(self._lengths)
        if known >= _FEWEST and self._since and (self._since >= self._refresh or known < 4 * self._refresh):
            self._since = 0
            self._closed.clear()
            self._current = self._estimate()
        found = self._closed.get(limit)
        if found is None:
            if len(self._closed) >= _MOST_LIMITS:
                self._closed.clear()
            found = self._closed[limit] = self._current.closed_at(limit)
        return found

    def _ages(self) -> Floats:
        """Running responses by their number of tokens."""
        ages = np.fromiter((n for n in self._running() if n > 0), dtype=np.int64)
        places = np.searchsorted(_EDGES, np.minimum(ages, MAX_LENGTH)) - 1
        return np.bincount(places, minlength=_BINS).astype(float)

    def _estimate(self) -> LengthDistribution:
        first = self._recorded - len(self._lengths)
        while len(self._starts) > 1 and self._starts[1][0] <= first:
            self._starts.popleft()
        exits = self._ended + self._cut + self._ages() - self._starts[0][1]
        reached = np.maximum(np.cumsum(exits[::-1])[::-1], self._ended)
        ended = self._ended - _PRIOR * np.diff(self._prior)
        reached = reached + _PRIOR * self._prior[:-1]
        hazard = np.divide(ended, reached, out=np.ones(_BINS), where=reached > 0.0)
        cdf = 1.0 - np.concatenate([[1.0], np.cumprod(1.0 - np.minimum(hazard, 1.0))])
        # The last edge: the longest possible response, or one that was longer.
        seen = np.flatnonzero(self._ended + self._cut)
        last = max(bisect_left(_EDGE_LIST, self._upper), int(seen[-1]) + 1)
        cdf[last:] = 1.0
        # Of the fine bins, those at the kept quantiles' places, and both edges of one that holds much by itself.
        at = np.unique(np.searchsorted(cdf[1:last], _KEPT)) + 1
        heavy = at[cdf[at] - cdf[at - 1] > 1.0 / len(_KEPT)]
        cuts = np.unique(np.concatenate([[0], at[at < last], heavy - 1, [last]]))
        edges = _EDGES[cuts]
        if edges[-1] > self._upper and edges[-2] < self._upper:
            edges[-1] = self._upper
        return LengthDistribution.from_weights(edges.tolist(), np.maximum(np.diff(cdf[cuts]), 0.0), "max_model_len")
