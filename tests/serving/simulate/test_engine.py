"""Scheduler classes built from a shape: what vLLM would refuse is refused, what it would serve is served."""

from __future__ import annotations

import pytest
from virtual_rig import Case, Spec, play, scheduler_for

from ecoserve.errors import ConfigError
from ecoserve.serving.simulate.engine import EOS, EngineShape, make_request, make_scheduler


def test_the_shape_is_what_vllm_sees() -> None:
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler

    shape = EngineShape(
        kv_blocks=30,
        block_size=16,
        max_num_seqs=7,
        max_num_batched_tokens=96,
        max_model_len=333,
        prefix_caching=True,
        watermark=0.1,
        scheduling_policy="priority",
        runner=2,
    )
    s = make_scheduler(AsyncScheduler, shape)
    assert s.kv_cache_manager.block_pool.get_num_free_blocks() == 30
    assert (s.max_num_running_reqs, s.max_num_scheduled_tokens, s.max_model_len) == (7, 96, 333)
    assert s.use_v2_model_runner
    assert s.cache_config.enable_prefix_caching
    assert s.kv_cache_manager.watermark_blocks == 3
    assert s.policy.value == "priority"
    assert s.scheduler_config.enable_chunked_prefill
    assert not s.scheduler_config.async_scheduling


@pytest.mark.parametrize("blocks", [20, 21])
def test_the_longest_request_must_fit(blocks: int) -> None:
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler

    shape = EngineShape(kv_blocks=blocks, block_size=16, max_model_len=16 * 20 + 1, max_num_batched_tokens=512)
    if blocks == 21:
        assert make_scheduler(AsyncScheduler, shape)
    else:
        with pytest.raises(ConfigError, match="20 KV blocks of 16 tokens cannot hold one request of max_model_len 321"):
            make_scheduler(AsyncScheduler, shape)


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("policy", ["ecoserve", "ecoserve-exact", "vllm"])
def test_a_request_of_the_greatest_length_fills_the_cache_and_ends(policy: str, depth: int) -> None:
    full = Spec(prompt=150, answer=999, max_tokens=999)
    rows = play(Case((full, full), policy=policy, depth=depth, blocks=12, max_model_len=192)).result.rows
    assert [r.output_tokens for r in rows] == [42, 42]


@pytest.mark.parametrize("policy", ["ecoserve", "ecoserve-exact", "vllm"])
def test_a_watermark_does_not_keep_the_only_request_out(policy: str) -> None:
    specs = (Spec(prompt=185, answer=7, max_tokens=99), Spec(prompt=185, answer=7, max_tokens=99))
    case = Case(specs, policy=policy, blocks=12, max_model_len=192, watermark=0.5)
    assert [r.output_tokens for r in play(case).result.rows] == [7, 7]


def test_requests_end_at_the_end_token() -> None:
    request = make_request("r", [1, 2, 3], 10, 4.0, {"k": 1}, priority=3)
    assert request.sampling_params.eos_token_id == EOS
    assert (request.arrival_time, request.priority, request.num_prompt_tokens) == (4.0, 3, 3)
    assert request.sampling_params.extra_args == {"k": 1}
    assert request.block_hashes == []


def test_equal_prompts_hash_alike_unequal_ones_do_not() -> None:
    a, b, c = (
        make_request(n, ids, 10, 0.0, block_size=4) for n, ids in (("a", [5] * 9), ("b", [5] * 9), ("c", [6] * 9))
    )
    assert len(a.block_hashes) == 2
    assert a.block_hashes == b.block_hashes
    assert not set(a.block_hashes) & set(c.block_hashes)


def test_two_schedulers_share_nothing() -> None:
    one, other = scheduler_for(Case(())), scheduler_for(Case(()))
    one.add_request(make_request("r", [1] * 8, 10, 0.0))
    one.schedule()
    assert other.free_blocks == other.usable_blocks
    assert not other.requests
    assert not other.planner.ledger.tasks
