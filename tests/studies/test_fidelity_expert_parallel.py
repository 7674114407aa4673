"""Replicas that share experts: in lockstep, and as slow as the slowest."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fidelity_expert_parallel import ExpertParallel, group_step_s

from ecoserve.serving.adapter.counting import CountingScheduler
from ecoserve.serving.simulate.cost import StepWork
from ecoserve.serving.simulate.engine import EngineShape, make_request, make_scheduler
from ecoserve.serving.simulate.gpu.hardware import Link
from ecoserve.serving.simulate.gpu.model import GpuModel, gpu_model
from ecoserve.serving.simulate.gpu.shapes import load_shape
from ecoserve.serving.simulate.loop import Arrival
from ecoserve.serving.simulate.replica import Replica


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GpuModel]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        shape = load_shape("qwen3-30b-a3b")
        yield gpu_model("rtx_pro_6000_server", shape, link=Link(20e-6, 16e9), expert_ranks=2)


def decodes(requests: int, context: int) -> StepWork:
    total = requests * context
    return StepWork(0, requests, total, [], total, context)


def test_a_step_is_its_slowest_part_and_the_experts_of_all_tokens(model: GpuModel) -> None:
    small, large = decodes(8, 500), decodes(64, 2000)
    together = group_step_s(model, [small, large])
    assert together == group_step_s(model, [large, small])
    experts = model.experts_s((8 + 64) // 2) + model.exchange_s([8, 64])
    assert together == pytest.approx(model.own_parts(large).total + experts)
    assert group_step_s(model, [large, large]) > together > group_step_s(model, [small, small])
    assert group_step_s(model, [large, StepWork()]) > model.own_parts(large).total


def test_what_replicas_send_goes_over_the_link(model: GpuModel) -> None:
    # To the experts and back in 48 layers; half of all tokens' 2,048 values of 2 bytes cross.
    once = 20e-6 + (8 + 64) * 2048 * 2 / 2 / 16e9
    assert model.exchange_s([8, 64]) == pytest.approx(2 * 48 * once)


@pytest.mark.parametrize("depth", [1, 2])
def test_every_request_ends_and_no_replica_is_ahead(model: GpuModel, depth: int) -> None:
    shape = EngineShape(kv_blocks=2000, max_model_len=4096, max_num_seqs=8, runner=depth, depth=depth)
    ends: dict[int, list[float]] = {0: [], 1: []}

    class Watch:
        def arrived(self, replica: int, row: object) -> None: ...

        def stepped(self, replica: int, scheduler: object, step: object) -> None:
            ends[replica].append(step.end_s)  # type: ignore[attr-defined]

        def ended(self, replica: int, row: object, at_s: float) -> None: ...

    def run() -> list[tuple[float | None, float | None, int]]:
        replicas = [Replica(make_scheduler(CountingScheduler, shape), model, depth, index=i) for i in range(2)]
        arrivals = [
            Arrival(
                at_s=0.01 * i,
                request=make_request(f"r{i}", [i + 3] * (20 + 60 * i), 12, 0.01 * i),
                response_tokens=5 + i,
            )
            for i in range(6)
        ]
        rows = ExpertParallel(replicas, model, depth, Watch()).run(arrivals)
        return [(r.first_token_s, r.finish_s, r.output_tokens) for r in rows]

    rows = run()
    assert [tokens for *_, tokens in rows] == [5 + i for i in range(6)]
    assert all(first is not None and last is not None and first < last for first, last, _ in rows)
    assert ends[0]
    assert ends[1]
    # Steps that both take part in end at the same time.
    shared = set(ends[0]) & set(ends[1])
    assert len(shared) > 0.5 * min(len(ends[0]), len(ends[1]))
    assert run() == rows
