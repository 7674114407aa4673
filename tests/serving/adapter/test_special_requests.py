"""Requests that are not one prompt and one answer: siblings, streaming sessions, grammars, LoRA adapters."""

from __future__ import annotations

import copy
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest
from virtual_rig import ByHand, Case, StrictWorker, check_end, drive, play, scheduler_for
from vllm.lora.request import LoRARequest
from vllm.sampling_params import SamplingParams, StructuredOutputsParams
from vllm.v1.metrics.stats import PrefixCacheStats
from vllm.v1.request import Request, RequestStatus

from ecoserve.lengths import LengthDistribution
from ecoserve.serving.core import keys
from ecoserve.serving.core.tasks import TaskState
from ecoserve.serving.simulate.engine import EOS, make_request
from ecoserve.serving.simulate.loop import Arrival


def a_request(name: str, prompt: int, max_tokens: int = 50, at: float = 0.0, **fields: Any) -> Request:
    structured = fields.pop("structured", None)
    params = SamplingParams(max_tokens=max_tokens, structured_outputs=structured)
    params.update_from_generation_config({}, EOS)
    return Request(name, [1000 + prompt] * prompt, params, None, arrival_time=at, **fields)


def by_hand(answers: dict[str, int] | None = None, **shape: Any) -> ByHand:
    return ByHand(scheduler_for(Case((), **{"depth": 2, **shape})), answers)


# -- n > 1 -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("policy", ["ecoserve", "ecoserve-exact"])
def test_siblings_share_a_prompt_and_a_dict_that_is_not_written_to(policy: str, depth: int) -> None:
    """As vLLM makes them for n = 6: one prompt, one ``extra_args`` dict, one arrival time."""
    case = Case(
        (),
        policy=policy,
        depth=depth,
        runner=depth,
        blocks=20,
        max_model_len=160,
        prefix_caching=True,
        scheduling_policy="fcfs",
    )
    extra: dict[str, Any] = {keys.LENGTHS: LengthDistribution.lognormal(40, 0.5, 400).to_wire(), "other": [1, 2]}
    before = copy.deepcopy(extra)
    answers = [40, 70, 10, 90, 30, 55]
    siblings = [
        Arrival(0.0, make_request(f"{i}_parent", [77] * 40, 100, 5.0, extra, block_size=16), n)
        for i, n in enumerate(answers)
    ]
    s = scheduler_for(case)
    result = drive(s, siblings, depth, StrictWorker(case))
    assert extra == before
    assert [r.output_tokens for r in result.rows] == answers
    assert s.counters.predictions_used == 6
    assert s.free_blocks == s.usable_blocks


@pytest.mark.parametrize("policy", ["ecoserve-d", "ecoserve"])
def test_equals_start_in_the_order_they_came_also_after_a_drop(policy: str) -> None:
    hand = by_hand({f"r{i}": 30 for i in range(6)}, policy=policy, max_num_seqs=2)
    s = hand.scheduler
    for i in range(6):
        s.add_request(a_request(f"r{i}", 20, at=5.0))
    assert list(hand.step()) == ["r0", "r1"]
    s.preempt(s.requests["r0"])
    assert [r.request_id for r in s.waiting] == ["r0", "r2", "r3", "r4", "r5"]
    hand.drain()
    assert hand.tokens == dict.fromkeys(hand.answers, 30)


# -- streaming sessions (resumable requests) ---------------------------------------------------------------------


def session(name: str, prompt: int, at: float = 0.0) -> Request:
    return a_request(name, prompt, 100, at, resumable=True)


def the_end(name: str) -> Request:
    return a_request(name, 1)


