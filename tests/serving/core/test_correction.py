"""What is learned from finished responses, against predictors that are wrong in known ways."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from core_rig import a_task

from ecoserve.lengths import LengthDistribution
from ecoserve.serving.core.learning import WARM_UP, CommonError, Correction, InOrder, pinball
from ecoserve.serving.core.tasks import Prediction, Task

SIGMA = 0.5
HISTORY = LengthDistribution.lognormal(150, 1.0, 4096)


def taught(predict: Callable[[float, np.random.Generator], LengthDistribution], n: int = 1500) -> Correction:
    """A correction that has seen ``n`` responses: medians log-normal around 150, lengths around each median."""
    rng = np.random.default_rng(1)
    correction = Correction()
    for _ in range(n):
        median = 150 * math.exp(rng.normal(0, 0.9))
        length = max(1, round(median * math.exp(rng.normal(0, SIGMA))))
        prediction = Prediction(predict(median, rng), HISTORY, length=length, gone=True)
        correction.apply(prediction)
        correction.learn(prediction)
    return correction


def good(median: float, rng: np.random.Generator) -> LengthDistribution:
    return LengthDistribution.lognormal(median, SIGMA, 8192)


def test_a_good_prediction_is_left_alone() -> None:
    correction = taught(good)
    assert correction.source == "predicted"
    assert correction.scale == pytest.approx(1.0, abs=0.2)
    assert correction.coverage_90 == pytest.approx(0.9, abs=0.05)


def test_a_factor_is_found_and_used() -> None:
    correction = taught(lambda median, rng: good(median / 4, rng))
    assert correction.source == "scaled"
    assert correction.scale == pytest.approx(4.0, rel=0.25)


@pytest.mark.parametrize(
    "predict",
    [
        lambda median, rng: LengthDistribution.point(1),
        lambda median, rng: LengthDistribution.point(32768),
        lambda median, rng: LengthDistribution.point(int(rng.integers(1, 4096))),
        lambda median, rng: LengthDistribution.point(max(1, round(150 * 150 / median))),
    ],
    ids=["all 1", "all 32768", "random", "inverted"],
)
def test_what_is_worthless_is_not_used(
    predict: Callable[[float, np.random.Generator], LengthDistribution],
) -> None:
    correction = taught(predict)
    prediction = Prediction(predict(150, np.random.default_rng(0)), HISTORY)
    losses = [pinball(correction.apply(prediction), length) for length in (50, 150, 450)]
    by_history = [pinball(HISTORY, length) for length in (50, 150, 450)]
    assert correction.source != "predicted"
    assert sum(losses) < 1.35 * sum(by_history)


def test_overconfidence_is_widened_until_nine_of_ten_are_covered() -> None:
    correction = taught(lambda median, rng: LengthDistribution.lognormal(median, SIGMA / 2, 8192), n=3000)
    assert correction.coverage_90 == pytest.approx(0.9, abs=0.06)
    narrow = LengthDistribution.lognormal(200, SIGMA / 2, 8192)
    assert correction.apply(Prediction(narrow, HISTORY)).quantile(0.9) > 1.05 * narrow.quantile(0.9)


def test_the_truth_is_left_as_it_is() -> None:
    rng = np.random.default_rng(0)
    correction = Correction()
    for n in rng.integers(1, 500, 300):
        correction.learn(Prediction(LengthDistribution.point(int(n)), HISTORY, length=int(n), gone=True))
    point = LengthDistribution.point(77)
    assert correction.source == "predicted"
    assert correction.apply(Prediction(point, HISTORY)) == point


def test_nothing_is_corrected_before_enough_was_seen() -> None:
    correction = taught(lambda median, rng: LengthDistribution.lognormal(median / 8, SIGMA, 8192), n=WARM_UP - 1)
    lengths = LengthDistribution.lognormal(20, SIGMA, 8192)
    assert correction.apply(Prediction(lengths, HISTORY)) is lengths


def test_the_scale_stays_within_its_bound() -> None:
    correction = taught(lambda median, rng: good(median / 1000 + 1, rng), n=3000)
    assert 1 / 16 <= correction.scale <= 16.0


def followed(order: InOrder, names: str) -> dict[str, Task]:
    """Tasks of these names, which start in this order."""
    tasks = {name: a_task(name, prediction=Prediction(LengthDistribution.point(9), HISTORY)) for name in names}
    assert all(order.started(task) for task in tasks.values())
    return tasks


def lengths(predictions: list[Prediction]) -> list[tuple[int | None, bool]]:
    return [(p.length, p.censored) for p in predictions]


def test_responses_are_learned_from_in_the_order_in_which_they_started() -> None:
    order = InOrder()
    followed(order, "abcd")
    order.over("c", 3, ended=True)
    order.over("b", 0, ended=False)
    assert order.take(8) == []
    order.over("a", 1, ended=True)
    order.over("unknown", 5, ended=True)
    assert lengths(order.take(8)) == [(1, False), (3, False)]
    assert len(order) == 1


def test_an_aborted_response_is_censored_at_its_length() -> None:
    order = InOrder()
    followed(order, "a")
    order.over("a", 40, ended=False)
    assert lengths(order.take(8)) == [(40, True)]


def test_one_that_takes_very_long_is_censored_when_many_wait_for_it() -> None:
    order = InOrder(patience=2)
    tasks = followed(order, "abcde")
    tasks["a"].generated = 700
    for name in "bc":
        order.over(name, 2, ended=True)
    assert order.take(8) == []
    order.over("d", 2, ended=True)
    assert lengths(order.take(8)) == [(700, True), (2, False), (2, False), (2, False)]
    order.over("a", 900, ended=True)
    assert lengths(order.take(8)) == []
    assert len(order) == 1


def test_a_step_learns_from_a_bounded_number_and_the_rest_waits_in_order() -> None:
    order = InOrder()
    names = "abcdefghij"
    followed(order, names)
    for at, name in reversed(list(enumerate(names, 1))):
        order.over(name, at, ended=True)
    assert [len(order.take(4)) for _ in range(4)] == [4, 4, 2, 0]


def test_a_bounded_number_is_followed_whatever_their_length() -> None:
    order = InOrder(most=3)
    followed(order, "abc")
    late = a_task("late", prediction=Prediction(LengthDistribution.point(9), HISTORY))
    assert not order.started(late)
    order.over("a", 3, ended=True)
    order.take(8)
    assert order.started(late)
    assert not order.started(late), "followed once"


@pytest.mark.parametrize("cut", [0.0, 0.5, 1.0])
def test_what_is_cut_off_teaches_no_short_lengths(cut: float) -> None:
    """Many responses are cut off, whatever their length: the scale of predictions that are right stays 1."""
    rng = np.random.default_rng(3)
    correction = Correction()
    for _ in range(3000):
        median = 150 * math.exp(rng.normal(0, 0.9))
        length = max(1, round(median * math.exp(rng.normal(0, SIGMA))))
        left_at = round(150 * math.exp(rng.normal(0, 0.9))) if rng.random() < cut else length
        end, seen = left_at >= length, max(1, min(length, left_at))
        predicted = LengthDistribution.lognormal(median, SIGMA, 8192)
        correction.learn(Prediction(predicted, HISTORY, length=seen, censored=not end, gone=True))
    assert correction.source == "predicted"
    assert correction.scale == pytest.approx(1.0, abs=0.2)


def places(rho: float, n: int = 4000) -> list[float]:
    """Places in their distributions of responses that have a share ``rho`` of their error in common with the last."""
    rng = np.random.default_rng(2)
    score, out = 0.0, []
    for _ in range(n):
        score = rho * score + math.sqrt(1 - rho * rho) * rng.normal()
        out.append(0.5 * math.erfc(-score / math.sqrt(2)))
    return out


@pytest.mark.parametrize("rho", [0.0, 0.3])
def test_common_error_is_measured(rho: float) -> None:
    error = CommonError()
    for i, place in enumerate(places(rho)):
        error.learn(i, place)
    assert error.rho == pytest.approx(rho, abs=0.08)


def test_common_error_is_a_share_whatever_happens() -> None:
    error = CommonError()
    assert error.rho == pytest.approx(0.02)
    for i in range(3000):
        error.learn(i, 1.0)
    assert error.rho == 0.5
    for i in range(3000):
        error.learn(i, float(i % 2))
    assert error.rho == 0.0
