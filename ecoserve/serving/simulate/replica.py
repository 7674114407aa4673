"""One simulated engine: a vLLM scheduler, a step cost, and its own clock, driven one event at a time.

Mirrors vLLM's engine core, which either *starts* a step while fewer than ``depth`` are in flight and there is something
to schedule, or *takes* the output of the oldest one. At depth 2 (asynchronous scheduling) step N + 1 starts before N's
output is there. The host is busy for its part of a start; the GPU begins a step when the host has launched it and the
step before is done: at depth 1 a step's period is host + GPU, at depth 2 the longer of the two.
"""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import takewhile
from typing import Any, Final, Literal, Protocol

from ecoserve.serving.core.counters import Gauges
from ecoserve.serving.routing import OpenWork, Report
from ecoserve.serving.runs import KVSeries, RequestRow, wasted_blocks
from ecoserve.serving.simulate.cost import StepCost, StepWork
from ecoserve.serving.simulate.engine import EOS, WORD
from ecoserve.serving.simulate.worker import WorkerModel

#: What scheduling costs the host: the cost model's figure, this machine's measured CPU time, or nothing.
Charge = Literal["model", "measured", "none"]

#: Events at one time happen in this order: outputs, then arrivals, then steps.
TAKE: Final = 0
ARRIVE: Final = 1
START: Final = 2


@dataclass(slots=True)
class Live:
    """A request on a replica, and what only the simulation knows of it."""

    request: Any
    response_tokens: int
    row: RequestRow


@dataclass(slots=True)
class Step:
    """A step that was started, as a recorder sees it. Times in virtual seconds."""

    work: StepWork
    output: Any
    #: when the host began and how long it took; when the GPU began and ended
    began_s: float
    host_s: float
    start_s: float
    end_s: float
    gauges: Gauges


class Recorder(Protocol):
    """Gets every event of a replica, in order of its time."""

    def arrived(self, replica: int, row: RequestRow) -> None: ...

    def stepped(self, replica: int, scheduler: Any, step: Step) -> None: ...

    def ended(self, replica: int, row: RequestRow, at_s: float) -> None: ...


@dataclass(slots=True)
class Flight:
    """A step whose output is still to come: vLLM's scheduler output, and the requests that it samples a token for."""

    output: Any
    end_s: float
    samples: set[str]


def step_work(output: Any, requests: Mapping[str, Any]) -> tuple[StepWork, set[str]]:
    """What a step computes, and the names of the requests whose next token it samples.

    ``output`` is what vLLM's ``schedule()`` has just returned, ``requests`` are the scheduler's, computed tokens
    counted.
    """
    work = StepWork()
    chunks = work.chunks
    samples = set()
    for name, tokens in output.num_scheduled_tokens.items():
        request = requests[name]
        computed = request.num_computed_tokens
        work.context_tokens += computed
        # At depth 2 the first decode is scheduled before the prompt's token is there: count what is computed.
        drafted = name in output.scheduled_spec_decode_tokens
        if not drafted and (tokens > 1 or computed <= request.num_prompt_tokens):
            work.prefill_tokens += tokens
            chunks.append((tokens, computed - tokens))
        else:
            work.decodes += tokens
            work.decode_context_tokens += computed
            if computed > work.decode_longest_tokens:
                work.decode_longest_tokens = computed
        if not request.is_prefill_chunk:
            samples.add(name)
    return work, samples


def tokens_out(name: str, given: int, response_tokens: int, drafts: int = 0, acceptance: float = 0.0) -> list[int]:
    """What a step samples for a response that has ``given`` tokens: its drafts up to the first refused, and one more.

    Each draft is accepted with probability ``acceptance``, drawn from the request's name and the token's place.
    """
    places = range(given, given + drafts)
    accepted = sum(1 for _ in takewhile(lambda at: random.Random(f"{name} {at}").random() < acceptance, places))
    count = min(accepted + 1, response_tokens - given)
    return [WORD] * (count - 1) + [EOS if given + count >= response_tokens else WORD]


def update_drafts(scheduler: Any, names: Sequence[str]) -> None:
    """Give a synchronous scheduler the next drafts, as vLLM's engine core does; an asynchronous one assumes them."""
    if scheduler.num_spec_tokens and not scheduler.scheduler_config.async_scheduling:
        from vllm.v1.outputs import DraftTokenIds

        scheduler.update_draft_token_ids(
            DraftTokenIds(list(names), [[WORD] * scheduler.num_spec_tokens for _ in names])
        )


