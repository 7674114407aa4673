"""What is learned while serving, and whether it is used: no threads, no files, no clock.

A request becomes a :class:`Note`: its features, and what the model and the history of lengths say. When its response
ends, the two are compared with its length, and features and length become a row to learn from. These comparisons are of
answers that were predicted before they were known, so they say how good the model is. The model's predictions are
used while their pinball loss is below that of history on the newest answers; else the scheduler's history serves.

An alarm is raised where the newest lengths do not lie in their distributions as they should: the model is not used then
until one that has learned from newer answers is better than history again.
"""

from __future__ import annotations

import math
import random
import threading
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from ecoserve.lengths import LengthDistribution
from ecoserve.predictor.adaptation import AdaptedPredictor, base_features
from ecoserve.predictor.base import LengthPredictor
from ecoserve.predictor.linear import PARAMETERS, LinearPredictor, Row, rows_of
from ecoserve.predictor.linear_fitting import HISTORY, MIN_ROWS, Rows
from ecoserve.predictor.text import Request, RequestView, read_request
from ecoserve.serving.core.history import LengthHistory

#: Answers kept to learn from: by the linear model, and to adapt a predictor (whose features cost more to fit).
MOST_ROWS: Final = 10_000
MOST_ADAPTING: Final = 2_000
#: Rows since a change of level that make the older ones superfluous.
ENOUGH: Final = 1_000
#: Answers over which the model is compared with history, and of which figures are published.
COMPARED: Final = 200
SCORED: Final = 500
#: Share of the true order's worth below which predictions buy less than history, which ranks requests by what they have
#: generated (benchmarks/studies/online_learning.py); how far it may fall again.
LEAST_ORDER: Final = 0.62
_GIVE: Final = 0.05
#: Answers over which the alarm looks, and the standard errors that raise it.
ALARM_ROWS: Final = 60
ALARM: Final = 5.0
#: Longest response that the history of lengths reckons with, tokens.
_UPPER: Final = 2**17
_LEVELS: Final = tuple(i / 10 for i in range(1, 10))


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """A row to learn from: ``length`` in tokens, and whether the response ended there by itself."""

    row: Row
    length: int
    ended: bool


@dataclass(frozen=True, slots=True, eq=False)
class Note:
    """What is kept of a request until its response ends.

    Attributes:
        lengths: the prediction that is used; None: the scheduler's history serves.
        predicted: what the model says, used or not; None while there is no model. history: what history says.
    """

    row: Row
    lengths: LengthDistribution | None
    predicted: LengthDistribution | None
    history: LengthDistribution


