"""The rule of each compared system, on cases worked by hand."""

from __future__ import annotations

from typing import Any

import pytest
from core_rig import a_task, holder
from virtual_rig import drive

from ecoserve.lengths import LengthDistribution
from ecoserve.serving.baselines.fastserve import BestOfBatch, SkipJoin, queue_of
from ecoserve.serving.baselines.past_future import PastFuture, peak_blocks
from ecoserve.serving.baselines.volume import Volume
from ecoserve.serving.core import keys
from ecoserve.serving.core.forecast import Forecast
from ecoserve.serving.core.kv_use import Group, KVUse
from ecoserve.serving.core.ledger import Ledger
from ecoserve.serving.core.orderings import Ordering, Pace
from ecoserve.serving.core.policies import STOCK_POLICIES
from ecoserve.serving.core.settings import SchedulerSettings
from ecoserve.serving.core.tasks import Task, TaskState
from ecoserve.serving.simulate.engine import WORD, EngineShape, make_request, make_scheduler
from ecoserve.serving.simulate.loop import Arrival

SETTINGS = SchedulerSettings(reserve=0.0)
KV_USE = KVUse([Group(16)])


def a_policy(cls: Any, ordering: Ordering, *tasks: Task, usable: int = 100) -> Any:
    ledger = Ledger(usable, KV_USE)
    ledger.tasks = {t.request_id: t for t in tasks}
    ledger.set_holders([t for t in tasks if t.state is not TaskState.WAITING])
    policy = cls(SETTINGS, ledger, Forecast(KV_USE, 4096), ordering)
    policy.begin_step()
    return policy


# -- FastServe -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "generated", "queue"),
    [
        (1, 0, 0),
        (128, 0, 0),
        (129, 0, 1),  # two iterations: the first queue whose quantum covers it
        (500, 0, 2),
        (513, 0, 3),
        (10, 1, 0),  # the first token comes with the prompt
        (10, 2, 1),  # the quantum of one iteration is used up
        (10, 3, 1),
        (10, 4, 2),  # 1 + 2 iterations are
        (10, 7, 2),
        (10, 8, 3),
        (500, 1, 2),  # joined at queue 2 with a quantum of four iterations, all used by its prompt
        (500, 2, 3),
    ],
)
def test_fastserve_skips_queues_and_goes_down_by_doubling_quanta(prompt: int, generated: int, queue: int) -> None:
    assert queue_of(prompt, generated) == queue


def test_fastserve_runs_the_first_of_all_by_queue_and_those_that_waited_long() -> None:
    old = holder("old", TaskState.DECODE, 60, prompt_tokens=10, generated=50)
    young = holder("young", TaskState.DECODE, 12, prompt_tokens=10, generated=2, arrival_s=1.0)
    new = a_task("new", arrival_s=2.0, waits_since_s=2.0)
    policy = a_policy(BestOfBatch, SkipJoin(SETTINGS, Pace(512)), old, young, new)
    assert policy.gives_way([old, young], 3, 2.0) == []
    assert policy.gives_way([old, young], 2, 2.0) == [old]
    assert not policy.admits_decode(old)
    old.state, old.waits_since_s = TaskState.PAUSED, 2.0
    policy.gives_way([young], 2, 121.0)
    assert not policy.admits_decode(old)
    policy.gives_way([young], 2, 123.0)  # max_wait_s is 120
    assert policy.admits_decode(old)


# -- Past-Future and smallest volume first ----------------------------------------------------------------


def test_past_future_finds_the_peak_at_the_end_of_a_request() -> None:
    # Blocks of 16. After 16 tokens the first ends: 2 + 3 blocks; after 160 the second: 12.
    assert peak_blocks([16, 32], [16, 160], KV_USE) == 12
    # Both end at once: 11 + 12.
    assert peak_blocks([16, 32], [160, 160], KV_USE) == 23
    assert peak_blocks([], [], KV_USE) == 0


@pytest.mark.parametrize(("usable", "starts"), [(23, True), (22, False)])
def test_past_future_admits_what_stays_below_the_peak(usable: int, starts: bool) -> None:
    lengths = LengthDistribution.point(160)
    first = holder("first", TaskState.DECODE, 16, prompt_tokens=16, lengths=lengths)
    policy = a_policy(PastFuture, Ordering(SETTINGS, Pace(512)), first, usable=usable)
    newcomer = a_task("new", prompt_tokens=32, lengths=lengths)
    assert policy.admits_prompt(newcomer) is starts
    policy.admitted(newcomer)
    assert not policy.admits_prompt(a_task("third", prompt_tokens=16, lengths=lengths))