def test_a_session_takes_turns_and_keeps_its_kv_between_them() -> None:
    hand = by_hand({"s": 4, "other": 60})
    s = hand.scheduler
    s.add_request(session("s", 20))
    s.add_request(a_request("other", 20, 100))
    for _ in range(6):
        hand.step()
    assert s.requests["s"].status is RequestStatus.WAITING_FOR_STREAMING_REQ
    assert hand.tokens["s"] == 4
    assert s.task(s.requests["s"]).state is TaskState.PAUSED
    held = list(s.kv_layout.ids()["s"])
    assert held
    for _ in range(10):
        assert set(hand.step()) == {"other"}
    assert s.kv_layout.ids()["s"] == held
    s.add_request(session("s", 30))
    # Its new input is computed; what was before is not. The last token of a turn is thrown away by vLLM.
    assert hand.step()["s"] == 30
    assert s.task(s.requests["s"]).prompt_tokens == 20 + 3 + 30
    for _ in range(6):
        hand.step()
    assert hand.tokens["s"] == 8
    s.add_request(the_end("s"))
    assert "s" not in s.requests
    hand.drain()
    assert hand.tokens == {"s": 8, "other": 60}
    assert s.free_blocks == s.usable_blocks
    assert not s.planner.ledger.tasks
    assert not s.paused_at


@pytest.mark.parametrize(("how", "queued"), [("paused", False), ("paused", True), ("dropped", False)])
def test_a_turn_that_ends_while_the_session_is_out_of_the_batch(how: str, queued: bool) -> None:
    """The output that ends it was in flight. vLLM would put the session into a queue and take it out again.

    Not tried: dropped and with input queued. vLLM 0.32 itself loses the prompt of a session that was preempted then.
    """
    hand = by_hand({"s": 3, "other": 80})
    s = hand.scheduler
    s.add_request(session("s", 20))
    s.add_request(a_request("other", 20, 100))
    if queued:
        s.add_request(session("s", 10))
    hand.schedule()
    hand.schedule()
    hand.finish()
    hand.finish()
    hand.schedule()
    request = s.requests["s"]
    assert (request.num_output_tokens, request.num_in_flight_tokens) == (2, 1)
    if how == "paused":
        s.pause(request)
    else:
        s.preempt(request)
    hand.schedule()
    hand.finish()
    hand.finish()
    assert hand.tokens["s"] == 3
    assert not s.paused_at
    assert (request in s.waiting) + (request in s.kv_holding_waiting) == 1
    assert len(s.waiting) + len(s.kv_holding_waiting) == 1
    s.check()
    if queued:
        for _ in range(4):
            hand.step()
        assert hand.tokens["s"] == 6
    assert request.status is RequestStatus.WAITING_FOR_STREAMING_REQ
    s.add_request(the_end("s"))
    hand.drain()
    assert hand.tokens["other"] == 80
    assert s.free_blocks == s.usable_blocks


def test_a_prefill_that_a_session_leaves_no_room_for_gives_way() -> None:
    """A session's new input goes before everything. Only the prefill can give way, and it cannot be paused."""
    hand = by_hand({"s": 1, "long": 5}, blocks=12, max_model_len=192, max_num_batched_tokens=64, max_num_seqs=4)
    s = hand.scheduler
    s.scheduler_config.long_prefill_token_threshold = 32
    s.add_request(session("s", 16))
    hand.step()
    assert s.requests["s"].status is RequestStatus.WAITING_FOR_STREAMING_REQ
    s.add_request(a_request("long", 150))
    assert hand.step() == {"long": 32}
    s.add_request(session("s", 30))
    assert hand.step() == {"long": 32, "s": 30}, "its new input and its one token in one step"
    assert [r.request_id for r in s.running] == ["long"]
    # The session has three blocks of twelve, the prompt wants ten: it is computed as far as it gets.
    assert [hand.step() for _ in range(12)] == [{"long": 32}] + [{}] * 11
    s.check()
    assert s.task(s.requests["long"]).state is TaskState.WAITING
    assert s.counters.shortage_preemptions == 1
    s.add_request(the_end("s"))
    hand.drain()
    assert hand.tokens == {"s": 2, "long": 5}
    assert s.free_blocks == s.usable_blocks


