"""Which responses the real scheduler learns from, however they end, and what a step of it costs."""

from __future__ import annotations

from typing import Any

import pytest
from virtual_rig import ByHand, Case, scheduler_for
from vllm.sampling_params import RepetitionDetectionParams, SamplingParams
from vllm.v1.request import Request, RequestStatus

from ecoserve.lengths import LengthDistribution
from ecoserve.serving.adapter.queues import CHANGED_COST, HEADS, REKEYED
from ecoserve.serving.core import keys
from ecoserve.serving.core.planner import RENEWED
from ecoserve.serving.core.tasks import TaskState
from ecoserve.serving.simulate.engine import EOS

PREDICTION = LengthDistribution.lognormal(100, 0.8, 400)


def engine(**fields: Any) -> ByHand:
    known: dict[str, Any] = {"policy": "ecoserve", "blocks": 400, "max_model_len": 400, "max_num_seqs": 8}
    return ByHand(scheduler_for(Case((), **(known | fields))))


def request(name: str, resumable: bool = False, **params: Any) -> Any:
    extra = {keys.LENGTHS: PREDICTION.to_wire()}
    sampling = SamplingParams(**({"max_tokens": 300, "extra_args": extra} | params))
    sampling.update_from_generation_config({}, EOS)
    return Request(name, [7] * 8, sampling, None, arrival_time=0.0, resumable=resumable)


def until(hand: ByHand, name: str, tokens: int) -> None:
    while hand.scheduler.requests[name].num_output_tokens < tokens:
        hand.step()


def learned(hand: ByHand) -> int:
    return int(hand.scheduler.planner.learner.correction.seen)


def median(hand: ByHand) -> int:
    return int(hand.scheduler.planner.history.distribution(400).quantile(0.5))


def test_responses_that_a_stop_string_ends_are_learned_from() -> None:
    """The API server finds the stop string and aborts the request."""
    hand = engine()
    for i in range(40):
        hand.scheduler.add_request(request(f"r{i}", stop=["END"]))
        until(hand, f"r{i}", 6)
        hand.scheduler.finish_requests([f"r{i}"], RequestStatus.FINISHED_ABORTED)
        hand.step()
    hand.step()
    assert median(hand) == 6
    assert learned(hand) == 40


def test_of_responses_whose_client_leaves_the_length_is_a_lower_bound() -> None:
    hand = engine()
    for i in range(40):
        hand.scheduler.add_request(request(f"r{i}"))
        until(hand, f"r{i}", 6)
        hand.scheduler.finish_requests([f"r{i}"], RequestStatus.FINISHED_ABORTED)
        hand.step()
    hand.step()
    assert median(hand) > 50
    assert hand.scheduler.planner.learner.correction.scale == pytest.approx(1.0, rel=0.5)
    assert learned(hand) == 40


def test_requests_that_are_aborted_before_their_first_token_teach_nothing() -> None:
    hand = engine()
    for i in range(10):
        hand.scheduler.add_request(request(f"r{i}", stop=["END"]))
        hand.scheduler.finish_requests([f"r{i}"], RequestStatus.FINISHED_ABORTED)
        hand.step()
    assert len(hand.scheduler.planner.history) == learned(hand) == 0


def test_responses_that_repeat_themselves_are_learned_from() -> None:
    hand = engine()
    repeats = RepetitionDetectionParams(max_pattern_size=1, min_count=10)
    for i in range(12):
        hand.scheduler.add_request(request(f"r{i}", repetition_detection=repeats))
        hand.drain()
    hand.scheduler.add_request(request("one more"))
    hand.step()
    assert {hand.tokens[f"r{i}"] for i in range(12)} == {10}
    assert median(hand) == 10
    assert learned(hand) == 12


def test_responses_at_their_limit_tell_the_correction_their_length_and_the_history_a_bound() -> None:
    hand = engine()
    for i in range(12):
        hand.scheduler.add_request(request(f"r{i}", max_tokens=5))
        hand.drain()
    hand.scheduler.add_request(request("one more"))
    hand.step()
    assert hand.scheduler.planner.history.distribution(5).quantile(0.05) == 5
    assert median(hand) > 20
    assert learned(hand) == 12


# -- streaming sessions ------------------------------------------------------------------------------------


def session(hand: ByHand, name: str = "s") -> None:
    """A session whose first turn has ended after 4 tokens, and which waits for its client."""
    hand.answers[name] = 4
    hand.scheduler.add_request(request(name, resumable=True))
    for _ in range(6):
        hand.step()
    assert hand.scheduler.requests[name].status is RequestStatus.WAITING_FOR_STREAMING_REQ


def test_an_idle_session_holds_up_no_learning() -> None:
    hand = engine()
    session(hand)
    for i in range(20):
        hand.answers[f"r{i}"] = 5
        hand.scheduler.add_request(request(f"r{i}"))
        for _ in range(7):
            hand.step()
    assert learned(hand) == 21


def test_every_turn_of_a_session_is_in_the_history_once() -> None:
    hand = engine()
    session(hand)
    history = hand.scheduler.planner.history
    assert len(history) == 1
    for turn in (2, 3):
        hand.scheduler.add_request(request("s", resumable=True))
        for _ in range(6):
            hand.step()
        assert len(history) == turn
    hand.scheduler.finish_requests("s", RequestStatus.FINISHED_ABORTED)
    assert len(history) == 3
    assert learned(hand) == 1, "the later turns came without a prediction"
    assert not hand.scheduler.planner._between_turns


# -- a change of the correction's source -------------------------------------------------------------------


def test_a_change_of_source_is_applied_to_a_few_requests_a_step_and_to_all_in_the_end() -> None:
    hand = engine(max_num_seqs=24, blocks=300)
    s = hand.scheduler
    for i in range(300):
        s.add_request(request(f"r{i}"))
    for _ in range(5):
        hand.step()
    learner = s.planner.learner
    applied: list[str] = []
    lengths_now = learner.lengths_now

    def counted(task: Any, history: LengthDistribution) -> LengthDistribution | None:
        applied.append(task.request_id)
        return lengths_now(task, history)

    learner.lengths_now = counted
    learner.correction.source = "history"
    learner.version += 1
    most = 0
    for _ in range(60):
        before = len(applied)
        hand.step()
        most = max(most, len(applied) - before)
    assert most <= REKEYED // CHANGED_COST + RENEWED + HEADS, "none starts in these steps, so one head is looked for"
    tasks = s.planner.ledger.tasks.values()
    assert sum(t.state is TaskState.WAITING for t in tasks) > 200
    assert not [t.request_id for t in tasks if learner.is_stale(t)]
    assert len(applied) == len(set(applied)) == 300
    keys_now = [s.waiting._where[r][0][0] for r in s.waiting]
    assert keys_now == [s.waiting._key(r) for r in s.waiting] == sorted(keys_now)
    s.check()
