"""What is learned from responses besides their history: the correction of predictions, how far requests err together.

Short responses finish first, and would teach that all are short. So responses are learned from in the order in which
they started, and one that was aborted, or that still runs when many later ones wait for it, is *censored*: its length
is drawn from what is predicted of it, given that it is longer than it was. vLLM reports a response that a stop string
ended as aborted, like one whose client left; the scheduler takes it as ended if its request has stop strings.

The work of a step is bounded: :data:`LEARNED` responses are learned from, :data:`FOLLOWED` are followed at most. When
the correction's source changes, requests get their new distributions a few a step (:attr:`Learner.version`).
"""

from __future__ import annotations

import math
from collections import OrderedDict
from statistics import NormalDist
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from ecoserve.lengths import LengthDistribution
from ecoserve.serving.core.counters import Gauges
from ecoserve.serving.core.forecast import Forecast
from ecoserve.serving.core.tasks import Prediction, Task

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

    The place F(length) of a response in its distribution is turned into a normal score; of two responses that started
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
        """A response's place in its distribution (0 to 1); ``number``: its order of start."""
        score = _NORMAL.inv_cdf(min(0.999, max(0.001, place)))
        last, self._last = self._last, (number, score)
        if last is None or abs(number - last[0]) > 8:
            return
        self.pairs += 1
        weight = max(1.0 / _PAIRS, 1.0 / self.pairs)
        self._product += weight * (score * last[1] - self._product)
        self._square += weight * (score * score - self._square)


SourceName = Literal["predicted", "scaled", "history"]
SOURCES: Final[tuple[SourceName, ...]] = ("predicted", "scaled", "history")

#: Nominal levels that are corrected; between them, the corrected level is interpolated.
LEVELS: Final = np.array([0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99])
_WITH_ENDS: Final = np.array([0.0, *LEVELS, 1.0])
_LOSS_LEVELS: Final = np.linspace(0.1, 0.9, 9)
_MEDIAN: Final = 4
#: Responses seen before anything is corrected.
WARM_UP: Final = 50
#: Responses over which losses and the scale are taken; largest log of the scale; how much better a source must be.
_WEIGHT, _MOST_LOG, _MARGIN = 1.0 / 256, math.log(16.0), 0.1


#: Responses learned from in a step, at most.
LEARNED: Final = 4
#: Responses that are followed from their start, at most; the others are not learned from.
FOLLOWED: Final = 2048
#: A running response is taken as censored when this many later ones that are over wait for it.
PATIENCE: Final = 32


class InOrder:
    """Responses in the order of their start, to be learned from in that order."""

    def __init__(self, patience: int = PATIENCE, most: int = FOLLOWED) -> None:
        self._patience = patience
        self._most = most
        self._followed: OrderedDict[str, tuple[Task, Prediction]] = OrderedDict()
        self._over = 0

    def __len__(self) -> int:
        return len(self._followed)

    def started(self, task: Task) -> bool:
        """Follow a response from now on; False if it is followed already, or too many are."""
        if task.prediction is None or task.request_id in self._followed or len(self._followed) >= self._most:
            return False
        self._followed[task.request_id] = task, task.prediction
        return True

    def over(self, name: str, length: int, ended: bool) -> None:
        """A response is over after ``length`` tokens; ``ended``: by itself or at its limit."""
        followed = self._followed.get(name)
        if followed is None or followed[1].gone:
            return
        prediction = followed[1]
        prediction.length, prediction.censored, prediction.gone = length, not ended, True
        self._over += 1

    def take(self, most: int) -> list[Prediction]:
        """Those to be learned from now; looks at ``most`` responses."""
        out = []
        for _ in range(min(most, len(self._followed))):
            name, (task, prediction) = next(iter(self._followed.items()))
            if not prediction.gone:
                if self._over <= self._patience:
                    break
                prediction.length, prediction.censored = task.generated, True
            self._over -= prediction.gone
            del self._followed[name]
            if prediction.length:
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
        self._losses = dict.fromkeys(SOURCES, 0.0)
        self._levels: npt.NDArray[np.float64] = LEVELS.copy()
        #: what :meth:`apply` made last: of which distribution, with which levels
        self._relevelled: tuple[LengthDistribution, npt.NDArray[np.float64], LengthDistribution] | None = None
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
        # Requests without a prediction that is used share one history.
        last = self._relevelled
        if last is None or last[0] is not base or last[1] is not self._levels:
            cdf = np.interp(base.cdf, np.concatenate(([0.0], self._levels, [1.0])), _WITH_ENDS)
            weights = np.maximum(cdf[1:] - cdf[:-1], 0.0) + 1e-12
            last = self._relevelled = base, self._levels, base.with_weights(weights)
        return last[2]

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
        if prediction.censored:
            longer = self.apply(prediction).given_longer_than(length)
            length = longer.quantile(float(self._rng.random()))
        self.seen += 1
        weight = max(_WEIGHT, 1.0 / self.seen)
        predicted = quantiles(prediction.predicted)
        scaled = np.maximum(1.0, np.rint(predicted * self.scale))
        losses = _losses(np.array((predicted, scaled, quantiles(prediction.history))), length)
        for name, loss in zip(self._losses, losses, strict=True):
            self._losses[name] += weight * (loss - self._losses[name])
        self._rescale(math.log(length / predicted[_MEDIAN]))
        # Where the length falls within the distribution; spread evenly over the chance of exactly this length.
        base = prediction.history if self.source == "history" else prediction.predicted
        unit = self.scale if self.source == "scaled" else 1.0
        high, low = 1.0 - base.survival(length / unit), 1.0 - base.survival((length - 1) / unit)
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
        best = min(SOURCES, key=lambda name: self._losses[name])
        if self._losses[best] < (1.0 - _MARGIN) * self._losses[self.source]:
            self.source = best
            self._levels = LEVELS.copy()


