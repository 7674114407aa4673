"""More LoRA adapters are asked for than the engine has places: who starts, and what a step costs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from virtual_rig import STOCK, ByHand, Case, scheduler_for
from vllm.lora.request import LoRARequest
from vllm.sampling_params import SamplingParams
from vllm.v1.request import Request

from ecoserve.lengths import LengthDistribution
from ecoserve.serving.core import keys
from ecoserve.serving.simulate.engine import EOS


def request(name: str, adapter: int, predicted: int = 50) -> Any:
    extra = {keys.LENGTHS: LengthDistribution.lognormal(predicted, 0.5, 512).to_wire()}
    params = SamplingParams(max_tokens=512, extra_args=extra)
    params.update_from_generation_config({}, EOS)
    lora = LoRARequest(f"l{adapter}", adapter, "adapter") if adapter else None
    return Request(name, [5] * 16, params, None, arrival_time=0.0, lora_request=lora)


def engine(max_loras: int, policy: str = "ecoserve", **settings: Any) -> ByHand:
    knobs = tuple(settings.items()) if policy != STOCK else ()
    case = Case(
        (), policy=policy, blocks=2000, max_model_len=600, max_num_seqs=32, max_num_batched_tokens=2048, knobs=knobs
    )
    scheduler = scheduler_for(case)
    scheduler.lora_config = SimpleNamespace(max_loras=max_loras)
    return ByHand(scheduler)


def running(hand: ByHand) -> set[str]:
    return {r.request_id for r in hand.scheduler.running}


@pytest.mark.parametrize("waiting", [20, 400])
def test_requests_without_a_place_for_their_adapter_are_not_asked_about(waiting: int) -> None:
    hand = engine(1, check_every_step=False)
    s = hand.scheduler
    s.add_request(request("a", 1))
    hand.step()
    for i in range(waiting):
        s.add_request(request(f"b{i}", 2))
    asked = []
    admits = s.planner.kv_policy.admits_prompt
    s.planner.kv_policy.admits_prompt = lambda task: asked.append(task.request_id) or admits(task)
    for _ in range(5):
        hand.step()
    assert asked == []
    assert running(hand) == {"a"}
    s.add_request(request("a2", 1))
    s.add_request(request("plain", 0))
    hand.step()
    assert sorted(asked) == ["a2", "plain"]
    assert running(hand) == {"a", "a2", "plain"}


def test_the_next_adapter_starts_when_the_place_is_free() -> None:
    hand = engine(1)
    hand.answers = {"a": 3, "b": 3, "c": 3}
    for adapter, name in enumerate("abc", 1):
        hand.scheduler.add_request(request(name, adapter))
    seen = []
    while hand.scheduler.has_requests():
        hand.step()
        seen.append(running(hand))
    assert max(len(names) for names in seen) == 1
    assert [name for name in "abc" if {name} in seen] == ["a", "b", "c"]


def test_adapters_that_start_in_one_step_count_at_once() -> None:
    hand = engine(2)
    for i in range(6):
        hand.scheduler.add_request(request(f"r{i}", 1 + i % 3))
    hand.step()
    assert len(running(hand)) == 4, "two adapters of three"
    assert len({r.lora_request.lora_int_id for r in hand.scheduler.running}) == 2


@pytest.mark.parametrize("policy", ["ecoserve", "ecoserve-exact", "ecoserve-paper"])
def test_every_request_is_answered_and_no_step_has_too_many_adapters(policy: str) -> None:
    hand = engine(2, policy)
    for i in range(60):
        hand.answers[f"r{i}"] = 5 + i % 30
        hand.scheduler.add_request(request(f"r{i}", i % 6, predicted=5 + i % 30))
        if i % 3 == 0:
            hand.step()
            assert len({r.lora_request.lora_int_id for r in hand.scheduler.running if r.lora_request}) <= 2
    hand.drain()
    assert {n: hand.tokens[n] for n in hand.answers} == hand.answers


def test_as_many_run_as_with_vllms_own_scheduler() -> None:
    sets = []
    for policy in (STOCK, "ecoserve"):
        hand = engine(2, policy, **({} if policy == STOCK else {"ordering": "fcfs"}))
        for i in range(20):
            hand.scheduler.add_request(request(f"r{i}", 1 + i % 4))
        hand.step()
        sets.append(running(hand))
    assert sets[0] == sets[1]
