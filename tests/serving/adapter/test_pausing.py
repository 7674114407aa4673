"""The rules of pausing with KV kept, each in the situation it is for (see ``ecoserve.serving.adapter.pausing``)."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest
from virtual_rig import ByHand, Case, scheduler_for
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.request import RequestStatus

from ecoserve.serving.core.tasks import TaskState
from ecoserve.serving.simulate.engine import make_request


def engine(answers: dict[str, int] | None = None, prompt: int = 20, **shape: Any) -> ByHand:
    """A scheduler with one request for each name in ``answers``, prompts unlike."""
    case = Case((), max_num_batched_tokens=256, **{"depth": 2, **shape})
    hand = ByHand(scheduler_for(case), answers)
    for i, name in enumerate(answers or {}):
        ids = [100 + i] * prompt
        hashed = case.block_size if case.prefix_caching else None
        hand.scheduler.add_request(make_request(name, ids, 100, float(i), block_size=hashed))
    return hand


def pause(hand: ByHand, name: str) -> Any:
    """Pause a request as a plan does."""
    request = hand.scheduler.requests[name]
    hand.scheduler.pause(request)
    return request


class AfterPlan:
    """Does something once, once the next plan is carried out: within one ``schedule()``, before vLLM composes."""

    def __init__(self, scheduler: Any, act: Any) -> None:
        self._run = scheduler._carry_out
        self._scheduler = scheduler
        self._act = act
        scheduler._carry_out = self

    def __call__(self, plan: Any) -> None:
        self._scheduler._carry_out = self._run
        self._run(plan)
        self._act()


@pytest.fixture(params=[1, 2], ids=["v1", "v2"])
def runner(request: pytest.FixtureRequest) -> int:
    return int(request.param)


def test_a_paused_request_keeps_its_kv_and_goes_on_where_it_was(runner: int) -> None:
    hand = engine({"a": 30, "b": 30}, runner=runner)
    for _ in range(5):
        hand.step()
    s = hand.scheduler
    blocks = list(s.kv_layout.ids()["a"])
    AfterPlan(s, lambda: pause(hand, "a"))
    assert set(hand.step()) == {"b"}
    assert s.kv_layout.ids()["a"] == blocks
    assert asdict(s.counters) | {"pauses": 1, "resumes": 0, "preemptions": 0} == asdict(s.counters)
    assert s.task(s.requests["a"]).state is TaskState.PAUSED
    assert hand.step() == {"a": 1, "b": 1}
    assert s.counters.resumes == 1
    hand.drain()
    assert hand.tokens == {"a": 30, "b": 30}
    assert s.counters.recomputed_tokens == 0


# -- (a) hidden until nothing of it is in flight -----------------------------------------------------------


def test_a_it_is_hidden_while_its_output_is_in_flight(runner: int) -> None:
    hand = engine({"a": 30, "b": 30}, runner=runner)
    hand.step()
    hand.schedule()
    hand.schedule()  # two steps of it are in flight
    s = hand.scheduler
    request = pause(hand, "a")
    for _ in range(3):  # rule (b) is long satisfied
        assert set(hand.schedule()) <= {"b"}
        assert not s.kv_holding_waiting
    assert request.num_in_flight_tokens == 2
    hand.finish()
    assert not s.may_resume(request)
    assert "a" not in hand.schedule()
    hand.finish()
    assert request.num_in_flight_tokens == 0
    assert hand.schedule()["a"] == 1
    hand.drain()
    assert hand.tokens == {"a": 30, "b": 30}


@pytest.mark.parametrize("ending", ["answer", "abort"])
def test_a_its_last_output_may_come_while_it_is_paused(runner: int, ending: str) -> None:
    hand = engine({"a": 3, "b": 30}, runner=runner)
    hand.step()
    hand.schedule()
    hand.schedule()
    pause(hand, "a")
    s = hand.scheduler
    hand.schedule()
    hand.finish()
    assert hand.tokens["a"] == 2
    if ending == "answer":
        hand.finish()
        assert hand.tokens["a"] == 3
    else:
        assert [r.request_id for r in s.finish_requests("a", RequestStatus.FINISHED_ABORTED)] == ["a"]
        hand.finish()
        assert hand.tokens["a"] == 2
    assert "a" not in s.requests
    assert not s.paused_at
    assert len(s.kv_holding_waiting) == 0
    assert "a" not in s.kv_layout.ids()
    s.check()
    hand.drain()
    assert s.free_blocks == s.usable_blocks


# -- (b) never resumed in the schedule() that paused it ---------------------------------------------------------


def test_b_it_does_not_return_in_the_schedule_that_paused_it(runner: int) -> None:
    hand = engine({"a": 30, "b": 30}, runner=runner)
    for _ in range(3):
        hand.step()
    s = hand.scheduler
    AfterPlan(s, lambda: pause(hand, "a"))
    # Nothing is in flight and there is room: only the rule keeps it out.
    assert set(hand.step()) == {"b"}
    assert set(hand.step()) == {"a", "b"}


def test_b_not_even_when_nothing_else_runs(runner: int) -> None:
    hand = engine({"a": 30}, runner=runner)
    hand.step()
    AfterPlan(hand.scheduler, lambda: pause(hand, "a"))
    assert hand.step() == {}
    assert hand.step() == {"a": 1}
    hand.drain()
    assert hand.tokens == {"a": 30}


# -- (c) runner V2 frees the slot ---------------------------------------------------------------------


def test_c_v2_frees_the_slot_and_gets_it_back_as_new() -> None:
    hand = engine({"a": 30, "b": 30}, runner=2)
    for _ in range(3):
        hand.step()
    s = hand.scheduler
    AfterPlan(s, lambda: pause(hand, "a"))
    hand.step()
    assert hand.last.preempted_req_ids == {"a"}
    hand.schedule()
    assert hand.last.preempted_req_ids == set()
    (back,) = hand.last.scheduled_new_reqs
    request = s.requests["a"]
    assert back.req_id == "a"
    assert back.block_ids[0] == s.kv_layout.ids()["a"]
    assert list(back.prefill_token_ids) == list(request.all_token_ids)
    assert back.num_computed_tokens == len(back.prefill_token_ids) - 1


def test_c_v1_gets_no_message_and_tokens_and_blocks_back() -> None:
    hand = engine({"a": 30, "b": 30}, runner=1)
    for _ in range(3):
        hand.step()
    AfterPlan(hand.scheduler, lambda: pause(hand, "a"))
    hand.step()
    assert not hand.last.preempted_req_ids
    hand.step()
    cached = hand.last.scheduled_cached_reqs
    at = cached.req_ids.index("a")
    assert cached.resumed_req_ids == {"a"}
    assert cached.new_block_ids[at][0] == hand.scheduler.kv_layout.ids()["a"]
    assert len(cached.all_token_ids["a"]) == cached.num_computed_tokens[at] + 1


# -- (d) its status ----------------------------------------------------------------------------------------------


def test_d_vllm_sees_a_preempted_request_that_holds_kv() -> None:
    hand = engine({"a": 30, "b": 30})
    for _ in range(3):
        hand.step()
    request = pause(hand, "a")
    s = hand.scheduler
    assert request.status is RequestStatus.PREEMPTED
    assert s._holds_kv_blocks(request)
    assert request in s.kv_holding_waiting
    assert request not in s.waiting
    assert request not in s.running
    assert s.get_request_counts() == (1, 1)
    assert request.num_preemptions == 0


def test_d_only_a_running_gt_can_be_paused() -> None:
    hand = engine({"a": 30})
    s = hand.scheduler
    request = s.requests["a"]
    with pytest.raises(ValueError, match="request a is not generating"):
        s.pause(request)
    long = engine({"long": 30}, prompt=300, blocks=32, max_num_seqs=4, max_model_len=400)
    long.step()
    prefilling = long.scheduler.requests["long"]
    assert prefilling.is_prefill_chunk
    with pytest.raises(ValueError, match="request long is not generating"):
        long.scheduler.pause(prefilling)


# -- (e) dropping what a paused request holds ----------------------------------------------------------------------


@pytest.mark.parametrize("in_flight", [0, 1])
def test_e_a_paused_request_can_be_dropped_and_starts_anew(runner: int, in_flight: int) -> None:
    hand = engine({"a": 30, "b": 30}, runner=runner)
    for _ in range(4):
        hand.step()
    for _ in range(in_flight):
        hand.schedule()
    s = hand.scheduler
    request = pause(hand, "a")
    s.preempt(request)
    assert request.status is RequestStatus.PREEMPTED
    assert "a" not in s.kv_layout.ids()
    assert not s.paused_at
    assert request in s.waiting
    assert request not in s.kv_holding_waiting
    assert s.task(request).state is TaskState.WAITING
    assert s.counters.preemptions == 1
    if in_flight:
        # Its output is still to come: were it resumed now, a token would be made twice.
        assert set(hand.schedule()) == {"b"}
        hand.finish()
        assert request.num_stale_output_tokens == 0
    s.check()
    assert hand.schedule()["a"] == request.num_tokens
    hand.drain()
    assert hand.tokens == {"a": 30, "b": 30}
    assert s.counters.recomputed_tokens == 20 + 3 + in_flight
    assert s.free_blocks == s.usable_blocks


def test_e_a_running_request_can_be_dropped_too(runner: int) -> None:
    hand = engine({"a": 30, "b": 30}, runner=runner)
    for _ in range(4):
        hand.step()
    s = hand.scheduler
    s.preempt(s.requests["a"])
    assert "a" not in s.kv_layout.ids()
    hand.drain()
    assert hand.tokens == {"a": 30, "b": 30}


# -- (f) resetting the prefix cache --------------------------------------------------------------------------------


@pytest.mark.parametrize("caching", [False, True])
@pytest.mark.parametrize("in_flight", [0, 1])
def test_f_a_reset_takes_paused_kv_too(runner: int, caching: bool, in_flight: int) -> None:
    hand = engine({"a": 30, "b": 30, "c": 30}, runner=runner, prefix_caching=caching)
    for _ in range(4):
        hand.step()
    for _ in range(in_flight):
        hand.schedule()
    s = hand.scheduler
    pause(hand, "a")
    assert not s.reset_prefix_cache(), "a request holds KV"
    assert "a" in s.kv_layout.ids()
    assert s.reset_prefix_cache(reset_running_requests=True)
    assert s.free_blocks == s.usable_blocks
    assert len(s.kv_holding_waiting) == 0
    assert not s.paused_at
    assert {r.request_id for r in s.waiting} == {"a", "b", "c"}
    s.check()
    hand.drain()
    assert hand.tokens == {"a": 30, "b": 30, "c": 30}


# -- (g) while vLLM is paused --------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["ecoserve", "ecoserve-exact"])
def test_g_draining_ends_although_the_gate_would_not_open(policy: str) -> None:
    hand = engine({"a": 30, "b": 30, "late": 5}, policy=policy)
    for _ in range(3):
        hand.step()
    s = hand.scheduler
    s.add_request(make_request("new", [9] * 20, 100, 9.0))
    hand.answers["new"] = 5
    pause(hand, "a")
    s.planner.kv_policy.admits_decode = lambda task: False
    s.task(s.requests["a"]).promised = 0
    s.set_pause_state(PauseState.PAUSED_NEW)
    for _ in range(60):
        if not s.has_unfinished_requests():
            break
        scheduled = hand.step()
        assert "new" not in scheduled
    else:
        raise AssertionError("draining hangs")
    assert hand.tokens == {"a": 30, "b": 30, "late": 5}
    assert list(s.requests) == ["new"]
    del s.planner.kv_policy.admits_decode
    s.set_pause_state(PauseState.UNPAUSED)
    hand.drain()
    assert hand.tokens["new"] == 5


def test_g_a_finished_prefill_decodes_at_once_while_draining() -> None:
    hand = engine({"a": 30}, policy="ecoserve-exact")
    s = hand.scheduler
    hand.step()
    s.planner.kv_policy.admits_new_decode = s.planner.kv_policy.admits_decode = lambda task: False
    s.planner._alone = lambda task, running: False
    s.set_pause_state(PauseState.PAUSED_NEW)
    for _ in range(5):
        assert hand.step() == {"a": 1}
    assert s.counters.pauses == 0


def test_g_paused_for_all_nothing_is_scheduled_and_nothing_is_lost(runner: int) -> None:
    hand = engine({"a": 30, "b": 30}, runner=runner)
    for _ in range(3):
        hand.step()
    s = hand.scheduler
    pause(hand, "a")
    s.set_pause_state(PauseState.PAUSED_ALL)
    before = dict(s.kv_layout.ids())
    for _ in range(5):
        assert hand.step() == {}
    assert s.kv_layout.ids() == before
    assert s.paused_at.keys() == {"a"}
    assert not s.has_unfinished_requests()
    s.check()
    s.set_pause_state(PauseState.UNPAUSED)
    assert hand.step() == {"a": 1, "b": 1}
    hand.drain()
    assert hand.tokens == {"a": 30, "b": 30}


@pytest.mark.parametrize("state", [PauseState.PAUSED_NEW, PauseState.PAUSED_ALL])
def test_g_a_shortage_while_vllm_is_paused(state: PauseState) -> None:
    """Three requests want all of a cache that holds two: what is dropped while draining waits until it is over."""
    hand = engine(dict.fromkeys("abc", 60), blocks=12, max_model_len=96, prompt=30)
    s = hand.scheduler
    s.planner.kv_policy.admits_prompt = lambda task: True
    while len(s.running) < 3 or s.free_blocks:
        assert hand.step()
    s.set_pause_state(state)
    for _ in range(200):
        hand.step()
    if state is PauseState.PAUSED_NEW:
        assert not s.has_unfinished_requests()
        assert not s.running
    s.check()
    s.set_pause_state(PauseState.UNPAUSED)
    hand.drain()
    assert hand.tokens == dict.fromkeys("abc", 60)
    assert s.free_blocks == s.usable_blocks
