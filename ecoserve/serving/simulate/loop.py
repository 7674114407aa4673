"""The virtual clock: a vLLM scheduler, a step cost, and no sleeping.

Mirrors vLLM's engine core. At depth 1 a step is scheduled, executed and its output taken, in turn. At depth 2
(asynchronous scheduling) step N + 1 is scheduled before N's output is there. Whether a request ends is known to this
loop only: the scheduler sees an end-of-sequence token when it comes.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ecoserve.errors import RunError
from ecoserve.serving.runs import EngineTotals, RequestRow
from ecoserve.serving.simulate.cost import StepCost, StepWork
from ecoserve.serving.simulate.engine import EOS, WORD
from ecoserve.serving.simulate.worker import WorkerModel


@dataclass(slots=True)
class Arrival:
    """A request to come: vLLM's request and what only this loop knows of it."""

    at_s: float
    request: Any
    response_tokens: int
    predicted_tokens: float | None = None
    #: the client goes away at this time
    abort_at_s: float | None = None


@dataclass(slots=True)
class _Flight:
    output: Any
    end_s: float
    samples: list[str]


@dataclass(slots=True)
class LoopResult:
    """What came of a load."""

    rows: list[RequestRow]
    totals: EngineTotals
    end_s: float
    #: (time, held, reserved, lent) in blocks, one a step, if asked for
    series: list[tuple[float, int, int, int]] = field(default_factory=list)


