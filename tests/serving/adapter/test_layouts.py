"""Every way in which layers keep their KV: the model of KV use is vLLM's, and any load is served on it.

Each step of :func:`virtual_rig.play` holds what the model of KV use says of every scheduled request against what vLLM's
managers hold for it, the ledger is recounted, the worker checks what each slot and state holds, and vLLM must never
choose a victim by itself.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any

import pytest
from virtual_rig import (
    LAYOUTS,
    STOCK,
    ByHand,
    Case,
    StrictWorker,
    check_empty,
    drive,
    full,
    mla,
    play,
    random_case,
    same,
    scheduler_for,
    state,
)
from vllm.multimodal.inputs import MultiModalFeatureSpec, PlaceholderRange
from vllm.v1.core.encoder_cache_manager import EncoderCacheManager

from ecoserve.lengths import LengthDistribution
from ecoserve.serving.adapter.kv_layout import group_of
from ecoserve.serving.core import keys
from ecoserve.serving.core.kv_use import Group
from ecoserve.serving.simulate.engine import make_request
from ecoserve.serving.simulate.loop import Arrival


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_load_on_any_layout(layout: str) -> None:
    seen: Counter[str] = Counter()
    for seed, depth, prefix_caching in ((1, 1, False), (4, 2, True), (7, 2, False)):
        case = random_case(seed, most=20, layout=layout, depth=depth, prefix_caching=prefix_caching, policy="ecoserve")
        try:
            seen.update(asdict(play(case).scheduler.counters))
        except BaseException as error:
            error.add_note(repr(case))
            raise
    assert seen["pauses"] + seen["preemptions"] > 5, "the loads are of use only if they are hard"


def groups(layout: str, **fields: Any) -> dict[Group, int]:
    case = Case((), layout=layout, blocks=200, max_model_len=192, **fields)
    s = scheduler_for(case)
    sizes = [m.block_size for m in s.kv_cache_manager.coordinator.single_type_managers]
    known = s.kv_layout.kv_use.groups
    assert sum(g.copies for g in known) == len(sizes)
    assert sorted(sizes) == sorted(g.block_size for g in known for _ in range(g.copies))
    return {g: g.copies for g in known}


def test_groups_are_those_that_vllm_makes() -> None:
    # 64 tokens of a forward and, asynchronously, as many of the one before may be in flight beside a window of 32.
    assert groups("MLA") == {Group(16): 1}
    assert groups("full + window") == {Group(16): 1, Group(16, 3, window=31, most=7): 3}
    assert groups("full + window", depth=2) == {Group(16): 1, Group(16, 3, window=31, most=11): 3}
    assert groups("full + chunked") == {Group(16): 1, Group(16, 3, chunk=32, most=6): 3}
    assert groups("full + state") == {Group(16): 1, Group(192, 3, window=1): 3}
    assert groups("full + state", prefix_caching=True) == {Group(16): 1, Group(16, 3, window=1, most=2, states=1): 3}


def test_a_window_that_is_shared_costs_a_newcomer_only_what_vllm_says() -> None:
    """The prefix is found as far as every group has it, and only what is in use to the end is free of cost."""
    case = Case(
        (), layout="full + window", blocks=60, prefix_caching=True, max_model_len=192, max_num_batched_tokens=256
    )
    s = scheduler_for(case)
    for name in "ab":
        s.add_request(make_request(name, [5] * 150, 40, 0.0, block_size=16))
        s.schedule()
    second = s.planner.ledger.tasks["b"]
    assert (second.settled, second.shared_blocks) == (144, 9)
    assert s.kv_layout.held("a") == 10 + 3 * 10  # in its first step, the whole prompt in every group
    assert s.kv_layout.held("b") == 10 + 3 * 3
    assert s.usable_blocks - s.free_blocks == 40 + 4  # one block of its own in each group


def test_vllms_own_scheduler_passes_the_same_checks() -> None:
    seen: Counter[str] = Counter()
    for layout in ("full + window", "full + chunked", "full + state"):
        for prefix_caching in (False, True):
            case = random_case(3, most=20, layout=layout, policy=STOCK, prefix_caching=prefix_caching)
            seen.update(asdict(play(case).scheduler.counters))
    assert seen["finished"] > 30


def test_a_prompt_gets_the_whole_block_that_its_state_needs() -> None:
    """vLLM ends chunks at blocks there: a step with room for less would leave the prompt out, again and again."""
    case = Case((), layout="full + state", block_size=128, blocks=60, prefix_caching=True)
    case = same(case, max_model_len=1024, max_num_seqs=16, max_num_batched_tokens=512)
    hand = ByHand(scheduler_for(case))
    for i in range(8):
        hand.scheduler.add_request(make_request(f"d{i}", [7 + i] * 9, 900, 0.0, block_size=128))
    hand.step()
    # Spread over steps by the root of decodes per prompt: 124 tokens a step.
    hand.scheduler.add_request(make_request("prompt", [5] * 351, 9, 0.0, block_size=128))
    assert hand.step()["prompt"] == 128


def test_context_parallelism_multiplies_the_tokens_of_a_block() -> None:
    parallel = SimpleNamespace(decode_context_parallel_size=4)
    case = Case(())
    assert group_of(full(case), SimpleNamespace(parallel_config=parallel)) == Group(64)
    assert group_of(mla(case), SimpleNamespace(parallel_config=parallel)) == Group(64)
    # Every rank has all of a state.
    assert group_of(state(case), SimpleNamespace(parallel_config=parallel)) == Group(192, window=1)


@pytest.mark.parametrize("depth", [1, 2])
def test_images_keep_to_the_encoders_budget_and_leave_its_cache(depth: int) -> None:
    """Requests with images, more than the encoder's cache holds at a time, beside others; paused and preempted."""
    case = Case((), depth=depth, blocks=40, max_model_len=256, knobs=(("epsilon", 0.5), ("paused_share", 0.3)))
    s = scheduler_for(case)
    s.max_num_encoder_input_tokens = 48
    s.encoder_cache_manager = EncoderCacheManager(cache_size=48)
    short = {keys.LENGTHS: LengthDistribution.point(1).to_wire()}
    arrivals = []
    for i in range(24):
        request = make_request(f"r{i}", [5] * 60, 120, 0.01 * i, short)
        if i % 3:
            places = (PlaceholderRange(offset=2, length=24), PlaceholderRange(offset=30, length=20))
            request.mm_features = [MultiModalFeatureSpec(None, "image", f"{i} {p.offset}", p) for p in places]
        arrivals.append(Arrival(0.01 * i, request, 100))
    encoded = 0

    def stepped(output: Any) -> None:
        nonlocal encoded
        embeds = [
            s.requests[n].get_num_encoder_embeds(i) for n, ids in output.scheduled_encoder_inputs.items() for i in ids
        ]
        assert sum(embeds) <= 48
        encoded += len(embeds)

    rows = drive(s, arrivals, depth, StrictWorker(case, s), on_step=stepped).rows
    assert [r.output_tokens for r in rows] == [100] * 24
    assert s.counters.pauses > 0
    assert s.counters.preemptions == s.counters.shortage_preemptions > 0
    assert encoded > 32, "a preempted request's images are encoded again"
    assert s.encoder_cache_manager.num_freeable_slots == 48
    check_empty(s)
