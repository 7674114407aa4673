"""What is learned from finished responses: their history, the correction of predictions, how far requests err together.

Responses are learned from in the order of arrival: short ones finish first, and would teach that all are short. When
the correction's source changes, the distributions of all requests are computed anew.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from statistics import NormalDist
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from ecoserve.lengths import LengthDistribution
from ecoserve.serving.core.counters import Gauges
from ecoserve.serving.core.forecast import Forecast
from ecoserve.serving.core.tasks import Prediction, Task


class LengthHistory:
    """The length distribution of requests without a prediction: a window of finished lengths.

    The idea is that of Past-Future scheduling (LightLLM): the next response resembles the last thousand. Before
    anything has finished, a broad log-normal stands in.

    Args:
        window: finished responses kept. upper: largest possible response, tokens.
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
        self._lengths.append(max(1, length))
        self._since += 1
        if len(self._lengths) >= 8 and (self._since >= self._refresh or len(self._lengths) < 4 * self._refresh):
            self._since = 0
            self._current = LengthDistribution.from_samples(list(self._lengths), max(self._upper, *self._lengths))

    def distribution(self, limit: int) -> LengthDistribution:
        """The distribution of the next response, which may have ``limit`` tokens at most."""
        return self._current.closed_at(limit)


#: The quantile that is tested.
LEVEL: Final = 0.02
#: More than this many times the expected share, plus this many requests, is neither chance nor rough calibration.
TIMES: Final = 5.0
BESIDES: Final = 8.0
#: Both counts are halved at this many requests, so that old ones do not hide new ones.
WINDOW: Final = 1024


class Alarm:
    """Notices predictions that cannot be true, without waiting for long responses to finish.

    Of N requests with right distributions, at most a share :data:`LEVEL` ever end at or below their own ``LEVEL``
    quantile. If many more have, responses are far shorter than predicted. Longer responses need no alarm: they are seen
    as they pass the prediction.
    """

    def __init__(self) -> None:
        self._began = 0.0
        self._early = 0.0

    def began(self) -> None:
        self._began += 1.0
        if self._began >= WINDOW:
            self._began /= 2.0
            self._early /= 2.0

    def ended(self, predicted: LengthDistribution, length: int) -> bool:
        """A response has ended after ``length`` tokens; returns whether predictions are wrong."""
        self._early += 1.0 - predicted.survival(length) < LEVEL
        return self._early > TIMES * LEVEL * self._began + BESIDES

    def reset(self) -> None:
        self._began = self._early = 0.0


_NORMAL = NormalDist()
#: Of the common error: estimate before any pair and its weight in pairs, pairs of the mean, upper bound.
_PRIOR, _PRIOR_PAIRS, _PAIRS, _MOST_RHO = 0.02, 100.0, 1000, 0.5


class CommonError:
    """The running estimate of rho, the share of the uncertainty of their lengths that requests have in common.

    The place F(length) of a response in its distribution is turned into a normal score; of two responses that arrived
    one after the other the product of scores is, on average, rho. The estimate is an exponentially weighted mean, drawn
    towards a prior, and kept within bounds.
    """

    def __init__(self) -> None:
        self._product = 0.0
        self._square = 1.0
        self.pairs = 0
        self._last: tuple[int, float] | None = None

    @property
    def rho(self) -> float:
        seen = min(self.pairs, _PAIRS)
        measured = self._product / max(self._square, 0.25)
        blend = (seen * measured + _PRIOR_PAIRS * _PRIOR) / (seen + _PRIOR_PAIRS)
        return min(_MOST_RHO, max(0.0, blend))

    def learn(self, number: int, place: float) -> None:
        """A response's place in its distribution (0 to 1); ``number``: its order of arrival."""
        score = _NORMAL.inv_cdf(min(0.999, max(0.001, place)))
        last, self._last = self._last, (number, score)
        if last is None or abs(number - last[0]) > 8:
            return
        self.pairs += 1
        weight = max(1.0 / _PAIRS, 1.0 / self.pairs)
        self._product += weight * (score * last[1] - self._product)
        self._square += weight * (score * score - self._square)


SourceName = Literal["predicted", "scaled", "history"]

#: Nominal levels that are corrected; between them, the corrected level is interpolated.
LEVELS: Final = np.array([0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99])
_LOSS_LEVELS: Final = np.linspace(0.1, 0.9, 9)
#: Responses seen before anything is corrected.
WARM_UP: Final = 50
#: Responses over which losses and the scale are taken; largest log of the scale; how much better a source must be.
_WEIGHT, _MOST_LOG, _MARGIN = 1.0 / 256, math.log(16.0), 0.1


