"""One run in virtual time, from settings to a summary."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from ecoserve.errors import ConfigError, InputError, TraceError
from ecoserve.serving.adapter.policies import policy_arguments
from ecoserve.serving.core import keys
from ecoserve.serving.forward_run import target_forward_size
from ecoserve.serving.length_source import LengthSource
from ecoserve.serving.simulate.cost import LinearCost, alone_s
from ecoserve.serving.simulate.engine import PromptIds
from ecoserve.serving.simulate.run import (
    SimulateSettings,
    _arrival,
    _scheduler,
    demand_peak_blocks,
    request_slo,
    simulate,
)
from ecoserve.serving.simulate.settings import forward_times, machine_of
from ecoserve.serving.workload import make_load, trace_for

SMALL: dict[str, Any] = {
    "trace": "synthetic:200",
    "rate_rps": 20.0,
    "requests": 25,
    "blocks": 120,
    "max_model_len": 1024,
    "max_tokens": 300,
    "max_num_batched_tokens": 512,
}


def settings(**changes: Any) -> SimulateSettings:
    return SimulateSettings(**(SMALL | changes))


def scheduler(**changes: Any) -> Any:
    chosen = settings(**changes)
    return _scheduler(chosen, 120, machine_of(chosen).cost)


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize(
    "policy", ["ecoserve", "ecoserve-exact", "ecoserve-d", "vllm", "vllm-watermark", "vllm-priority", "order"]
)
def test_every_policy_serves_the_load(policy: str, depth: int) -> None:
    result = simulate(settings(policy=policy, depth=depth, lengths="noise:0.4"))
    summary = result.summary()
    assert (summary["policy"], summary["lengths"], summary["depth"]) == (policy, "noise:0.4", depth)
    assert summary["completed"] == summary["requests"] == 25
    assert summary["blocks"] == 120
    assert summary["kv_demand_peak"] > 0
    assert summary["output_tokens_per_s"] > 0
    assert 0 < summary["kv_used_mean"] < 1
    assert all(r.predicted_tokens and r.predicted_tokens >= 1 for r in result.rows)


def test_the_load_does_not_depend_on_policy_or_predictions() -> None:
    def load(**changes: Any) -> list[tuple[Any, ...]]:
        rows = simulate(settings(**changes)).rows
        return [(r.request_id, r.arrival_s, r.prompt_tokens, r.output_tokens) for r in rows]

    first = load(policy="vllm")
    assert load(policy="ecoserve") == first
    assert load(policy="ecoserve-exact", lengths="none", depth=2) == first
    assert load(policy="vllm", seed=1) != first


@pytest.mark.parametrize(("lengths", "predicted"), [("true", True), ("noise:1", True), ("none", False)])
def test_predictions_are_in_the_rows(lengths: str, predicted: bool) -> None:
    rows = simulate(settings(lengths=lengths)).rows
    assert all((r.predicted_tokens is not None) is predicted for r in rows)
    if lengths == "true":
        assert [r.predicted_tokens for r in rows] == [r.output_tokens for r in rows]


def test_policies_of_vllm_itself_are_vllms_settings() -> None:
    assert scheduler(policy="vllm").kv_cache_manager.watermark_blocks == 0
    assert scheduler(policy="vllm-watermark").kv_cache_manager.watermark_blocks == 6
    assert scheduler(policy="vllm-priority").policy.value == "priority"
    assert scheduler(policy="order").policy.value == "priority"
    assert type(scheduler(policy="vllm")).__name__ == "CountingScheduler"
    assert type(scheduler(policy="ecoserve-d")).__name__ == "EcoServeScheduler"
    whole = scheduler(policy="vllm-2024")
    assert (whole.scheduler_config.enable_chunked_prefill, whole.max_num_scheduled_tokens) == (False, 1024)


@pytest.mark.parametrize(("context_s", "spare"), [(0.0, True), (1e-5, False)])
def test_the_bound_has_true_lengths_and_kv_to_spare_where_that_helps(context_s: float, spare: bool) -> None:
    cost = LinearCost(context_token_s=context_s)
    pressed = {"rate_rps": 40.0, "requests": 40, "cost": cost, "slo_scale": 3.0}
    bound = simulate(settings(policy="bound", lengths="none", **pressed))
    real = simulate(settings(policy="ecoserve", lengths="true", **pressed))
    assert [r.predicted_tokens for r in bound.rows] == [r.output_tokens for r in bound.rows]
    assert [r.deadline_s for r in bound.rows] == [r.deadline_s for r in real.rows]
    assert (bound.summary()["blocks"] > 120) is spare
    latency = [s.summary()["normalized_latency_mean_ms"] for s in (bound, real)]
    assert latency[0] < latency[1] if spare else latency[0] == latency[1]


def test_the_bound_pays_nothing_for_the_host_and_is_no_policy_of_an_engine() -> None:
    on_gpu = {"gpu": "h100_sxm", "model": "llama-3.1-8b", "requests": 3, "blocks": None}
    bound, real = (simulate(settings(policy=p, lengths="true", **on_gpu)) for p in ("bound", "ecoserve"))
    assert bound.summary()["e2el_mean_ms"] < 0.95 * real.summary()["e2el_mean_ms"]
    with pytest.raises(ConfigError, match="policy bound is for virtual time only"):
        policy_arguments("bound", {})


@pytest.mark.parametrize("policy", ["hrrn", "volume", "multires"])
def test_a_policy_of_lengths_is_refused_without_any(policy: str) -> None:
    with pytest.raises(ValidationError, match=f"policy {policy} decides by predicted lengths; name a source"):
        settings(policy=policy, lengths="none")


#: A forward takes 8 ms, and 0.1 ms a token: 40 tokens in 12 ms.
STRAIGHT = LinearCost(step_s=0.008, prefill_token_s=1e-4, decode_s=0.0, context_token_s=0.0)


@pytest.mark.parametrize(
    ("policy", "changes", "tokens"),
    [
        ("sarathi", {"slo_tpot_ms": 18.0}, 96),
        ("sarathi", {"slo_tpot_ms": 18.0, "tell_slo": False}, 512),
        ("sarathi", {"slo_tpot_ms": 1.0}, 16),
        # Best at 8,192: 9,903 tokens/s. Nine tenths of it: n / (0.008 + 0.0001 n) = 8,913.
        ("fastgen", {}, 656),
        ("fastgen", {"gpu": "a100_sxm", "model": "llama-13b"}, None),
    ],
)
def test_token_budgets(policy: str, changes: dict[str, Any], tokens: int | None) -> None:
    """Sarathi: the largest profiled forward within the SLO; FastGen: where throughput is saturated."""
    found = scheduler(policy=policy, cost=STRAIGHT, max_num_seqs=8, **changes).max_num_scheduled_tokens
    if tokens is None:
        chosen = settings(policy=policy, **changes)
        tokens = target_forward_size(forward_times(machine_of(chosen).cost)).tokens
        assert 128 < tokens < 2048
    assert found == tokens


def test_priority_is_the_predicted_length() -> None:
    chosen = settings(policy="vllm-priority", lengths="true")
    load = make_load(
        trace_for("synthetic:200", None, None, None),
        requests=5,
        rate_rps=5.0,
        seed=0,
        lengths=LengthSource.parse("true"),
        max_tokens=300,
        max_prompt_tokens=700,
    )
    prompts = PromptIds(load)
    for one in load:
        assert _arrival(chosen, prompts, one).request.make(0.0).priority == one.response_tokens
        assert _arrival(settings(policy="vllm"), prompts, one).request.make(0.0).priority == 0


@pytest.mark.parametrize(("depth", "runner", "v2"), [(1, None, False), (2, None, True), (1, 2, True), (2, 1, False)])
def test_which_runners_rules_hold(depth: int, runner: int | None, v2: bool) -> None:
    assert scheduler(depth=depth, runner=runner).use_v2_model_runner is v2


def test_knobs_reach_the_scheduler_and_bad_ones_are_named() -> None:
    assert scheduler(scheduler={"history_window": 64}).settings.history_window == 64
    with pytest.raises(ConfigError, match="ecoserve scheduler setting zed"):
        simulate(settings(scheduler={"zed": 1.0}))


def test_deadlines_are_multiples_of_an_idle_engines_time() -> None:
    tight, loose = (simulate(settings(slo_scale=scale)) for scale in (1.0, 4.0))
    assert all(r.deadline_s is not None and r.deadline_s > r.arrival_s for r in tight.rows)
    for a, b in zip(tight.rows, loose.rows, strict=True):
        assert b.deadline_s is not None
        assert a.deadline_s is not None
        assert b.deadline_s - b.arrival_s == pytest.approx(4 * (a.deadline_s - a.arrival_s))
    low, high = tight.summary()["slo_attainment"], loose.summary()["slo_attainment"]
    assert 0 <= low < high <= 1
    assert simulate(settings()).summary()["slo_attainment"] is None


def test_requests_carry_their_slo_and_nothing_of_their_length() -> None:
    def carried(prompt_tokens: int = 50, **slo: Any) -> dict[str, float]:
        stated = settings(**slo)
        return request_slo(stated, machine_of(stated).cost, prompt_tokens)

    assert carried() == {}
    assert carried(slo_ttft_ms=500.0) == {keys.SLO_TTFT: 0.5}
    assert carried(slo_ttft_ms=500.0, slo_tpot_ms=40.0, tell_slo=False) == {}
    scaled = carried(slo_scale=2.0)
    assert scaled.keys() == {keys.SLO_TPOT}, "the last token has a deadline, not the first"
    cost = machine_of(settings()).cost
    whole = 2.0 * alone_s(cost, 50, 200, 1, 512)
    assert 200 * scaled[keys.SLO_TPOT] == pytest.approx(whole, rel=0.05)
    assert carried(slo_scale=2.0, slo_tpot_ms=1e-3)[keys.SLO_TPOT] == 1e-6, "the stricter of the two"
    assert carried(500, slo_scale=2.0)[keys.SLO_TPOT] > scaled[keys.SLO_TPOT]


@pytest.mark.parametrize("ordering", ["slo", "paper"])
def test_an_order_by_deadlines_differs_only_if_requests_carry_them(ordering: str) -> None:
    def order(**slo: Any) -> list[float]:
        knobs = {"ordering": ordering}
        rows = simulate(settings(policy="ecoserve", lengths="noise:0.4", scheduler=knobs, blocks=66, **slo)).rows
        return [row.first_token_s or 0.0 for row in rows]

    without = order()
    assert order(slo_scale=1.2, tell_slo=False) == without
    assert order(slo_scale=1.2) != without


def test_an_idle_engine_meets_its_own_deadlines() -> None:
    idle = simulate(settings(requests=5, rate_rps=0.05, slo_scale=1.05, policy="vllm"))
    assert idle.summary()["slo_attainment"] == 1.0


def test_the_demand_is_of_the_load_not_of_the_policy() -> None:
    peaks = {
        demand_peak_blocks(settings(policy=p, depth=d, blocks=b, lengths=lengths))
        for p, d, b, lengths in (
            ("vllm", 1, 120, "none"),
            ("ecoserve", 2, 600, "true"),
            ("ecoserve-d", 1, 64, "noise:2"),
        )
    }
    assert len(peaks) == 1
    assert demand_peak_blocks(settings(rate_rps=0.1)) < peaks.pop() / 3


def test_prompts_of_a_load_share_no_prefix() -> None:
    summary = simulate(settings(prefix_caching=True, policy="vllm")).summary()
    without = simulate(settings(prefix_caching=False, policy="vllm")).summary()
    assert summary["e2el_mean_ms"] == without["e2el_mean_ms"]


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"policy": "orca2"}, "policy 'orca2' is not known; one of ecoserve, "),
        ({"max_tokens": 1024}, "max_tokens 1024 leaves no room for a prompt"),
        ({"blocks": 60}, "60 KV blocks of 16 tokens cannot hold one request of max_model_len 1024"),
        ({"trace": "synthetic:none"}, "synthetic:none is not a number of rows"),
        ({"trace": "no/such/file.json"}, "no/such/file.json"),
        ({"lengths": "guessed"}, "'guessed' is none of true, none, predicted:CHECKPOINT, noise:SIGMA"),
        ({"lengths": "noise:much"}, "noise:much is not a log-standard deviation"),
        ({"lengths": "predicted:/no/such/checkpoint"}, "/no/such/checkpoint"),
        ({"rate_rps": None}, "the trace has no recorded arrivals"),
        ({"split": "valid"}, "no rows of split 'valid'"),
    ],
)
def test_what_cannot_be_run_is_said_in_one_line(changes: dict[str, Any], line: str) -> None:
    with pytest.raises(InputError) as caught:
        simulate(settings(**changes))
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("changes", [{"rate_rps": 0.0}, {"depth": 3}, {"requests": 0}, {"runner": 4}, {"polcy": "x"}])
def test_settings_that_make_no_sense(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        settings(**changes)


def test_a_trace_of_too_long_prompts_is_an_error() -> None:
    with pytest.raises(TraceError, match="at most 1 prompt tokens"):
        simulate(settings(max_model_len=301, blocks=20))
