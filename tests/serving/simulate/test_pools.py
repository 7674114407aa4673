"""Prefill and decode on engines of their own, on cases worked by hand."""

from __future__ import annotations

from typing import Any

import pytest

from ecoserve.errors import ConfigError
from ecoserve.serving.adapter.policies import policy_arguments
from ecoserve.serving.routing import Router
from ecoserve.serving.runs import RequestRow
from ecoserve.serving.simulate.cost import LinearCost
from ecoserve.serving.simulate.engine import WORD, make_request
from ecoserve.serving.simulate.kv_link import KVLink
from ecoserve.serving.simulate.loop import Arrival, run_replicas
from ecoserve.serving.simulate.replica import Replica
from ecoserve.serving.simulate.run import SimulateSettings, _replicas, check, simulate
from ecoserve.serving.simulate.settings import machine_of

#: A step takes 10 ms, and 0.1 ms for each prompt token.
COST = LinearCost(step_s=0.01, prefill_token_s=1e-4, decode_s=0.0, context_token_s=0.0)


def split(**changes: Any) -> SimulateSettings:
    """One engine for prompts and one that decodes; KV takes 1 ms and 0.1 ms for each of its tokens."""
    known = {"trace": "synthetic:200", "policy": "distserve", "replicas": 2, "cost": COST, "kv_link": "1000:8.192"}
    return SimulateSettings(**known | {"max_model_len": 512, "max_tokens": 100} | changes)


def served(settings: SimulateSettings, *load: tuple[float, int, int]) -> tuple[list[RequestRow], list[Replica]]:
    """Rows of requests that come at a time with so many prompt and response tokens, and the engines."""
    replicas, front = _replicas(settings, machine_of(settings))
    arrivals = [
        Arrival(at, make_request(f"r{i}", [WORD] * prompt, 99, at), response)
        for i, (at, prompt, response) in enumerate(load)
    ]
    rows = run_replicas(replicas, arrivals, Router("round-robin", range(front))).rows
    assert all(r.scheduler.free_blocks == r.scheduler.usable_blocks and not r.scheduler.requests for r in replicas)
    assert [r.output_tokens for r in rows] == [response for *_, response in load]
    return rows, replicas


def times(rows: list[RequestRow]) -> list[tuple[float, float]]:
    return [(round(1e3 * (r.first_token_s or 0.0), 6), round(1e3 * (r.finish_s or 0.0), 6)) for r in rows]


def test_a_request_is_prefilled_fetched_and_decoded() -> None:
    # Prompt 10 + 10 ms, KV 1 + 10 ms, two steps of 10 ms.
    assert times(served(split(), (0.0, 100, 3))[0]) == [(20.0, 51.0)]


def test_two_share_a_prefill_and_the_link_and_meet_in_the_decode_batch() -> None:
    # Both prompts: 10 + 20 ms. The first one's KV is there at 41 ms, the second's 10 ms later, with the step's end.
    assert times(served(split(), (0.0, 100, 3), (0.0, 100, 3))[0]) == [(30.0, 61.0), (30.0, 71.0)]


def test_a_response_of_one_token_never_leaves_the_prefill_engine() -> None:
    rows, (_, decode) = served(split(), (0.0, 100, 1), (0.1, 100, 1))
    assert times(rows) == [(20.0, 20.0), (120.0, 120.0)]
    assert decode.scheduler.counters.steps == 0


def test_an_idle_engine_starts_what_comes_while_kv_is_under_way() -> None:
    # The second comes at 25 ms: the prefill engine is sending, and starts at once.
    rows, _ = served(split(), (0.0, 100, 3), (0.025, 100, 2))
    assert times(rows)[1][0] == 45.0
    # The decode engine takes it when its step ends, at 51 ms: 11 ms for the KV, and a step.
    assert times(rows) == [(20.0, 51.0), (45.0, 72.0)]


def test_a_full_decode_engine_holds_prefills_back() -> None:
    """Eight blocks of 16 in each: one prompt of 100 fits. The third's prefill waits until the second's KV is sent."""
    rows, (prefill, decode) = served(split(blocks=8, max_model_len=128), *[(0.0, 100, 20)] * 3)
    ends = [finish for _, finish in times(rows)]
    firsts = [first for first, _ in times(rows)]
    assert firsts[0] == 20.0
    # The second's prompt starts when the first's KV is sent (31 ms), and its own is fetched when that has ended.
    assert firsts[1] == 51.0
    assert firsts[2] > ends[0]
    assert ends[1] >= ends[0] + 11.0 + 190.0
    assert max(prefill.peak_blocks, decode.peak_blocks) <= 8


@pytest.mark.parametrize("depth", [1, 2])
def test_a_preempted_decode_computes_its_prompt_again_where_it_is(depth: int) -> None:
    settings = split(blocks=20, max_model_len=256, depth=depth)
    rows, (prefill, decode) = served(settings, (0.0, 100, 90), (0.0, 100, 90))
    assert (rows[0].preemptions, rows[1].preemptions) == (0, 1)
    assert decode.scheduler.counters.recomputed_tokens >= 100
    assert prefill.scheduler.counters.recomputed_tokens == 0


def test_a_run_by_name_with_pools_of_different_size() -> None:
    pressed = {"rate_rps": 30.0, "requests": 40, "lengths": "none", "max_model_len": 1024, "blocks": 200}
    result = simulate(split(replicas=4, prefill_replicas=2, depth=2, router="least-requests", **pressed))
    summary = result.summary()
    assert summary["completed"] == 40
    assert (summary["prefill_replicas"], summary["kv_link"]) == (2, "1000:8.192")
    slow = simulate(split(replicas=4, prefill_replicas=2, depth=2, **pressed | {"kv_link": "1000:0.1"}))
    assert slow.summary()["e2el_mean_ms"] > 1.2 * summary["e2el_mean_ms"]


def test_the_link_is_as_wide_as_the_narrower_pool() -> None:
    link = KVLink.of("20:16", 800_000, 2)
    assert (link.latency_s, link.token_s) == pytest.approx((20e-6, 800_000 / 32e9))
    assert KVLink.of("nvlink", 800_000, 1).token_s < KVLink.of("pcie", 800_000, 1).token_s
    with pytest.raises(ConfigError, match=r"kv_link: no way for KV is called 'wifi'; nvlink, pcie, network, or"):
        KVLink.of("wifi", 800_000, 1)


@pytest.mark.parametrize("changes", [{"replicas": 1}, {"prefill_replicas": 2}, {"kv_groups": "full + window 64"}])
def test_pools_that_cannot_be(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="distserve needs engines that decode beside those for prompts"):
        check(split(**changes))


def test_no_engine_is_started_with_it() -> None:
    with pytest.raises(ConfigError, match="policy distserve is for virtual time only"):
        policy_arguments("distserve", {})
