"""The worker's model refuses each output that a model runner would compute garbage from, and takes good ones."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from virtual_rig import Case, StrictWorker

from ecoserve.serving.simulate.engine import WORD
from ecoserve.serving.simulate.worker import WorkerError, WorkerModel

BLOCK = 4


@dataclass
class New:
    req_id: str
    block_ids: tuple[list[int], ...]
    num_computed_tokens: int = 0
    prompt_token_ids: list[int] = field(default_factory=lambda: [9] * 6)
    prefill_token_ids: list[int] = field(default_factory=lambda: [9] * 6)


@dataclass
class Cached:
    req_ids: list[str] = field(default_factory=list)
    resumed_req_ids: set[str] = field(default_factory=set)
    new_block_ids: list[tuple[list[int], ...] | None] = field(default_factory=list)
    num_computed_tokens: list[int] = field(default_factory=list)
    all_token_ids: dict[str, list[int]] = field(default_factory=dict)


@dataclass
class Output:
    scheduled_new_reqs: list[New] = field(default_factory=list)
    scheduled_cached_reqs: Cached = field(default_factory=Cached)
    num_scheduled_tokens: dict[str, int] = field(default_factory=dict)
    scheduled_spec_decode_tokens: dict[str, list[int]] = field(default_factory=dict)
    finished_req_ids: set[str] = field(default_factory=set)
    preempted_req_ids: set[str] = field(default_factory=set)


def start(name: str, *blocks: int, tokens: int = 6, computed: int = 0) -> Output:
    return Output([New(name, (list(blocks),), computed)], num_scheduled_tokens={name: tokens})


def go_on(
    name: str, computed: int, *blocks: int, resumed: bool = False, sent: int = 0, tokens: int = 1, **rest: Any
) -> Output:
    cached = Cached(
        [name],
        {name} if resumed else set(),
        [(list(blocks),) if blocks else None],
        [computed],
        {name: [9] * 6 + [WORD] * (sent - 6)} if sent else {},
    )
    return Output([], cached, {name: tokens}, **rest)


@pytest.fixture(params=[1, 2], ids=["v1", "v2"])
def worker(request: pytest.FixtureRequest) -> WorkerModel:
    return WorkerModel(request.param, slots=2, block_sizes=[BLOCK])


def test_a_request_that_starts_and_goes_on(worker: WorkerModel) -> None:
    worker.execute(start("a", 1, 2))
    worker.execute(go_on("a", 6))
    worker.execute(go_on("a", 7))
    worker.execute(go_on("a", 8, 3))
    worker.execute(Output(finished_req_ids={"a"}))
    worker.execute(start("a", 1, 2))


def refused(worker: WorkerModel, output: Output, line: str) -> None:
    with pytest.raises(WorkerError, match=line):
        worker.execute(output)


def test_an_unknown_request(worker: WorkerModel) -> None:
    refused(worker, go_on("a", 6, sent=7), "request a is sent as cached and is not known")


def test_a_request_that_has_finished(worker: WorkerModel) -> None:
    worker.execute(start("a", 1, 2))
    refused(worker, go_on("a", 6, finished_req_ids={"a"}), "is not known")


def test_writing_beyond_its_blocks(worker: WorkerModel) -> None:
    refused(worker, start("a", 1), r"request a writes token 6 into 1 blocks")


def test_a_block_twice_in_a_table(worker: WorkerModel) -> None:
    refused(worker, start("a", 1, 1), "request a has a block twice")


def test_going_on_somewhere_else(worker: WorkerModel) -> None:
    worker.execute(start("a", 1, 2))
    refused(worker, go_on("a", 7), "request a goes on at token 7, the runner is at 6")


def test_more_requests_than_slots(worker: WorkerModel) -> None:
    worker.execute(start("a", 1, 2))
    worker.execute(start("b", 3, 4))
    if worker.runner == 2:
        refused(worker, start("c", 5, 6), "3 requests in a runner with 2 slots")
    else:
        worker.execute(start("c", 5, 6))  # V1's batch is who is scheduled now


def test_v1_tokens_of_who_was_away() -> None:
    worker = WorkerModel(1, 2, [BLOCK])
    worker.execute(start("a", 1, 2))
    worker.execute(start("b", 3, 4))
    refused(worker, go_on("a", 6), "request a was away for a step and its tokens are not sent")


def test_v1_who_leaves_and_comes_back_in_one_step() -> None:
    worker = WorkerModel(1, 2, [BLOCK])
    worker.execute(start("a", 1, 2))
    refused(worker, go_on("a", 6, 1, 2, resumed=True), "request a left and came back in one step")


def test_v1_a_reset_of_the_prefix_cache_may_do_that() -> None:
    worker = WorkerModel(1, 2, [BLOCK])
    worker.execute(start("a", 1, 2))
    worker.execute(go_on("a", 0, 5, 6, resumed=True, sent=7, tokens=7))


def test_v2_a_slot_that_was_not_freed() -> None:
    worker = WorkerModel(2, 2, [BLOCK])
    worker.execute(start("a", 1, 2))
    refused(worker, start("a", 1, 2), "request a is sent as new and still has a slot")
    freed = start("a", 1, 2)
    freed.preempted_req_ids = {"a"}
    worker = WorkerModel(2, 2, [BLOCK])
    worker.execute(start("a", 1, 2))
    worker.execute(freed)


# -- what the slots of the KV hold (the rig's own worker) -----------------------------------------------------


def strict(runner: int = 1) -> StrictWorker:
    return StrictWorker(Case((), runner=runner, blocks=12, block_size=BLOCK, max_model_len=48))


def test_reading_what_another_has_written() -> None:
    worker = strict()
    worker.execute(start("a", 1, 2))
    other = start("b", 2, 3)
    other.scheduled_new_reqs[0].prompt_token_ids = [8] * 6
    worker.execute(other)
    refused(worker, go_on("a", 6, sent=7), "request a reads KV at tokens 4 to 7 that is not its own")


def test_resuming_on_blocks_that_were_never_written() -> None:
    worker = strict()
    worker.execute(start("a", 1, 2))
    worker.execute(Output())
    refused(worker, go_on("a", 6, 3, 4, resumed=True, sent=7), "reads KV at tokens 0 to 4 that is not its own")


def test_a_shared_prefix_may_be_read() -> None:
    worker = strict()
    worker.execute(start("a", 1, 2))
    worker.execute(start("b", 1, 3, tokens=2, computed=4))


def test_a_prefix_that_is_not_the_same_may_not() -> None:
    worker = strict()
    worker.execute(start("a", 1, 2))
    other = start("b", 1, 3, tokens=2, computed=4)
    other.scheduled_new_reqs[0].prompt_token_ids = [8] * 6
    refused(worker, other, "request b reads KV at tokens 0 to 4 that is not its own")


def test_two_that_write_one_slot() -> None:
    both = start("a", 1, 2)
    both.scheduled_new_reqs += start("b", 2, 3).scheduled_new_reqs
    both.num_scheduled_tokens["b"] = 6
    refused(strict(), both, "requests a and b write one slot in one step")


def test_coming_back_without_its_last_token() -> None:
    worker = strict()
    worker.execute(start("a", 1, 2))
    worker.execute(Output())
    refused(worker, go_on("a", 6, 1, 2, resumed=True, sent=6), "request a comes back without all of its input tokens")
    worker = strict(runner=2)
    worker.execute(start("a", 1, 2))
    worker.execute(Output(preempted_req_ids={"a"}))
    refused(worker, start("a", 1, 2, tokens=1, computed=6), "request a is sent as new without all of its input tokens")