class _LoopClock:
    """The scheduler's clock: this loop's."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop

    def now(self) -> float:
        return self._loop.now

    def arrival(self, arrival_time: float) -> float:
        return arrival_time


class VirtualLoop:
    """Drives one scheduler through one load.

    Args:
        scheduler: a :class:`~ecoserve.serving.adapter.counting.CountingScheduler` or a subclass.
        cost: seconds a step takes.
        depth: 1 or 2 steps in flight.
        worker: if given, checks every output as a model runner would.
        keep_series: keep the KVC's state after every step.
        on_step: called after every scheduled step (tests).
    """

    #: so many steps without a token, with work waiting, is a hang
    MAX_IDLE_STEPS = 64

    def __init__(
        self,
        scheduler: Any,
        cost: StepCost,
        depth: int = 1,
        worker: WorkerModel | None = None,
        keep_series: bool = False,
        on_step: Callable[[Any], None] | None = None,
    ) -> None:
        if depth not in (1, 2):
            raise ValueError(f"depth must be 1 or 2, not {depth}")
        self.scheduler = scheduler
        self.cost = cost
        self.depth = depth
        self.worker = worker
        self.keep_series = keep_series
        self.on_step = on_step
        self.now = 0.0
        scheduler.clock = _LoopClock(self)

    def run(self, arrivals: Sequence[Arrival]) -> LoopResult:
        """Run the load to its end.

        Raises:
            RunError: if requests wait and no step makes progress.
        """
        s = self.scheduler
        pending = deque(sorted(arrivals, key=lambda a: a.at_s))
        self._truth = {a.request.request_id: a for a in pending}
        self._rows = {
            a.request.request_id: RequestRow(
                request_id=a.request.request_id,
                arrival_s=a.at_s,
                prompt_tokens=a.request.num_prompt_tokens,
                predicted_tokens=a.predicted_tokens,
            )
            for a in pending
        }
        aborts = sorted((a.abort_at_s, a.request.request_id) for a in pending if a.abort_at_s is not None)
        self._schedule_s: list[float] = []
        self._update_s: list[float] = []
        self._kvc = [0.0, 0.0, 0.0]
        self._kvc_time = 0.0
        self._series: list[tuple[float, int, int, int]] = []
        flights: deque[_Flight] = deque()
        busy_until = 0.0
        idle = 0
        while pending or flights or s.has_requests():
            while pending and pending[0].at_s <= self.now:
                s.add_request(pending.popleft().request)
            while aborts and aborts[0][0] <= self.now:
                self._abort(aborts.pop(0)[1])
            if not flights and not s.has_requests():
                if not pending:
                    break
                self.now = pending[0].at_s
                continue
            if len(flights) < self.depth and s.has_requests():
                flight = self._start(max(self.now, busy_until))
                if flight.output.total_num_scheduled_tokens:
                    idle = 0
                    busy_until = flight.end_s
                    flights.append(flight)
                    if len(flights) < self.depth:
                        continue
                else:
                    # vLLM runs an empty step too: it tells the workers who has finished.
                    idle += 1
                    self._finish(flight) if not flights else flights.append(flight)
                    if idle > self.MAX_IDLE_STEPS and s.has_unfinished_requests():
                        if not pending:
                            raise RunError(f"no progress: {s.get_request_counts()} running and waiting, all idle")
                        self.now = max(self.now, pending[0].at_s)
            if flights:
                self._finish(flights.popleft())
        counters = s.counters
        span = self._kvc_time or 1.0
        usable = s.usable_blocks
        totals = EngineTotals(
            preemptions=counters.preemptions,
            recomputed_tokens=counters.recomputed_tokens,
            pauses=counters.pauses,
            re_reservations=counters.re_reservations,
            steps=counters.steps,
            kvc_used_mean=self._kvc[0] / span / usable,
            kvc_reserved_mean=self._kvc[1] / span / usable,
            kvc_lent_mean=self._kvc[2] / span / usable,
            schedule_s=self._schedule_s,
            update_s=self._update_s,
        )
        return LoopResult(list(self._rows.values()), totals, self.now, self._series)

    def _abort(self, name: str) -> None:
        from vllm.v1.request import RequestStatus

        if self.scheduler.finish_requests(name, RequestStatus.FINISHED_ABORTED):
            self._rows[name].status = "failed"
            self._rows[name].error = "aborted"

    def _start(self, start_s: float) -> _Flight:
        s = self.scheduler
        began = time.perf_counter()
        output = s.schedule()
        self._schedule_s.append(time.perf_counter() - began)
        if self.worker is not None:
            self.worker.execute(output)
        if self.on_step is not None:
            self.on_step(output)
        work = StepWork()
        samples = []
        for name, tokens in output.num_scheduled_tokens.items():
            request = s.requests[name]
            work.context_tokens += request.num_computed_tokens
            if tokens > 1 or request.num_output_tokens == 0:
                work.prefill_tokens += tokens
            else:
                work.decodes += 1
            if not request.is_prefill_chunk:
                samples.append(name)
        end = start_s + (self.cost.seconds(work) if output.total_num_scheduled_tokens else 0.0)
        self._integrate(end - start_s)
        return _Flight(output, end, samples)

    def _integrate(self, seconds: float) -> None:
        gauges = self.scheduler.gauges()
        for i, blocks in enumerate((gauges.held_blocks, gauges.reserved_blocks, gauges.lent_blocks)):
            self._kvc[i] += blocks * seconds
        self._kvc_time += seconds
        if self.keep_series:
            self._series.append((self.now, gauges.held_blocks, gauges.reserved_blocks, gauges.lent_blocks))

    def _finish(self, flight: _Flight) -> None:
        from vllm.v1.outputs import ModelRunnerOutput

        s = self.scheduler
        self.now = max(self.now, flight.end_s)
        names = list(flight.output.num_scheduled_tokens)
        sampled: list[list[int]] = []
        sampling = set(flight.samples)
        for name in names:
            request = s.requests.get(name)
            if request is None or name not in sampling:
                sampled.append([])
                continue
            last = request.num_output_tokens + 1 >= self._truth[name].response_tokens
            sampled.append([EOS if last else WORD])
        result = ModelRunnerOutput(
            req_ids=names, req_id_to_index={n: i for i, n in enumerate(names)}, sampled_token_ids=sampled
        )
        began = time.perf_counter()
        outputs = s.update_from_output(flight.output, result)
        self._update_s.append(time.perf_counter() - began)
        for batch in outputs.values():
            for out in batch.outputs:
                row = self._rows[out.request_id]
                row.output_tokens += len(out.new_token_ids)
                if out.new_token_ids and row.first_token_s is None:
                    row.first_token_s = self.now
                if out.finished:
                    row.finish_s = self.now
