"""When predictions cannot be true: a test that needs not wait for the long answers.

Responses finish in the order of their lengths, so whatever is learned from the first to finish is biased, and what is
learned in the order of arrival comes late: one long answer holds up all that came after it. One thing can be said at
any time. Of N requests whose distributions are right, no more than a share ``level`` will ever end at or below their
own ``level`` quantile, whoever has finished so far. If many more have, the distributions are wrong: the answers are
far shorter than was said, and a cache reserved for them stands empty.

Answers that are longer than was said need no alarm: they are seen as they pass what was predicted.
"""

from __future__ import annotations

from typing import Final

from ecoserve.lengths import LengthDistribution

#: The quantile that is looked at.
LEVEL: Final = 0.02
#: So many times the share that is to be expected, and so many besides, are more than chance or rough calibration.
TIMES: Final = 5.0
BESIDES: Final = 8.0
#: Both counts are halved at so many requests, so that what was long ago does not hide what is now.
WINDOW: Final = 1024


class Alarm:
    """Counts the requests that began, and those that ended earlier than was thought possible."""

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
        """A response has ended after ``length`` tokens. Whether predictions are proven wrong."""
        self._early += 1.0 - predicted.survival(length) < LEVEL
        return self._early > TIMES * LEVEL * self._began + BESIDES

    def reset(self) -> None:
        """Begin anew."""
        self._began = self._early = 0.0
