"""The peak demand of a load, counted without a scheduler, is vLLM's own with room for all requests."""

from __future__ import annotations

from typing import Any

import pytest

from ecoserve.data import Record
from ecoserve.serving.simulate.cost import LinearCost, StepWork, demand_peak
from ecoserve.serving.simulate.engine import PromptIds
from ecoserve.serving.simulate.loop import run_replicas
from ecoserve.serving.simulate.replica import Replica
from ecoserve.serving.simulate.run import SimulateSettings, _arrival, _load, _scheduler
from ecoserve.serving.workload import LoadRequest


def settings(**changes: Any) -> SimulateSettings:
    known: dict[str, Any] = {
        "trace": "synthetic:300",
        "policy": "vllm",
        "lengths": "none",
        "rate_rps": 25.0,
        "requests": 60,
        "max_model_len": 1500,
        "max_tokens": 700,
        "max_num_seqs": 60,
    }
    return SimulateSettings(**(known | changes))


class Split:
    """A cost whose host takes its part."""

    def seconds(self, work: StepWork) -> float:
        return 0.010 + 1e-4 * work.prefill_tokens + 1e-6 * sum(n * b for n, b in work.chunks)

    def host_s(self, work: StepWork) -> float:
        return 0.001 + 5e-4 * work.requests

    def launch_s(self, work: StepWork) -> float:
        return 0.001


@pytest.mark.parametrize("cost", [LinearCost(), Split()], ids=["linear", "host"])
@pytest.mark.parametrize(
    "changes",
    [{}, {"rate_rps": 200.0}, {"max_num_batched_tokens": 96}, {"block_size": 32, "seed": 3}, {"rate_rps": 0.5}],
)
def test_it_is_vllms_own_peak_with_room_for_all(changes: dict[str, Any], cost: Any) -> None:
    chosen = settings(**changes)
    load = _load(chosen)
    room = chosen.requests * -(-chosen.max_model_len // chosen.block_size)
    replica = Replica(_scheduler(chosen, room, cost), cost)
    prompts = PromptIds(load)
    run_replicas([replica], [_arrival(chosen, prompts, r) for r in load])
    assert demand_peak(load, cost, 1, chosen.block_size, chosen.max_num_batched_tokens) == replica.peak_blocks
    assert replica.peak_blocks > 0


def request(at: float, prompt: int, answer: int) -> LoadRequest:
    return LoadRequest(f"r{at}", at, Record("c"), prompt, answer, None)


def test_a_demand_that_can_be_counted_by_hand() -> None:
    cost = LinearCost(step_s=1.0, prefill_token_s=0, context_token_s=0)
    assert demand_peak([], cost, 1, 16, 100) == 0
    # 16 + 16 tokens: the last token of an answer is never written.
    assert demand_peak([request(0.0, 16, 16)], cost, 1, 16, 100) == 2
    assert demand_peak([request(0.0, 16, 17)], cost, 1, 16, 100) == 2
    assert demand_peak([request(0.0, 16, 18)], cost, 1, 16, 100) == 3
    apart = [request(0.0, 16, 2), request(50.0, 16, 2)]
    assert demand_peak(apart, cost, 1, 16, 100) == 2
    assert demand_peak([request(0.0, 16, 2), request(0.0, 16, 2)], cost, 1, 16, 100) == 4


def test_at_depth_two_what_the_host_hides_does_not_pile_up() -> None:
    slow_host = Split()
    load = [request(0.02 * i, 64, 200) for i in range(80)]
    one, two = (demand_peak(load, slow_host, depth, 16, 2048) for depth in (1, 2))
    assert two <= one
