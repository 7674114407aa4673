"""ecoserve against vLLM's default in virtual time: where memory is short and where it is not. Nothing here is timed."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pytest

from ecoserve.serving.simulate.run import SimulateSettings, simulate

REQUESTS = 120


@lru_cache(maxsize=32)
def a_run(policy: str, lengths: str, depth: int, seed: int, blocks: int, rate_rps: float) -> dict[str, Any]:
    """The summary of one run on the synthetic trace."""
    settings = SimulateSettings(
        trace="synthetic:600",
        policy=policy,
        lengths=lengths,
        rate_rps=rate_rps,
        seed=seed,
        requests=REQUESTS,
        depth=depth,
        blocks=blocks,
        max_model_len=2048,
        max_tokens=1000,
    )
    return simulate(settings).summary()


PRESSURE = {"blocks": 180, "rate_rps": 14.0}
NO_PRESSURE = {"blocks": 2400, "rate_rps": 4.0}


@pytest.mark.parametrize(("lengths", "depth"), [("true", 1), ("noise:0.6", 2)])
def test_under_pressure_it_hardly_preempts_and_answers_sooner(lengths: str, depth: int) -> None:
    pairs = [
        (a_run("vllm", "none", depth, seed, **PRESSURE), a_run("ecoserve", lengths, depth, seed, **PRESSURE))
        for seed in (0, 1)
    ]
    for stock, ours in pairs:
        assert stock["kv_demand_peak"] >= 1.3, "this is not pressure"
        assert stock["preemptions"] >= 100
        assert ours["normalized_latency_mean_ms"] < 0.7 * stock["normalized_latency_mean_ms"]
        assert ours["e2el_mean_ms"] < stock["e2el_mean_ms"]
        assert ours["completed"] == stock["completed"] == REQUESTS
    for counter, share in (("preemptions", 3), ("recomputed_tokens", 4 / 3)):
        stocks, own = (sum(run[counter] for run in runs) for runs in zip(*pairs, strict=True))
        assert own <= stocks / share, f"{counter}: {own} of {stocks}"


@pytest.mark.parametrize(("lengths", "depth"), [("true", 1), ("none", 2)])
def test_without_pressure_there_is_nothing_to_gain_or_to_lose(lengths: str, depth: int) -> None:
    stock = a_run("vllm", "none", depth, 0, **NO_PRESSURE)
    ours = a_run("ecoserve", lengths, depth, 0, **NO_PRESSURE)
    assert stock["kv_demand_peak"] <= 0.7, "this is pressure"
    assert stock["preemptions"] == ours["preemptions"] == ours["pauses"] == 0
    assert ours["e2el_mean_ms"] == pytest.approx(stock["e2el_mean_ms"], rel=0.01)
    assert ours["throughput_rps"] == pytest.approx(stock["throughput_rps"], rel=0.01)


def test_what_a_run_says_is_the_same_every_time() -> None:
    first, second = (run("ecoserve", "noise:0.6", 2, 1, **PRESSURE) for run in (a_run, a_run.__wrapped__))
    timed = {k for k in first if k.startswith(("schedule_", "update_"))}
    assert {k: v for k, v in first.items() if k not in timed} == {k: v for k, v in second.items() if k not in timed}
