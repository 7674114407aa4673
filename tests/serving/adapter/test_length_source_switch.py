"""When predictions are found to be impossible, the lengths of all requests change, in the real scheduler."""

from __future__ import annotations

from typing import Any

from virtual_rig import ByHand, Case, scheduler_for

from ecoserve.lengths import LengthDistribution
from ecoserve.serving.adapter.queues import CHANGED_COST, REKEYED
from ecoserve.serving.core import keys
from ecoserve.serving.simulate.engine import make_request


def crowd(predicted: int, correction: bool) -> tuple[ByHand, Any]:
    """Eighty requests that all answer with 12 tokens; ``predicted`` for all but the last, 30 for that."""
    knobs = (("correction", correction),)
    case = Case((), policy="ecoserve", blocks=60, max_model_len=640, max_num_seqs=16, knobs=knobs)
    hand = ByHand(scheduler_for(case))
    for i in range(80):
        name = f"r{i}"
        hand.answers[name] = 12
        lengths = LengthDistribution.point(predicted if i < 79 else 30)
        hand.scheduler.add_request(
            make_request(name, [100 + i] * 20, 600, 0.001 * i, {keys.LENGTHS: lengths.to_wire()})
        )
    return hand, hand.scheduler


def run_until_finished(hand: ByHand, scheduler: Any, finished: int) -> None:
    for _ in range(2000):
        if scheduler.counters.finished >= finished:
            return
        hand.step()
    raise AssertionError("no request finishes")


def test_waiting_requests_are_predicted_as_short_as_those_that_have_finished() -> None:
    hand, s = crowd(predicted=600, correction=True)
    run_until_finished(hand, s, 20)
    assert s.planner.learner.correction.source == "history"
    for _ in range(-(-80 // (REKEYED // CHANGED_COST)) + 1):
        hand.step()
    waiting = [s.task(r) for r in s.waiting]
    assert len(waiting) > 10
    assert all(t.lengths.quantile(0.5) < 100 for t in waiting)
    keys_now = [s.waiting._where[r][0][0] for r in s.waiting]
    assert keys_now == [s.waiting._key(r) for r in s.waiting] == sorted(keys_now), "a request has an old place"
    s.check()
    hand.drain()
    assert s.counters.finished == 80


def test_without_a_correction_predictions_are_taken_as_they_are() -> None:
    hand, s = crowd(predicted=600, correction=False)
    run_until_finished(hand, s, 30)
    assert {t.lengths.quantile(0.5) for t in (s.task(r) for r in s.waiting)} <= {600, 30}
    hand.drain()
