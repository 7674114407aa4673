"""What the scheduler learns from finished responses: the correction, and how much requests err together.

Both are optional. Responses are learned from in the order of arrival, but for the alarm, which holds at any time. When
the correction's source changes, the distributions of all requests are computed anew.
"""

from __future__ import annotations

from ecoserve.lengths import LengthDistribution
from ecoserve.serving.core.alarm import Alarm
from ecoserve.serving.core.common_error import CommonError
from ecoserve.serving.core.correction import Correction, InOrder, Prediction
from ecoserve.serving.core.counters import Gauges
from ecoserve.serving.core.kv_policy import PoolForecast
from ecoserve.serving.core.tasks import Task


class Learner:
    """Feeds the correction and the common error.

    Args:
        correction: None: predictions are taken as they are.
        common_error: None: the forecast's rho is fixed.
        forecast: its ``rho`` is kept up to date.
    """

    def __init__(self, correction: Correction | None, common_error: CommonError | None, forecast: PoolForecast) -> None:
        self.correction = correction
        self.common_error = common_error
        self._forecast = forecast
        self._in_order = InOrder()
        self._alarm = Alarm()
        if common_error is not None:
            forecast.rho = common_error.rho

    def arrives(self, task: Task) -> None:
        """A request has arrived: its prediction is corrected."""
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
        """Put the state into the gauges."""
        if self.correction is not None:
            gauges.length_scale = self.correction.scale
            gauges.coverage_90 = self.correction.coverage_90
            gauges.length_source = self.correction.source
        gauges.common_error = self._forecast.rho
