"""Counting decides nothing, counts right, and does not grow with the requests it has seen."""

from __future__ import annotations

import gc
from typing import Any

import pytest
from virtual_rig import STOCK, ByHand, Case, Spec, play, scheduler_for
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.request import RequestStatus

from ecoserve.serving.simulate.engine import make_request, make_scheduler


def by_hand(answers: dict[str, int], prompt: int = 40, **shape: Any) -> ByHand:
    case = Case((), **shape)
    hand = ByHand(scheduler_for(case), answers)
    for i, name in enumerate(answers):
        hashed = case.block_size if case.prefix_caching else None
        hand.scheduler.add_request(make_request(name, [100 + i] * prompt, 100, float(i), block_size=hashed))
    return hand


# -- it changes no decision --------------------------------------------------------------------------------


@pytest.mark.parametrize("caching", [False, True])
def test_vllm_with_counting_decides_as_vllm(caching: bool) -> None:
    """The rows called ``vllm`` are vLLM: step by step the same as the bare class."""
    case = Case((), policy=STOCK, blocks=14, max_model_len=200, prefix_caching=caching, max_num_batched_tokens=64)
    hands = []
    for scheduler in (scheduler_for(case), make_scheduler(AsyncScheduler, case.shape())):
        hand = ByHand(scheduler, {f"r{i}": 20 + 9 * i for i in range(8)})
        for i, name in enumerate(hand.answers):
            scheduler.add_request(
                make_request(name, [5] * 20 + [i] * 11 * i, 150, 0.0, block_size=16 if caching else None)
            )
        hands.append(hand)
    counted, bare = hands
    while bare.scheduler.has_requests():
        assert counted.schedule() == bare.schedule()
        assert counted.last.scheduled_cached_reqs.new_block_ids == bare.last.scheduled_cached_reqs.new_block_ids
        counted.finish()
        bare.finish()
    assert counted.scheduler.counters.preemptions > 0


# -- recomputed tokens -------------------------------------------------------------------------------------


def test_recomputed_is_what_is_computed_a_second_time() -> None:
    hand = by_hand({"a": 30})
    for _ in range(11):
        hand.step()
    s = hand.scheduler
    assert s.requests["a"].num_computed_tokens == 50
    s.preempt(s.requests["a"])
    assert hand.step() == {"a": 51}
    assert s.counters.recomputed_tokens == 50, "its last token had not been computed before"
    hand.drain()
    assert s.counters.recomputed_tokens == 50
    assert s.counters.preemptions == 1


def test_recomputing_in_chunks_counts_each_token_once() -> None:
    hand = by_hand({"a": 30}, max_num_batched_tokens=16)
    while hand.tokens.get("a", 0) < 11:
        hand.step()
    s = hand.scheduler
    computed = s.requests["a"].num_computed_tokens
    s.preempt(s.requests["a"])
    for expected in (16, 32, 48, computed):
        hand.step()
        assert s.counters.recomputed_tokens == expected
    hand.drain()
    assert s.counters.recomputed_tokens == computed


def test_a_drop_half_way_through_recomputing_counts_what_was_done_again() -> None:
    hand = by_hand({"a": 30}, max_num_batched_tokens=16)
    while hand.tokens.get("a", 0) < 11:
        hand.step()
    s = hand.scheduler
    computed = s.requests["a"].num_computed_tokens
    s.preempt(s.requests["a"])
    hand.step()
    s.preempt(s.requests["a"])
    hand.drain()
    assert s.counters.recomputed_tokens == 16 + computed
    assert s.counters.preemptions == 2


def test_what_the_prefix_cache_gives_back_is_not_computed_again() -> None:
    hand = by_hand({"a": 30}, prefix_caching=True)
    for _ in range(11):
        hand.step()
    s = hand.scheduler
    s.preempt(s.requests["a"])
    assert hand.step() == {"a": 51 - 48}, "three full blocks are still there"
    assert s.counters.recomputed_tokens == 50 - 48
    hand.drain()


