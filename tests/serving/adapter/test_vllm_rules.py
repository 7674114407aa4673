"""What vLLM's own scheduler does, as far as ours relies on it: rules that no name shows (test_pausing.py has the rest).

Run on another vLLM by scripts/vllm_compat.py, a test that fails here says which rule has changed.
"""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from virtual_rig import STOCK, ByHand, Case, scheduler_for
from vllm.entrypoints.launchers import launcher
from vllm.v1.core.sched.request_queue import FCFSRequestQueue
from vllm.v1.request import RequestStatus

from ecoserve.serving.simulate.engine import make_request


def engine(policy: str = STOCK, requests: int = 1, **shape: Any) -> ByHand:
    """A scheduler with requests ``r0``, ``r1``, ... of 20 prompt tokens that wait; responses have 12 tokens."""
    hand = ByHand(scheduler_for(Case((), policy=policy, **shape)), {f"r{i}": 12 for i in range(requests)})
    for i, name in enumerate(hand.answers):
        hand.scheduler.add_request(make_request(name, [100 + i] * 20, 100, float(i)))
    return hand


def hold(hand: ByHand, name: str) -> Any:
    """Put a running request where one waits that holds KV."""
    s, request = hand.scheduler, hand.scheduler.requests[name]
    s.running.remove(request)
    request.status = RequestStatus.PREEMPTED
    s.kv_holding_waiting.add_request(request)
    return request


class Probe(FCFSRequestQueue):
    """A queue that hides its requests, and keeps what it was asked and when."""

    def __init__(self, hand: ByHand) -> None:
        super().__init__()
        self._scheduler = hand.scheduler
        self.asked_at: set[int] = set()
        self.prepended: list[str] = []

    def __bool__(self) -> bool:
        self.asked_at.add(self._scheduler.current_step)
        return False

    def prepend_request(self, request: Any) -> None:
        self.prepended.append(request.request_id)
        super().prepend_request(request)


def test_a_request_that_holds_kv_goes_on_before_a_prompt_starts_with_one_token() -> None:
    hand = engine(requests=2, max_num_seqs=1)
    assert hand.step() == {"r0": 20}
    held = hold(hand, "r0")
    blocks = hand.scheduler.kv_cache_manager.get_block_ids("r0")
    assert hand.step() == {"r0": 1}
    assert held.status is RequestStatus.RUNNING
    assert held.num_preemptions == 0
    assert hand.scheduler.kv_cache_manager.get_block_ids("r0") == blocks


@pytest.mark.parametrize("name", ["waiting", "kv_holding_waiting"])
def test_a_hidden_queue_starts_nothing_and_keeps_the_engine_awake(name: str) -> None:
    hand = engine()
    if name == "kv_holding_waiting":
        hand.step()
    probe = Probe(hand)
    setattr(hand.scheduler, name, probe)
    if name == "waiting":
        probe.append(hand.scheduler.requests["r0"])
    else:
        hold(hand, "r0")
    step = hand.scheduler.current_step
    assert hand.schedule() == {}
    assert hand.scheduler.has_unfinished_requests()
    assert hand.scheduler.get_request_counts() == (0, 1)
    assert probe.asked_at == {step + 1}, "a step is counted before its queues are asked"


def test_a_preempted_request_is_put_at_the_head_of_the_prompts() -> None:
    hand = engine()
    hand.step()
    s = hand.scheduler
    s.waiting = probe = Probe(hand)
    request = s.running.pop()
    s._preempt_request(request, 0.0)
    assert probe.prepended == ["r0"]
    assert request.num_computed_tokens == 0
    assert s.free_blocks == s.usable_blocks


@pytest.mark.parametrize("policy", [STOCK, "ecoserve", "ecoserve-exact"])
def test_prefill_that_vllm_holds_back_waits_and_is_served(policy: str) -> None:
    """Every third step carries prefill, as with ``prefill_schedule_interval``: decodes go on, and all end."""
    hand = engine(policy, requests=6, max_num_seqs=3, blocks=12)
    s = hand.scheduler
    schedule = s.schedule
    s.schedule = lambda: schedule(throttle_prefills=s.current_step % 3 != 0)
    if hasattr(s, "local_prefill_interval"):
        s.local_prefill_interval = 3
    hand.drain()
    assert hand.tokens == hand.answers
    assert s.free_blocks == s.usable_blocks


@pytest.mark.parametrize("text", ["app.state.server = server", "engine_client.shutdown"])
def test_the_server_gives_the_app_itself_and_shuts_its_engine_down(text: str) -> None:
    """What the middleware waits for when the server stops; tests/serving/front/test_closing.py has a real one."""
    assert text in inspect.getsource(launcher.serve_http)