def quantiles(lengths: LengthDistribution) -> npt.NDArray[np.float64]:
    """The quantiles from 0.1 to 0.9, tokens."""
    at: npt.NDArray[np.float64] = np.ceil(np.interp(_LOSS_LEVELS, lengths.cdf, lengths.edges) - 1e-9)
    return np.maximum(at, lengths.edges[0] + 1.0)


def _losses(at: npt.NDArray[np.float64], length: int) -> list[float]:
    """The mean pinball loss of each row of quantiles."""
    off = math.log(length) - np.log(at)
    each: list[float] = (np.maximum(_LOSS_LEVELS * off, (_LOSS_LEVELS - 1.0) * off).sum(axis=1) / 9.0).tolist()
    return each


def pinball(lengths: LengthDistribution, length: int) -> float:
    """Mean pinball loss of the logs of nine quantiles (0.1 to 0.9); 0 if all of them are exactly ``length``."""
    return _losses(quantiles(lengths)[None], length)[0]


class Learner:
    """Feeds the correction (None: predictions are taken as they are) and the common error (None: rho is fixed)."""

    def __init__(self, correction: Correction | None, common_error: CommonError | None, forecast: Forecast) -> None:
        self.correction = correction
        self.common_error = common_error
        #: changes of the correction's source so far; lengths of an earlier version are to be computed anew
        self.version = 0
        self._forecast = forecast
        self._in_order = InOrder()
        self._starts = 0
        self._alarm = Alarm()
        if common_error is not None:
            forecast.rho = common_error.rho

    def arrives(self, task: Task) -> None:
        if task.prediction is None or self.correction is None:
            return
        task.prediction.version = self.version
        task.lengths = self.correction.apply(task.prediction)
        task.predicted_median = task.lengths.quantile(0.5)
        self._alarm.began()

    def starts(self, task: Task) -> None:
        """A request's prefill starts: from now on its response is followed, unless too many are.

        One that was preempted starts again, and was followed from its first start.
        """
        if task.prediction is not None and task.prediction.used is None and self._in_order.started(task):
            self._starts += 1
            task.prediction.number = self._starts
            task.prediction.used = task.lengths

    def is_stale(self, task: Task) -> bool:
        """Whether the source of the request's lengths has changed since they were computed."""
        return task.prediction is not None and task.prediction.version != self.version

    def lengths_now(self, task: Task, history: LengthDistribution) -> LengthDistribution | None:
        """The corrected distribution of an earlier request, given today's ``history``; None without a prediction."""
        if task.prediction is None or self.correction is None:
            return None
        task.prediction.version = self.version
        return self.correction.apply(Prediction(task.prediction.predicted, history))

    def over(self, task: Task, length: int, ended: bool) -> None:
        """A response is over after ``length`` tokens; ``ended``: by itself or at its limit."""
        prediction = task.prediction
        if prediction is None:
            return
        self._in_order.over(task.request_id, length, ended)
        if self.correction is not None and ended and self._alarm.ended(prediction.predicted, length):
            self._alarm.reset()
            before = self.correction.source
            self.correction.distrust()
            self.version += self.correction.source != before

    def step(self) -> None:
        """Learn from the next few responses."""
        for prediction in self._in_order.take(LEARNED):
            if self.correction is not None:
                before = self.correction.source
                self.correction.learn(prediction)
                self.version += self.correction.source != before
            if self.common_error is not None and not prediction.censored:
                self._learn_common_error(self.common_error, prediction)

    def _learn_common_error(self, common_error: CommonError, prediction: Prediction) -> None:
        assert prediction.used is not None
        assert prediction.length is not None
        above = prediction.used.survival(prediction.length)
        at = prediction.used.survival(prediction.length - 1) - above
        common_error.learn(prediction.number, 1.0 - above - at / 2)
        self._forecast.rho = common_error.rho

    def show(self, gauges: Gauges) -> None:
        if self.correction is not None:
            gauges.length_scale = self.correction.scale
            gauges.coverage_90 = self.correction.coverage_90
            gauges.length_source = self.correction.source
        gauges.common_error = self._forecast.rho