def test_an_aborted_request_leaves_no_debt() -> None:
    hand = by_hand({"a": 30})
    for _ in range(5):
        hand.step()
    s = hand.scheduler
    s.preempt(s.requests["a"])
    s.finish_requests("a", RequestStatus.FINISHED_ABORTED)
    assert not s._reached
    assert not s.preemptions_of
    s.add_request(make_request("a", [9] * 40, 100, 0.0))  # the same id, another request
    hand.drain()
    assert s.counters.recomputed_tokens == 0


# -- the other counters ------------------------------------------------------------------------------------


def test_predictions_too_short_or_too_long_are_counted() -> None:
    specs = [Spec(answer=40, source="true"), Spec(answer=40, source="one"), Spec(answer=10, source="huge")]
    c = play(Case(tuple(specs), blocks=60, max_model_len=400)).scheduler.counters
    assert c.under_predictions == 1
    assert c.over_predictions == 1
    assert c.re_reservations >= 1
    assert c.predictions_used == 3


def test_gauges_say_what_is_there() -> None:
    hand = by_hand({"a": 30, "b": 30, "c": 30}, max_num_seqs=2)
    for _ in range(3):
        hand.step()
    s = hand.scheduler
    s.pause(s.requests["a"])
    gauges = s.gauges()
    assert (gauges.running, gauges.waiting_prompts, gauges.waiting_generations) == (1, 1, 1)
    assert gauges.held_blocks == 6
    assert gauges.usable_blocks == 24
    hand.drain()
    assert s.gauges().held_blocks == 0


# -- memory ------------------------------------------------------------------------------------------------


def sizes(s: Any) -> dict[str, int]:
    """Length of every container that hangs on the scheduler, its planner, ledger, policy, forecast and queues."""
    out = {}
    parts = {
        "scheduler": s,
        "planner": s.planner,
        "ledger": s.planner.ledger,
        "kv_policy": s.planner.kv_policy,
        "forecast": s.planner.forecast,
        "waiting": s.waiting,
        "holding": s.kv_holding_waiting,
        "history": s.planner.history,
    }
    for part, thing in parts.items():
        for name, value in vars(thing).items():
            if isinstance(value, (dict, list, set)) or hasattr(value, "maxlen"):
                out[f"{part}.{name}"] = len(value)
    return out


@pytest.mark.parametrize("policy", ["ecoserve", "ecoserve-exact"])
def test_nothing_grows_with_the_requests_that_have_passed(policy: str) -> None:
    """Waves of requests under pressure, with aborts: after the second all is as after the first."""
    case = Case((), policy=policy, blocks=20, max_model_len=160, max_num_seqs=16, max_num_batched_tokens=256)
    scheduler = scheduler_for(case)
    scheduler.settings = scheduler.settings.model_copy(update={"check_every_step": False})
    hand = ByHand(scheduler)
    after = []
    for wave in range(2):
        for i in range(600):
            name = f"w{wave}-{i}"
            hand.answers[name] = 1 + i % 9 if i % 50 else 90
            scheduler.add_request(make_request(name, [100 + i] * (1 + i % 60), 100, float(wave)))
            if i % 7 == 0:
                hand.step()
            if i % 13 == 0:
                scheduler.finish_requests(f"w{wave}-{max(0, i - 20)}", RequestStatus.FINISHED_ABORTED)
        hand.drain(10_000)
        gc.collect()
        after.append(sizes(scheduler))
    assert scheduler.counters.finished == 1200
    assert scheduler.counters.pauses + scheduler.counters.preemptions > 0
    # The windows of what has finished and of what has arrived are the only memory.
    windows = {"history._lengths": 1000, "history._starts": 33}
    assert all(after[1][n] <= most for n, most in windows.items() if n in after[1])
    lasting = [{n: size for n, size in wave.items() if n not in windows} for wave in after]
    assert not {n: (lasting[0][n], size) for n, size in lasting[1].items() if size > lasting[0][n] + 8}
    assert max(lasting[1].values()) < 300