@pytest.mark.parametrize("first", ["session", "generation"])
def test_a_session_and_a_generation_do_not_block_each_other(first: str) -> None:
    """Nothing runs, both hold KV, neither fits: one of them must go on, in either order."""
    hand = by_hand({"s": 30, "gt": 80}, blocks=12, max_model_len=192, max_num_batched_tokens=256, policy="ecoserve-d")
    s = hand.scheduler
    s.add_request(session("s", 16, at=0.0 if first == "session" else 9.0))
    for _ in range(31):
        hand.step()
    assert s.requests["s"].status is RequestStatus.WAITING_FOR_STREAMING_REQ  # three blocks
    s.planner.kv_policy.admits_prompt = lambda task: True
    s.add_request(a_request("gt", 100, 150, at=5.0))
    while s.free_blocks:
        assert hand.step()
    while s.running:
        hand.step()
    assert s.paused_at.keys() == {"gt"}
    for _ in range(20):
        assert hand.step() == {}, "only the client can go on"
    s.add_request(session("s", 60))
    for _ in range(40):
        hand.step()
        s.check()
    assert hand.tokens["s"] == 60, "the session had its turn"
    s.add_request(the_end("s"))
    hand.drain()
    assert hand.tokens["gt"] == 80
    assert s.free_blocks == s.usable_blocks


def test_aborting_a_session_that_waits_for_its_client() -> None:
    hand = by_hand({"s": 2})
    s = hand.scheduler
    s.add_request(session("s", 20))
    for _ in range(4):
        hand.step()
    assert s.num_waiting_for_streaming_input == 1
    s.finish_requests("s", RequestStatus.FINISHED_ABORTED)
    assert s.num_waiting_for_streaming_input == 0
    hand.drain()
    assert s.free_blocks == s.usable_blocks
    assert not s.planner.ledger.tasks


# -- structured output --------------------------------------------------------------------------------------------


class Grammar:
    """As much of a grammar as the scheduler looks at."""

    def __init__(self) -> None:
        self.tokens: list[int] = []

    def accept_tokens(self, request_id: str, tokens: list[int]) -> bool:
        self.tokens += tokens
        return True


def structured(name: str, prompt: int, at: float = 0.0) -> tuple[Request, Future[Any]]:
    """A request whose grammar is still being compiled, and that compilation."""
    request = a_request(name, prompt, at=at, structured=StructuredOutputsParams(json={"type": "object"}))
    compiled: Future[Any] = Future()
    assert request.structured_output_request is not None
    request.structured_output_request.grammar = compiled
    assert request.status is RequestStatus.WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR
    return request, compiled


def test_a_request_that_waits_for_a_grammar_holds_up_no_other_and_is_looked_at_in_every_step() -> None:
    hand = by_hand({"json": 5, "plain": 5}, policy="ecoserve-d")
    s = hand.scheduler
    request, compiled = structured("json", 20)
    s.add_request(request)
    s.add_request(a_request("plain", 21, at=1.0))
    assert hand.step() == {"plain": 21}
    for _ in range(2):
        assert hand.step() == {"plain": 1}
        s.check()
    grammar = Grammar()
    compiled.set_result(grammar)
    assert "json" not in hand.step(), "he is ready, and takes his place in the order first"
    assert hand.step()["json"] == 20
    hand.drain()
    assert hand.tokens == {"json": 5, "plain": 5}
    assert len(grammar.tokens) == 5
    assert not s.deferred_waiting


def test_alone_with_a_grammar_the_engine_stays_awake() -> None:
    hand = by_hand({"json": 5})
    request, compiled = structured("json", 20)
    hand.scheduler.add_request(request)
    for _ in range(3):
        assert hand.step() == {}
        assert hand.scheduler.has_requests()
    compiled.set_result(Grammar())
    hand.drain()
    assert hand.tokens == {"json": 5}


def test_a_grammar_does_not_pass_the_gate_by() -> None:
    hand = by_hand({"json": 5, "plain": 40})
    s = hand.scheduler
    s.add_request(a_request("plain", 21))
    hand.step()
    request, compiled = structured("json", 20)
    s.add_request(request)
    compiled.set_result(Grammar())
    s.planner.kv_policy.admits_prompt = lambda task: False
    for _ in range(5):
        assert set(hand.step()) == {"plain"}
    assert request.status is RequestStatus.WAITING
    del s.planner.kv_policy.admits_prompt
    assert set(hand.step()) == {"json", "plain"}
    hand.drain()
    assert hand.tokens == {"json": 5, "plain": 40}