def test_past_future_draws_lengths_beyond_what_is_out() -> None:
    policy = a_policy(PastFuture, Ordering(SETTINGS, Pace(512)))
    lengths = LengthDistribution((0, 100, 200), (0.5, 0.5))
    drawn = [policy.rest(a_task(f"r{i}", lengths=lengths)) for i in range(200)]
    assert sum(n <= 100 for n in drawn) == pytest.approx(100, abs=20)
    assert all(0 < policy.rest(a_task(f"r{i}", lengths=lengths, generated=150)) <= 50 for i in range(20))


def test_volume_is_kv_over_the_steps() -> None:
    # Two tokens behind a prompt of ten hold 11 and 12 tokens; one token behind a prompt of twenty, 21.
    by = Volume(SETTINGS, Pace(512))
    two, one = (
        a_task(prompt_tokens=p, lengths=LengthDistribution.point(n), generated=0) for p, n in ((10, 2), (20, 1))
    )
    assert (by.rank(two, 0.0, True), by.rank(one, 0.0, True)) == ((23.0,), (21.0,))


# -- on vLLM's scheduler ----------------------------------------------------------------------------------


SMALL: dict[str, Any] = {"kv_blocks": 20, "max_model_len": 200, "max_num_batched_tokens": 200, "max_num_seqs": 8}


def stock(policy: str, **shape: Any) -> Any:
    from pkgutil import resolve_name

    row = STOCK_POLICIES[policy]
    chunked = row.arguments.get("enable_chunked_prefill", True)
    return make_scheduler(resolve_name(row.scheduler), EngineShape(chunked_prefill=chunked, **shape))


def a_request(name: str, prompt: int, at_s: float = 0.0, predicted: int = 1) -> Any:
    lengths = LengthDistribution.point(predicted).to_wire()
    return make_request(name, [WORD] * prompt, 100, at_s, {keys.LENGTHS: lengths})


@pytest.mark.parametrize("depth", [1, 2])
def test_vllm_2024_computes_whole_prompts_while_decodes_stall(depth: int) -> None:
    scheduler = stock("vllm-2024", **SMALL, depth=depth)
    steps: list[dict[str, int]] = []
    arrivals = [
        Arrival(at, a_request(f"r{i}", prompt, at), 40)
        for i, (prompt, at) in enumerate([(90, 0.0), (100, 0.0), (60, 0.2), (150, 0.2)])
    ]
    result = drive(scheduler, arrivals, depth, on_step=lambda o: steps.append(dict(o.num_scheduled_tokens)))
    assert [r.output_tokens for r in result.rows] == [40] * 4
    prompts = [step for step in steps if max(step.values(), default=0) > 1]
    assert prompts[0] == {"r0": 90, "r1": 100}
    assert all(min(step.values()) > 1 for step in prompts), "a forward has prompts and decodes"
    first_of = {name: step[name] for step in reversed(prompts) for name in step}
    assert first_of == {"r0": 90, "r1": 100, "r2": 60, "r3": 150}
    # The third fits at once, and decodes stall for it; the last waits until there are ten blocks.
    third = next(i for i, step in enumerate(steps) if "r2" in step)
    assert steps[third] == {"r2": 60}
    assert {"r0", "r1"} <= set(steps[third - 1])
    assert min(i for i, step in enumerate(steps) if "r3" in step) > third + 5


def test_vllm_2024_goes_on_where_a_prompt_that_seems_to_fit_does_not() -> None:
    """Two groups of layers take twice the blocks that one does: decodes must not stall for ever."""
    scheduler = stock("vllm-2024", **SMALL | {"kv_blocks": 30, "kv_groups": "full + window 64"})
    arrivals = [Arrival(0.0, a_request(f"r{i}", 120), 40) for i in range(3)]
    assert [r.output_tokens for r in drive(scheduler, arrivals).rows] == [40] * 3


def test_multires_takes_the_request_nearest_to_what_is_free() -> None:
    scheduler = stock("multires", kv_blocks=100, max_model_len=1500, max_num_batched_tokens=1000, max_num_seqs=8)
    # Compute free: 1000 of 1000, KV: 100 of 100 blocks. Distances squared: 0.25 + 0.16, 0.01 + 0.64, 0.81 + 0.81.
    requests = {"middle": (500, 460), "long prompt": (900, 0), "small": (100, 204)}
    for name, (prompt, predicted) in requests.items():
        scheduler.add_request(a_request(name, prompt, predicted=max(1, predicted)))
    scheduler.free_tokens = 1000
    found = {r.request_id: scheduler.distance(r) for r in scheduler.waiting}
    assert found["long prompt"] == pytest.approx(0.01 + (1 - 901 / 1600) ** 2)
    assert found["middle"] == pytest.approx(0.25 + (1 - 600 / 1600) ** 2)  # its limit is 100 tokens
    order = list(scheduler.schedule().num_scheduled_tokens)
    # Once 900 tokens are taken, the small one is nearest to the 100 that are left.
    assert order == ["long prompt", "small"]