class _ReplicaClock:
    def __init__(self, replica: Replica) -> None:
        self._replica = replica

    def now(self) -> float:
        return self._replica.now

    def arrival(self, arrival_time: float) -> float:
        return arrival_time


class Replica:
    """One engine in virtual time: a ``CountingScheduler`` or a subclass, with ``depth`` steps in flight.

    ``worker`` checks every output as a model runner would. ``charge``: what scheduling costs; ``measured``, this
    thread's CPU time, makes results differ from run to run. ``acceptance``: of draft tokens, where the scheduler has
    any. ``stages``: of a pipeline, each of which takes an equal part of a step's time.
    """

    #: this many steps in a row without a token, with requests waiting, are a hang
    MAX_IDLE_STEPS: Final = 64

    def __init__(
        self,
        scheduler: Any,
        cost: StepCost,
        depth: int = 1,
        worker: WorkerModel | None = None,
        *,
        charge: Charge = "model",
        index: int = 0,
        acceptance: float = 0.0,
        stages: int = 1,
    ) -> None:
        if not 1 <= depth <= stages + 1:
            raise ValueError(f"depth must be 1 to {stages + 1}, not {depth}")
        self.acceptance = acceptance
        self.stages = stages
        self.scheduler = scheduler
        self.cost = cost
        self.depth = depth
        self.worker = worker
        self.charge = charge
        self.index = index
        self.on_step: Callable[[Any], None] | None = None
        self.on_end: Callable[[Replica, RequestRow], None] | None = None
        self.recorder: Recorder | None = None
        self.now = 0.0
        self.live: dict[str, Live] = {}
        self.schedule_s: list[float] = []
        self.update_s: list[float] = []
        self.kv = KVSeries(scheduler.usable_blocks, index)
        #: the most blocks that were held at once
        self.peak_blocks = 0
        #: prompt tokens that new requests found in the prefix cache
        self.cached_tokens = 0
        #: handed over and not yet given to the scheduler
        self.inbox: deque[Live] = deque()
        self._aborts: list[tuple[float, str]] = []
        self._flights: deque[Flight] = deque()
        self._gpu_free_s = 0.0
        self._next: int | None = None
        self._idle = 0
        scheduler.clock = _ReplicaClock(self)
        scheduler.on_pause = self._paused
        self._wasted, self._wasted_at = 0.0, -1

    # -- events ----------------------------------------------------------------------------------------------

    def next_event(self) -> tuple[float, int] | None:
        """Time and kind of what this replica does next; None if it waits for a request."""
        if self._next is None:
            return None
        return (max(self.now, self._flights[0].end_s) if self._next == TAKE else self.now, self._next)

    def hand(self, live: Live, abort_at_s: float | None = None) -> None:
        """Give a request to this replica; its scheduler gets it when the next step starts."""
        self.inbox.append(live)
        if abort_at_s is not None:
            heappush(self._aborts, (abort_at_s, live.row.request_id))
        if self._next is None:
            self.now = max(self.now, live.row.arrival_s)
            self._next = START
        if self.recorder is not None:
            self.recorder.arrived(self.index, live.row)

    @property
    def kv_tokens(self) -> int:
        return int(self.scheduler.usable_blocks * self.scheduler.block_size)

    def report(self, work: OpenWork, now: float) -> Report:
        """What a router may know of this replica ``now``."""
        running, waiting = self.scheduler.get_request_counts()
        tokens = {name: own.row.output_tokens for name, own in self.live.items()}
        return work.report(now, tokens, running, waiting + len(self.inbox))

    def act(self) -> None:
        if self._next == TAKE:
            self.take(self._flights.popleft())
            self._next = START
        else:
            self._start()

    @property
    def stuck(self) -> bool:
        return self._next is None and bool(self.scheduler.has_unfinished_requests())

    # -- starting a step -----------------------------------------------------------------------------------

    def deliver(self) -> None:
        """Give the scheduler what has arrived, and abort what is due."""
        from vllm.v1.request import RequestStatus

        s = self.scheduler
        while self.inbox:
            live = self.inbox.popleft()
            self.live[live.row.request_id] = live
            s.add_request(live.request)
        while self._aborts and self._aborts[0][0] <= self.now:
            name = heappop(self._aborts)[1]
            if s.finish_requests(name, RequestStatus.FINISHED_ABORTED):
                row = self.live[name].row
                row.status, row.error = "failed", "aborted"
                self._end(row)

    def _start(self) -> None:
        self.deliver()
        s = self.scheduler
        if not s.has_requests():
            self._next = TAKE if self._flights else None
            return
        began_s = self.now
        clock, worked = time.perf_counter(), time.thread_time()
        output = s.schedule()
        worked = time.thread_time() - worked
        self.schedule_s.append(time.perf_counter() - clock)
        if self.worker is not None:
            self.worker.execute(output)
        if self.on_step is not None:
            self.on_step(output)
        for new in output.scheduled_new_reqs:
            if not s.requests[new.req_id].num_preemptions:
                self.cached_tokens += new.num_computed_tokens
        work, samples = step_work(output, s.requests)
        # When the GPU could have begun without the host: what is between counts as this step's time.
        could_s = start_s = end_s = max(self.now, self._gpu_free_s)
        host_s = 0.0
        if output.total_num_scheduled_tokens:
            if self.charge == "measured":
                host_s = worked + self.cost.launch_s(work)
            else:
                host_s = (self.cost.host_s if self.charge == "model" else self.cost.launch_s)(work)
            self.now += host_s
            start_s = max(self.now, self._gpu_free_s)
            seconds = self.cost.seconds(work)
            end_s = max(start_s + seconds, self._flights[-1].end_s if self._flights else 0.0)
            self._gpu_free_s = start_s + seconds / self.stages
        gauges = s.gauges()
        self._integrate(gauges, could_s, end_s)
        if self.recorder is not None:
            self.recorder.stepped(self.index, s, Step(work, output, began_s, host_s, start_s, end_s, gauges))
        flight = Flight(output, end_s, samples)
        if output.total_num_scheduled_tokens:
            self._idle = 0
            self._flights.append(flight)
            self._next = START if len(self._flights) < self.depth else TAKE
            return
        # vLLM runs an empty step too: it tells the workers who has finished.
        self._idle += 1
        if self._flights:
            self._flights.append(flight)
            self._next = TAKE
        else:
            self.take(flight)
            hangs = self._idle > self.MAX_IDLE_STEPS and s.has_unfinished_requests()
            self._next = None if hangs and not self.inbox else START

    def _integrate(self, gauges: Gauges, could_s: float, end_s: float) -> None:
        kv = self.kv
        self.peak_blocks = max(self.peak_blocks, gauges.held_blocks)
        if self._wasted_at != kv.interval:
            # Looking at every request is expensive, so it is done once an interval.
            self._wasted = wasted_blocks(self.scheduler, {n: own.response_tokens for n, own in self.live.items()})
            self._wasted_at = kv.interval
        kv.add(could_s, end_s - could_s, gauges.held_blocks, gauges.reserved_blocks, gauges.lent_blocks, self._wasted)

    def _paused(self, name: str) -> None:
        self.live[name].row.pauses += 1

    # -- taking its output -------------------------------------------------------------------------------------

    def take(self, flight: Flight) -> None:
        from vllm.v1.outputs import ModelRunnerOutput

        s = self.scheduler
        self.now = max(self.now, flight.end_s)
        requests, live = s.requests, self.live
        names = list(flight.output.num_scheduled_tokens)
        sampled: list[list[int]] = []
        for name in names:
            if name not in requests or name not in flight.samples:
                sampled.append([])
                continue
            own = live[name]
            drafts = len(flight.output.scheduled_spec_decode_tokens.get(name, ()))
            given = own.row.output_tokens
            sampled.append(tokens_out(name, given, own.response_tokens, drafts, self.acceptance))
        result = ModelRunnerOutput(
            req_ids=names, req_id_to_index={n: i for i, n in enumerate(names)}, sampled_token_ids=sampled
        )
        clock, worked = time.perf_counter(), time.thread_time()
        outputs = s.update_from_output(flight.output, result)
        update_drafts(s, names)
        worked = time.thread_time() - worked
        self.update_s.append(time.perf_counter() - clock)
        if self.charge == "measured":
            self.now += worked
        for batch in outputs.values():
            for out in batch.outputs:
                row = live[out.request_id].row
                row.output_tokens += len(out.new_token_ids)
                if row.first_token_s is None and out.new_token_ids:
                    row.first_token_s = self.now
                if out.finished:
                    row.finish_s = self.now
                    self._end(row)

    def _end(self, row: RequestRow) -> None:
        row.preemptions = self.live.pop(row.request_id).request.num_preemptions
        if self.recorder is not None:
            self.recorder.ended(self.index, row, self.now)
        if self.on_end is not None:
            self.on_end(self, row)