def test_a_grammar_that_does_not_compile_ends_its_request_only() -> None:
    hand = by_hand({"plain": 5})
    s = hand.scheduler
    request, compiled = structured("json", 20)
    s.add_request(request)
    s.add_request(a_request("plain", 21))
    compiled.set_exception(ValueError("no such schema"))
    hand.drain()
    assert hand.tokens == {"plain": 5, "json": 0}
    assert request.status is RequestStatus.FINISHED_ERROR
    assert s.free_blocks == s.usable_blocks
    assert not s.planner.ledger.tasks


def test_a_paused_structured_request_goes_on_with_its_grammar() -> None:
    hand = by_hand({"json": 10, "plain": 10})
    s = hand.scheduler
    request, compiled = structured("json", 20)
    grammar = Grammar()
    compiled.set_result(grammar)
    s.add_request(request)
    s.add_request(a_request("plain", 21))
    for _ in range(5):
        hand.step()
    s.pause(request)
    hand.drain()
    assert len(grammar.tokens) == 10
    assert hand.tokens == {"json": 10, "plain": 10}


# -- LoRA ----------------------------------------------------------------------------------------------------------


def lora(name: str, adapter: int, prompt: int = 20, at: float = 0.0) -> Request:
    return a_request(name, prompt, at=at, lora_request=LoRARequest(f"lora{adapter}", adapter, "unused"))


@pytest.mark.parametrize("policy", ["ecoserve", "ecoserve-exact", "ecoserve-d"])
def test_vllm_skips_a_prompt_for_its_adapter_and_it_keeps_its_place(policy: str) -> None:
    hand = by_hand(policy=policy)
    s = hand.scheduler
    s.lora_config = SimpleNamespace(max_loras=1)
    for i, adapter in enumerate([1, 2, 2, 1, 3, 1]):
        hand.answers[f"r{i}"] = 6 + i
        s.add_request(lora(f"r{i}", adapter, at=0.0))
    assert set(hand.step()) == {"r0", "r3", "r5"}
    assert [r.request_id for r in s.waiting] == ["r1", "r2", "r4"]
    s.check()
    hand.drain()
    assert hand.tokens == hand.answers
    assert s.free_blocks == s.usable_blocks


@pytest.mark.parametrize("policy", ["ecoserve", "ecoserve-exact"])
def test_a_paused_generation_is_skipped_for_its_adapter(policy: str) -> None:
    """It is popped and put back in every step: it must neither be lost nor counted as going on."""
    hand = by_hand({"a": 30, "b": 30}, policy=policy)
    s = hand.scheduler
    s.add_request(lora("a", 1))
    s.add_request(lora("b", 2))
    for _ in range(3):
        hand.step()
    s.lora_config = SimpleNamespace(max_loras=1)
    request = s.requests["b"]
    s.pause(request)
    for _ in range(10):
        assert set(hand.step()) == {"a"}
        s.check()
    assert s.counters.resumes == 0
    assert s.paused_at.keys() == {"b"}
    promised = s.task(request).promised
    assert promised >= s.task(request).generated
    hand.drain()
    assert s.counters.resumes == 1
    assert hand.tokens == {"a": 30, "b": 30}
    assert s.free_blocks == s.usable_blocks


# -- vLLM's own statistics -------------------------------------------------------------------------------------------


def test_vllms_statistics_are_made_of_our_queues() -> None:
    hand = by_hand({f"r{i}": 30 for i in range(8)}, max_num_seqs=3)
    s = hand.scheduler
    s.log_stats = True
    s.kv_cache_manager.log_stats = True
    s.kv_cache_manager.prefix_cache_stats = PrefixCacheStats()
    for i in range(8):
        s.add_request(a_request(f"r{i}", 20 + i))
    for _ in range(3):
        hand.step()
    stats = s.make_stats()
    assert (stats.num_running_reqs, stats.num_waiting_reqs) == (len(s.running), 8 - len(s.running))
    assert stats.kv_cache_usage == pytest.approx(1 - s.free_blocks / s.usable_blocks)
    hand.drain()
    assert s.make_stats().num_waiting_reqs == 0


def test_check_end_sees_what_is_left_behind() -> None:
    """The rig's own test: a block that is never given back is seen."""
    played = play(Case(()))
    played.scheduler.kv_cache_manager.block_pool.get_new_blocks(1)
    with pytest.raises(AssertionError):
        check_end(Case(()), played.scheduler, played.result)
