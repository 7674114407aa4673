"""However many responses are over or open, a step learns from a few, and all of them are learned from."""

from __future__ import annotations

import math

import numpy as np
import pytest
from core_rig import a_task

from ecoserve.lengths import LengthDistribution
from ecoserve.serving.core.learning import FOLLOWED, LEARNED, PATIENCE, CommonError, Correction, Learner
from ecoserve.serving.core.tasks import Prediction, Task

HISTORY = LengthDistribution.lognormal(150, 1.0, 4096)


class Rho:
    rho = 0.0


class Rig:
    """A learner, and the lengths that it has learned from."""

    def __init__(self) -> None:
        self.correction = Correction()
        self.learner = Learner(self.correction, CommonError(), Rho())  # type: ignore[arg-type]
        self.learned: list[int] = []
        learn = self.correction.learn

        def noted(prediction: Prediction) -> None:
            assert prediction.length is not None
            self.learned.append(prediction.length)
            learn(prediction)

        self.correction.learn = noted  # type: ignore[method-assign]

    def arrives(self, name: str, predicted: LengthDistribution = HISTORY) -> Task:
        task = a_task(name, lengths=predicted, prediction=Prediction(predicted, HISTORY))
        self.learner.arrives(task)
        return task

    def step(self) -> int:
        before = len(self.learned)
        self.learner.step()
        return len(self.learned) - before


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_one_long_response_releases_what_waits_for_it_a_few_a_step(rig: Rig) -> None:
    tasks = [rig.arrives(f"t{i}") for i in range(PATIENCE)]
    for task in tasks:
        rig.learner.starts(task)
    for task in tasks[1:]:
        rig.learner.over(task, 200, ended=True)
        assert rig.step() == 0
    rig.learner.over(tasks[0], 4000, ended=True)
    steps = [rig.step() for _ in range(PATIENCE)]
    assert max(steps) == LEARNED
    assert rig.learned == [4000, *[200] * (PATIENCE - 1)]


def test_with_thousands_that_wait_all_that_finish_are_learned_from(rig: Rig) -> None:
    """Waiting requests, and requests that are aborted before they start, do not count as open."""
    tasks = [rig.arrives(f"t{i}") for i in range(3 * FOLLOWED)]
    for task in tasks[::2]:
        rig.learner.starts(task)
        rig.learner.over(task, 100, ended=True)
        rig.step()
    assert len(rig.learned) == len(tasks) // 2


def test_a_response_that_never_ends_delays_learning_and_does_not_stop_it(rig: Rig) -> None:
    endless = rig.arrives("endless")
    rig.learner.starts(endless)
    endless.generated = 30_000
    for i in range(3 * PATIENCE):
        task = rig.arrives(f"t{i}")
        rig.learner.starts(task)
        rig.learner.over(task, 100, ended=True)
        rig.step()
    assert len(rig.learned) > 2 * PATIENCE
    assert rig.learned[0] == 30_000
    assert endless.prediction is not None
    assert endless.prediction.censored, "it is longer than that"


def test_more_that_start_than_a_step_learns_from_are_sampled(rig: Rig) -> None:
    for i in range(2000):
        for k in range(3 * LEARNED):
            task = rig.arrives(f"t{i}-{k}")
            rig.learner.starts(task)
            rig.learner.over(task, 100, ended=True)
        assert rig.step() <= LEARNED
        assert len(rig.learner._in_order) <= FOLLOWED
    assert len(rig.learned) > 1900 * LEARNED


@pytest.mark.parametrize("ratio", [1.0, 3.0])
def test_a_burst_of_which_the_short_end_first_gives_the_right_scale(rig: Rig, ratio: float) -> None:
    """1,500 arrive at once; 64 run at a time, a token a step. Predictions are too short by ``ratio``."""
    rng = np.random.default_rng(5)
    waiting = []
    for i in range(1500):
        median = 60 * math.exp(rng.normal(0, 0.7))
        length = max(1, round(ratio * median * math.exp(rng.normal(0, 0.5))))
        waiting.append((rig.arrives(f"t{i}", LengthDistribution.lognormal(median, 0.5, 4096)), length))
    running: list[tuple[Task, int]] = []
    seen_early = None
    while waiting or running:
        while waiting and len(running) < 64:
            running.append(waiting.pop())
            rig.learner.starts(running[-1][0])
        for task, length in list(running):
            task.generated += 1
            if task.generated == length:
                running.remove((task, length))
                rig.learner.over(task, length, ended=True)
        rig.step()
        if seen_early is None and len(rig.learned) >= 60:
            seen_early = rig.correction.scale
    while rig.step():
        pass
    assert len(rig.learned) == 1500
    assert seen_early == pytest.approx(ratio, rel=0.3)
    assert rig.correction.scale == pytest.approx(ratio, rel=0.2)
