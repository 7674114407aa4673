"""When predictions cannot be true: a test that need not wait for long responses to finish.

Responses finish in the order of their lengths, so what is learned from the first to finish is biased, and what is
learned in order of arrival comes late. But of N requests with right distributions, no more than a share ``level`` will
ever end at or below their own ``level`` quantile. If many more have, responses are far shorter than predicted, and the
KV cache reserved for them stands empty. Longer responses need no alarm: they are seen as they pass the prediction.
"""

from __future__ import annotations

from typing import Final

from ecoserve.lengths import LengthDistribution

#: The quantile that is tested.
LEVEL: Final = 0.02
#: More than this many times the expected share, plus this many requests, is neither chance nor rough calibration.
TIMES: Final = 5.0
BESIDES: Final = 8.0
#: Both counts are halved at this many requests, so that old ones do not hide new ones.
WINDOW: Final = 1024


class Alarm:
    """Counts the requests that arrived, and those that ended below their :data:`LEVEL` quantile."""

    def __init__(self) -> None:
        self._began = 0.0
        self._early = 0.0

    def began(self) -> None:
        """A request with a prediction has arrived."""
        self._began += 1.0
        if self._began >= WINDOW:
            self._began /= 2.0
            self._early /= 2.0

    def ended(self, predicted: LengthDistribution, length: int) -> bool:
        """A response has ended after ``length`` tokens; returns whether predictions are wrong."""
        self._early += 1.0 - predicted.survival(length) < LEVEL
        return self._early > TIMES * LEVEL * self._began + BESIDES

    def reset(self) -> None:
        """Forget everything."""
        self._began = self._early = 0.0
