"""The length distribution of requests without a prediction: a running history of finished lengths.

The same idea as the history window of Past-Future scheduling (LightLLM): the next response resembles the last
thousand. Before anything has finished, a broad log-normal stands in.
"""

from __future__ import annotations

from collections import deque

from ecoserve.lengths import LengthDistribution


class LengthHistory:
    """A window of finished response lengths, as a distribution.

    Args:
        window: finished responses kept.
        upper: largest possible response, tokens.
        refresh: the distribution is computed anew after this many finishes (and after each of the first few).
    """

    def __init__(self, window: int, upper: int, refresh: int = 32) -> None:
        self._lengths: deque[int] = deque(maxlen=window)
        self._upper = max(1, upper)
        self._refresh = refresh
        self._since = 0
        self._current = LengthDistribution.lognormal(min(200.0, max(1.0, upper / 4)), 1.0, max(2, upper))

    def __len__(self) -> int:
        return len(self._lengths)

    def record(self, length: int) -> None:
        """Remember a response that ended by itself after ``length`` tokens."""
        self._lengths.append(max(1, length))
        self._since += 1
        if len(self._lengths) >= 8 and (self._since >= self._refresh or len(self._lengths) < 4 * self._refresh):
            self._since = 0
            self._current = LengthDistribution.from_samples(list(self._lengths), max(self._upper, *self._lengths))

    def distribution(self, limit: int) -> LengthDistribution:
        """The distribution of the next response, which may have ``limit`` tokens at most."""
        return self._current.closed_at(limit)
