"""The alarm: silent for predictions that are right, roughly right or too short, in any order of finishing."""

from __future__ import annotations

import numpy as np
import pytest
from core_rig import a_task

from ecoserve.lengths import LengthDistribution
from ecoserve.serving.core.learning import WINDOW, Alarm, Correction, Learner
from ecoserve.serving.core.tasks import Prediction


class Rho:
    rho = 0.0


def rings(sigma_said: float, factor: float, count: int = 3000, seed: int = 0) -> bool:
    """Lengths with a log-standard deviation of 0.6 around what is said over ``factor``; the short ones end first."""
    rng = np.random.default_rng(seed)
    medians = 150 * np.exp(rng.normal(0, 0.9, count))
    lengths = np.maximum(1, medians * np.exp(rng.normal(0, 0.6, count))).astype(int)
    said = [LengthDistribution.lognormal(float(m) * factor, sigma_said, 65536) for m in medians]
    alarm = Alarm()
    rang = False
    for start in range(0, count, 300):  # bursts: all of one arrive, then all end, shortest first
        some = range(start, min(count, start + 300))
        for _ in some:
            alarm.began()
        for i in sorted(some, key=lambda i: lengths[i]):
            rang |= alarm.ended(said[i], int(lengths[i]))
    return rang


@pytest.mark.parametrize("seed", range(5))
def test_right_predictions_raise_no_alarm_in_any_order_of_finishing(seed: int) -> None:
    assert not rings(0.6, 1.0, seed=seed)


def test_what_is_roughly_right_or_too_short_is_not_accused() -> None:
    assert not rings(0.5, 1.0), "a little too sure"
    assert not rings(0.6, 1.5), "half as long again"
    assert not rings(0.6, 0.2), "far too short: that is seen otherwise"


def test_what_is_far_too_long_is_found_out() -> None:
    assert rings(0.6, 8.0)
    assert rings(0.0, 30.0)


def test_it_is_found_out_early() -> None:
    alarm = Alarm()
    said = LengthDistribution.point(512)
    for _ in range(100):
        alarm.began()
    ended = 0
    while not alarm.ended(said, 20):
        ended += 1
    assert ended < 25, "of a hundred that came, not a quarter had to end"


def test_a_long_past_hides_nothing() -> None:
    alarm = Alarm()
    for _ in range(100 * WINDOW):
        alarm.began()
    said = LengthDistribution.point(512)
    assert any(alarm.ended(said, 20) for _ in range(WINDOW))


def test_a_learner_that_is_alarmed_uses_history_and_says_so_once() -> None:
    learner = Learner(Correction(), None, Rho())
    history = LengthDistribution.lognormal(60, 0.8, 512)
    tasks = []
    for i in range(60):
        predicted = LengthDistribution.point(512)
        task = a_task(f"t{i}", lengths=predicted, prediction=Prediction(predicted, history))
        learner.arrives(task)
        tasks.append(task)
    assert {t.lengths.quantile(0.5) for t in tasks} == {512}
    for task in tasks:
        learner.starts(task)
    for task in tasks[1:41]:  # the first runs on: nothing is learned in order yet
        learner.over(task, 20, ended=True)
        learner.step()
    assert learner.version == 1
    assert all(learner.is_stale(t) for t in tasks)
    assert learner.correction is not None
    assert learner.correction.source == "history"
    assert learner.lengths_now(tasks[50], history) == history
    assert not learner.is_stale(tasks[50])
    fresh = a_task(
        "new", lengths=LengthDistribution.point(512), prediction=Prediction(LengthDistribution.point(512), history)
    )
    learner.arrives(fresh)
    assert fresh.lengths == history


def test_without_a_correction_no_length_changes() -> None:
    learner = Learner(None, None, Rho())
    predicted = LengthDistribution.point(512)
    task = a_task("t", lengths=predicted, prediction=Prediction(predicted, predicted))
    learner.arrives(task)
    for _ in range(100):
        learner.over(task, 20, ended=True)
        learner.step()
    assert learner.version == 0
    assert not learner.is_stale(task)
    assert learner.lengths_now(task, predicted) is None