class OnlineModel:
    """The newest answers, the model that was learned from them, and how good it is. Used from several threads.

    Args:
        base: a predictor to adapt; without one, a linear model is learned.
        start: the model learned last time, or None. answers: those that were kept.
    """

    def __init__(
        self,
        base: LengthPredictor | None = None,
        start: LinearPredictor | AdaptedPredictor | None = None,
        answers: Iterable[Answer] = (),
    ) -> None:
        self.base = base
        self.model = start
        self.answers: deque[Answer] = deque(answers, maxlen=MOST_ROWS if base is None else MOST_ADAPTING)
        #: answers that were ever added, and those that the model has learned from
        self.added = len(self.answers)
        self.alarms = 0
        #: :attr:`added` at an alarm that waits for a model which has learned since; None: there is none
        self._alarmed: int | None = None
        self.serving = base is not None or start is not None
        self._lock = threading.Lock()
        self._history = LengthHistory(HISTORY, _UPPER)
        for answer in list(self.answers)[-HISTORY:]:
            self._history.record(answer.length, answer.ended)
        #: of the model; one that was learned last time counts until the first fit
        self._order = 1.0
        #: loss of history minus the model's; (median, length, place in the distribution) of each scored answer
        self._gains: deque[float] = deque(maxlen=COMPARED)
        self._scores: deque[tuple[float, float, float]] = deque(maxlen=SCORED)
        self._places: deque[float] = deque(maxlen=ALARM_ROWS)
        self._draw = random.Random(0)

    # -- requests -----------------------------------------------------------------------------------------------

    def predict(self, requests: Sequence[Request], /) -> list[Note]:
        """Notes on ``n`` requests, in their order."""
        with self._lock:
            model, serving, history = self.model, self.serving, self._history.distribution(_UPPER)
        parameters = PARAMETERS if self.base is None else self.base.config.parameters
        rows, predicted = self._read([read_request(r, parameters) for r in requests], model)
        return [
            Note(row, lengths if serving else None, lengths, history)
            for row, lengths in zip(rows, predicted, strict=True)
        ]

    def _read(
        self, views: list[RequestView], model: LinearPredictor | AdaptedPredictor | None
    ) -> tuple[list[Row], Sequence[LengthDistribution | None]]:
        if self.base is None:
            rows = rows_of(views)
            if not isinstance(model, LinearPredictor):
                return rows, [None] * len(rows)
            return rows, _distributions(model, model.logits_of(rows))
        features, cdf = base_features(self.base, views)
        none = np.zeros(0, dtype=np.uint16), np.zeros(0, dtype=np.uint8)
        rows = [Row(numbers, *none) for numbers in features.astype(np.float32)]
        if isinstance(model, AdaptedPredictor):
            return rows, _distributions(model, model.logits_of(features, cdf))
        bins = self.base.config.bins
        return rows, [bins.distribution(p) for p in np.diff(cdf, axis=1)]

    # -- responses ----------------------------------------------------------------------------------------------

    def observe(self, note: Note, length: int, *, ended: bool, limit: int | None = None) -> bool:
        """A response is over after ``length`` tokens; returns whether that raised the alarm.

        ``ended``: by itself; otherwise it would have been longer. ``limit``: the request's own, in tokens.
        """
        with self._lock:
            self.answers.append(Answer(note.row, length, ended))
            self.added += 1
            self._history.record(length, ended)
            # Where a limit cut the response off, its distribution was closed there, and is compared as such.
            if note.predicted is None or not (ended or length == limit):
                return False
            predicted, history = note.predicted, note.history
            if limit is not None:
                predicted, history = predicted.closed_at(limit), history.closed_at(limit)
            self._gains.append(_pinball(history, length) - _pinball(predicted, length))
            before, after = 1.0 - predicted.survival(length - 1), 1.0 - predicted.survival(length)
            place = before + self._draw.random() * (after - before)
            self._scores.append((predicted.quantile(0.5), length, place))
            self._places.append(place)
            return self._judge()

    def _judge(self) -> bool:
        if self._alarmed is None and len(self._places) == ALARM_ROWS and _off(self._places):
            self.alarms += 1
            self._alarmed, self.serving = self.added, False
            self._gains.clear()
            return True
        if self._alarmed is None and len(self._gains) >= MIN_ROWS:
            gain, error = _mean(self._gains)
            newest, newest_error = _mean(list(self._gains)[-MIN_ROWS:])
            orders = self._order > LEAST_ORDER - (_GIVE if self.serving else 0.0)
            self.serving = orders and gain > (0.0 if self.serving else error) and newest > -newest_error
        return False

    # -- learning -----------------------------------------------------------------------------------------------

    @property
    def alarmed(self) -> bool:
        """Whether an alarm waits for a model that has learned since."""
        return self._alarmed is not None

    def newest(self) -> tuple[list[Answer], list[tuple[float, float, float]], int]:
        """The answers to learn from, the scores, and :attr:`added`."""
        with self._lock:
            return list(self.answers), list(self._scores), self.added

    def learned(
        self,
        model: LinearPredictor | AdaptedPredictor,
        gains: Sequence[float],
        order: float,
        since: int,
        learned_from: int,
    ) -> None:
        """Take a new model.

        ``gains``: of the newest answers by models that had not learned from them; they count where there are no
        comparisons yet, and after an alarm. ``order``: :func:`~ecoserve.predictor.linear_fitting.order_share` of such
        predictions. ``since``: rows since the last change of level, of those that it learned from, of which the last
        was number ``learned_from`` (:attr:`added`).
        """
        with self._lock:
            self.model, self._order = model, order
            if self._alarmed is not None and learned_from >= self._alarmed:
                since_alarm = learned_from - self._alarmed + ALARM_ROWS // 2
                self._alarmed = None
                self._places.clear()
                self._gains.clear()
                self._gains.extend(gains[-min(since, since_alarm) :])
            elif not self._gains:
                self._gains.extend(gains)
            if since >= ENOUGH:
                keep = since + self.added - learned_from
                while len(self.answers) > keep:
                    self.answers.popleft()
            self._judge()

    def gain(self) -> float | None:
        """Pinball loss of history minus the model's, tokens, over the newest answers; None without any."""
        with self._lock:
            return _mean(self._gains)[0] if self._gains else None


def rows_from(answers: Sequence[Answer]) -> Rows:
    """``n >= 1`` answers as arrays."""
    rows = [a.row for a in answers]
    return Rows(
        np.stack([r.dense for r in rows]),
        np.concatenate([[0], np.cumsum([len(r.places) for r in rows])]).astype(np.int64),
        np.concatenate([r.places for r in rows]),
        np.concatenate([r.times for r in rows]),
        np.array([a.length for a in answers], dtype=np.int64),
        np.array([a.ended for a in answers], dtype=np.bool_),
    )


def answers_from(rows: Rows) -> list[Answer]:
    cuts = rows.starts[1:-1]
    parts = zip(rows.dense, np.split(rows.places, cuts), np.split(rows.times, cuts), strict=True)
    return [
        Answer(Row(*part), int(length), bool(ended))
        for part, length, ended in zip(parts, rows.lengths, rows.ended, strict=True)
    ]


def _distributions(model: LengthPredictor, logits: np.ndarray) -> list[LengthDistribution]:
    bins = model.config.bins
    return [bins.distribution(p) for p in model.calibration.probabilities(logits)]


def _pinball(distribution: LengthDistribution, length: int) -> float:
    """Mean pinball loss over the deciles, tokens."""
    off = [(q, length - distribution.quantile(q)) for q in _LEVELS]
    return sum(max(q * d, (q - 1.0) * d) for q, d in off) / len(off)


def _mean(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error."""
    x = np.asarray(values)
    return float(x.mean()), float(x.std()) / math.sqrt(len(x))


def _off(places: Sequence[float]) -> bool:
    """Whether places in distributions are not spread evenly over 0 to 1: their mean, or how far from the middle."""
    x = np.asarray(places) - 0.5
    root = math.sqrt(len(x))
    return abs(float(x.mean())) * root > ALARM * math.sqrt(1 / 12) or (
        abs(float(np.abs(x).mean()) - 0.25) * root > ALARM * math.sqrt(1 / 48)
    )
