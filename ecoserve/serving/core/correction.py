"""Online correction of predicted lengths by the responses that have finished.

A predictor may be wrong in ways that show: too short by a factor, too sure of itself, or worthless for this traffic.
Three things are learned from finished responses, in this order, and applied to every prediction:

1. *Scale*: the running median of log(length / predicted median), within a factor of ``most_scale`` either way.
2. *Source*: the prediction, the scaled prediction and the history of finished lengths are compared by their loss on the
   same responses (pinball loss of log length over nine quantiles, an exponentially weighted mean over ``window``
   responses). The best is used; another must be better by ``margin`` to replace it, so that noise does not.
3. *Levels*: adaptive conformal inference (Gibbs and Candes, 2021) at several levels at once. The level that stands for
   the nominal q goes up by ``rate`` * q for a response above it and down by ``rate`` * (1 - q) for one below it, so
   that in the long run a share q falls below it, whatever the predictor does.

Scale and levels are bounded. Lengths are taken in the order in which requests arrived (:class:`InOrder`): short
responses finish first, and taken as they finish they would teach that all are short.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from ecoserve.lengths import LengthDistribution

SourceName = Literal["predicted", "scaled", "history"]

#: Nominal levels that are corrected; between them, the corrected level is interpolated.
LEVELS: Final = np.array([0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99])
_LOSS_LEVELS: Final = np.linspace(0.1, 0.9, 9)
#: Responses seen before anything is corrected.
WARM_UP: Final = 50


@dataclass(slots=True, eq=False)
class Prediction:
    """One request's prediction and the history of lengths at its arrival; later, its length."""

    predicted: LengthDistribution
    history: LengthDistribution
    used: LengthDistribution | None = None
    number: int = 0
    length: int | None = None
    gone: bool = False


class InOrder:
    """Finished responses in the order of arrival; one that takes very long is passed over.

    Args:
        most: a response is passed over when this many later ones wait.
    """

    def __init__(self, most: int = 512) -> None:
        self._most = most
        self._open: OrderedDict[str, Prediction] = OrderedDict()

    def __len__(self) -> int:
        return len(self._open)

    def began(self, name: str, prediction: Prediction) -> None:
        """A request has arrived."""
        self._open.setdefault(name, prediction)

    def ended(self, name: str, length: int | None) -> list[Prediction]:
        """A response has ended after ``length`` tokens (None: aborted); returns those to be learned from now."""
        prediction = self._open.get(name)
        if prediction is None:
            return []
        prediction.length, prediction.gone = length, True
        out = []
        while self._open:
            first = next(iter(self._open))
            if not self._open[first].gone and len(self._open) <= self._most:
                break
            prediction = self._open.pop(first)
            if prediction.gone and prediction.length is not None:
                out.append(prediction)
        return out


class Correction:
    """The corrections and their state.

    Args:
        rate: of the levels, per response. window: responses over which losses and the scale are taken.
        most_scale: the largest factor. margin: fraction by which another source must be better.
    """

    def __init__(
        self, rate: float = 0.02, window: int = 256, most_scale: float = 16.0, margin: float = 0.1, seed: int = 0
    ) -> None:
        self._rate = rate
        self._weight = 1.0 / window
        self._most = math.log(most_scale)
        self._margin = margin
        self._rng = np.random.default_rng(seed)
        self._log_scale = 0.0
        self._losses = dict.fromkeys(("predicted", "scaled", "history"), 0.0)
        self._levels: npt.NDArray[np.float64] = LEVELS.copy()
        self._covered = 0.9
        self.seen = 0
        self.source: SourceName = "predicted"

    # -- applying ----------------------------------------------------------------------------------------

    @property
    def scale(self) -> float:
        """Factor by which predictions are too short (above 1) or too long."""
        return math.exp(self._log_scale)

    @property
    def coverage_90(self) -> float:
        """Share of recent responses that were within their 0.9 quantile."""
        return self._covered

    def apply(self, prediction: Prediction) -> LengthDistribution:
        """The corrected distribution."""
        base = self._base(prediction)
        return base if self.seen < WARM_UP else self._relevel(base)

    def _base(self, prediction: Prediction) -> LengthDistribution:
        if self.source == "history":
            return prediction.history
        if self.source == "scaled":
            return prediction.predicted.scaled(self.scale)
        return prediction.predicted

    def _relevel(self, base: LengthDistribution) -> LengthDistribution:
        if len(base.probs) == 1 and base.edges[1] - base.edges[0] == 1:
            return base  # a single length has one quantile, at every level
        cdf = np.interp(base.cdf, [0.0, *self._levels, 1.0], [0.0, *LEVELS, 1.0])
        return LengthDistribution.from_weights(base.edges, np.maximum(np.diff(cdf), 0.0) + 1e-12, base.closed_by)

    def distrust(self) -> None:
        """Predictions are wrong (:mod:`~ecoserve.serving.core.alarm`): history is used until they are better again."""
        if self.source == "predicted":
            self.source = "history"
            self._levels = LEVELS.copy()

    # -- learning ----------------------------------------------------------------------------------------

    def learn(self, prediction: Prediction) -> None:
        """Learn from a finished response."""
        length = prediction.length
        if length is None:
            return
        self.seen += 1
        weight = max(self._weight, 1.0 / self.seen)
        for name, lengths in (
            ("predicted", prediction.predicted),
            ("scaled", prediction.predicted.scaled(self.scale)),
            ("history", prediction.history),
        ):
            self._losses[name] += weight * (pinball(lengths, length) - self._losses[name])
        self._rescale(math.log(length / prediction.predicted.quantile(0.5)))
        base = self._base(prediction)
        # Where the length falls within the distribution; spread evenly over the chance of exactly this length.
        high, low = 1.0 - base.survival(length), 1.0 - base.survival(length - 1)
        place = low + (high - low) * float(self._rng.random())
        self._covered += weight * (float(place <= self._levels[5]) - self._covered)
        if high - low < 1.0 - 1e-9:
            moved = self._levels + self._rate * (np.where(place > self._levels, LEVELS, LEVELS - 1.0))
            self._levels = np.maximum.accumulate(np.clip(moved, 0.001, 0.999))
        if self.seen >= WARM_UP:
            self._choose()

    def _rescale(self, ratio: float) -> None:
        """The running median, by steps that shrink from an eighth to the window's share of the spread."""
        step = max(0.02, 1.0 / (4.0 + self.seen))
        self._log_scale += step * float(np.sign(ratio - self._log_scale))
        self._log_scale = min(self._most, max(-self._most, self._log_scale))

    def _choose(self) -> None:
        order: tuple[SourceName, ...] = ("predicted", "scaled", "history")
        best = min(order, key=lambda name: self._losses[name])
        if self._losses[best] < (1.0 - self._margin) * self._losses[self.source]:
            self.source = best
            self._levels = LEVELS.copy()


def pinball(lengths: LengthDistribution, length: int) -> float:
    """Mean pinball loss of the logs of nine quantiles (0.1 to 0.9); 0 if all of them are exactly ``length``."""
    at = np.log([lengths.quantile(float(q)) for q in _LOSS_LEVELS])
    off = math.log(length) - at
    return float(np.maximum(_LOSS_LEVELS * off, (_LOSS_LEVELS - 1.0) * off).mean())