class InOrder:
    """Finished responses in the order of arrival; one is passed over when ``most`` later ones wait for it."""

    def __init__(self, most: int = 512) -> None:
        self._most = most
        self._open: OrderedDict[str, Prediction] = OrderedDict()

    def __len__(self) -> int:
        return len(self._open)

    def began(self, name: str, prediction: Prediction) -> None:
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
    """Online correction of predicted lengths. Three things are learned, in this order, and applied to every prediction:

    1. *Scale*: the running median of log(length / predicted median), within a factor of 16 either way.
    2. *Source*: the prediction, the scaled prediction and the history of finished lengths are compared by their mean
       pinball loss of log length over nine quantiles. Another source must be better by a tenth to replace it.
    3. *Levels*: adaptive conformal inference (Gibbs and Candes, 2021) at several levels at once. The level that stands
       for the nominal q goes up by ``rate`` * q for a response above it and down by ``rate`` * (1 - q) for one below
       it, so that in the long run a share q falls below it, whatever the predictor does.
    """

    def __init__(self, rate: float = 0.02) -> None:
        self._rate = rate
        self._rng = np.random.default_rng(0)
        self._log_scale = 0.0
        self._losses = dict.fromkeys(("predicted", "scaled", "history"), 0.0)
        self._levels: npt.NDArray[np.float64] = LEVELS.copy()
        #: share of recent responses that were within their 0.9 quantile
        self.coverage_90 = 0.9
        self.seen = 0
        self.source: SourceName = "predicted"

    # -- applying ----------------------------------------------------------------------------------------

    @property
    def scale(self) -> float:
        """Factor by which predictions are too short (above 1) or too long."""
        return math.exp(self._log_scale)

    def apply(self, prediction: Prediction) -> LengthDistribution:
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
        """Predictions are wrong (:class:`Alarm`): history is used until they are better again."""
        if self.source == "predicted":
            self.source = "history"
            self._levels = LEVELS.copy()

    # -- learning ----------------------------------------------------------------------------------------

    def learn(self, prediction: Prediction) -> None:
        length = prediction.length
        if length is None:
            return
        self.seen += 1
        weight = max(_WEIGHT, 1.0 / self.seen)
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
        self.coverage_90 += weight * (float(place <= self._levels[5]) - self.coverage_90)
        if high - low < 1.0 - 1e-9:
            moved = self._levels + self._rate * (np.where(place > self._levels, LEVELS, LEVELS - 1.0))
            self._levels = np.maximum.accumulate(np.clip(moved, 0.001, 0.999))
        if self.seen >= WARM_UP:
            self._choose()

    def _rescale(self, ratio: float) -> None:
        """The running median, by steps that shrink from an eighth to the window's share of the spread."""
        step = max(0.02, 1.0 / (4.0 + self.seen))
        self._log_scale += step * float(np.sign(ratio - self._log_scale))
        self._log_scale = min(_MOST_LOG, max(-_MOST_LOG, self._log_scale))

    def _choose(self) -> None:
        order: tuple[SourceName, ...] = ("predicted", "scaled", "history")
        best = min(order, key=lambda name: self._losses[name])
        if self._losses[best] < (1.0 - _MARGIN) * self._losses[self.source]:
            self.source = best
            self._levels = LEVELS.copy()


def pinball(lengths: LengthDistribution, length: int) -> float:
    """Mean pinball loss of the logs of nine quantiles (0.1 to 0.9); 0 if all of them are exactly ``length``."""
    at = np.log([lengths.quantile(float(q)) for q in _LOSS_LEVELS])
    off = math.log(length) - at
    return float(np.maximum(_LOSS_LEVELS * off, (_LOSS_LEVELS - 1.0) * off).mean())


class Learner:
    """Feeds the correction (None: predictions are taken as they are) and the common error (None: rho is fixed)."""

    def __init__(self, correction: Correction | None, common_error: CommonError | None, forecast: Forecast) -> None:
        self.correction = correction
        self.common_error = common_error
        self._forecast = forecast
        self._in_order = InOrder()
        self._alarm = Alarm()
        if common_error is not None:
            forecast.rho = common_error.rho

    def arrives(self, task: Task) -> None:
        if task.prediction is None:
            return
        if self.correction is not None:
            task.lengths = self.correction.apply(task.prediction)
            task.predicted_median = task.lengths.quantile(0.5)
            self._alarm.began()
        task.prediction.used = task.lengths
        task.prediction.number = task.number
        self._in_order.began(task.request_id, task.prediction)

    def lengths_now(self, task: Task, history: LengthDistribution) -> LengthDistribution | None:
        """The corrected distribution of an earlier request, given today's ``history``; None without a prediction."""
        if task.prediction is None or self.correction is None:
            return None
        return self.correction.apply(Prediction(task.prediction.predicted, history))

    def ended(self, task: Task, length: int | None) -> bool:
        """A response has ended with ``length`` tokens (None: aborted); returns whether the source has changed."""
        if task.prediction is None:
            return False
        before = None if self.correction is None else self.correction.source
        if self.correction is not None and length is not None and self._alarm.ended(task.prediction.predicted, length):
            self._alarm.reset()
            self.correction.distrust()
        for prediction in self._in_order.ended(task.request_id, length):
            if self.correction is not None:
                self.correction.learn(prediction)
            if self.common_error is not None and prediction.used is not None and prediction.length is not None:
                above = prediction.used.survival(prediction.length)
                at = prediction.used.survival(prediction.length - 1) - above
                self.common_error.learn(prediction.number, 1.0 - above - at / 2)
                self._forecast.rho = self.common_error.rho
        return self.correction is not None and self.correction.source != before

    def show(self, gauges: Gauges) -> None:
        if self.correction is not None:
            gauges.length_scale = self.correction.scale
            gauges.coverage_90 = self.correction.coverage_90
            gauges.length_source = self.correction.source
        gauges.common_error = self._forecast.rho
