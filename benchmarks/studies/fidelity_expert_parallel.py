"""Replicas that share the experts of one model, in lockstep: for the fidelity logs of such runs.

With data parallel attention and expert parallel feed-forward (vLLM's ``data_parallel_size`` with
``enable_expert_parallel``) each replica has its own scheduler, KV and requests, but in every layer the tokens of all
replicas go to the GPUs that hold their experts, and back. So no replica is ever a step ahead of another: a step takes
as long as its slowest replica's own part, and then the experts of all tokens. A replica without requests runs a dummy.

A request goes to the replica with the smallest ``4 x waiting + running``, as in vLLM's front end.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from ecoserve.serving.runs import RequestRow
from ecoserve.serving.simulate.cost import StepWork
from ecoserve.serving.simulate.gpu.model import GpuModel
from ecoserve.serving.simulate.loop import Arrival
from ecoserve.serving.simulate.replica import Flight, Live, Recorder, Replica, Step, step_work


def group_step_s(model: GpuModel, works: Sequence[StepWork]) -> float:
    """Seconds of one step of all replicas.

    Args:
        model: one replica, made with ``expert_ranks`` = the number of replicas.
        works: what each replica computes.
    """
    own = max(model.own_parts(w).total for w in works)
    tokens = [model.run_tokens(w) for w in works]
    return own + model.experts_s(-(-sum(tokens) // len(tokens))) + model.exchange_s(tokens)


class ExpertParallel:
    """Drives replicas in lockstep.

    Args:
        replicas: new ones, each with its scheduler; their own clocks and costs are not used.
        model: one replica's GPU.
        depth: steps in flight.
        recorder: gets the steps of every replica.
    """

    def __init__(
        self, replicas: Sequence[Replica], model: GpuModel, depth: int, recorder: Recorder | None = None
    ) -> None:
        self._replicas = list(replicas)
        self._model = model
        self._depth = depth
        self._recorder = recorder
        self._flights: deque[tuple[float, list[Flight | None]]] = deque()
        self._gpu_free_s = 0.0
        self._now = 0.0

    def run(self, arrivals: Sequence[Arrival]) -> list[RequestRow]:
        """Run a load to its end; the rows are in the order of ``arrivals``."""
        rows = [a.row() for a in arrivals]
        pending = deque(sorted(zip(arrivals, rows, strict=True), key=lambda x: x[0].at_s))
        while True:
            while pending and pending[0][0].at_s <= self._now:
                arrival, row = pending.popleft()
                min(self._replicas, key=_load).hand(Live(arrival.request, arrival.response_tokens, row))
            busy = any(r.scheduler.has_requests() or r.inbox for r in self._replicas)
            if busy and len(self._flights) < self._depth:
                self._start()
            elif self._flights:
                end_s, flights = self._flights.popleft()
                self._now = max(self._now, end_s)
                for replica, flight in zip(self._replicas, flights, strict=True):
                    replica.now = self._now
                    if flight is not None:
                        replica.take(flight)
            elif pending:
                self._now = pending[0][0].at_s
            else:
                return rows

    def _start(self) -> None:
        works: list[StepWork] = []
        flights: list[Flight | None] = []
        for replica in self._replicas:
            replica.now = self._now
            replica.deliver()
            if not replica.scheduler.has_requests():
                works.append(StepWork())
                flights.append(None)
                continue
            output = replica.scheduler.schedule()
            work, samples = step_work(output, replica.scheduler.requests)
            works.append(work)
            flights.append(Flight(output, self._now, samples))
        began_s, host_s = self._now, 0.0
        if any(w.requests for w in works):
            host_s = max(self._model.host_s(w) for w in works)
            self._now += host_s
            start_s = max(self._now, self._gpu_free_s)
            self._gpu_free_s = start_s + group_step_s(self._model, works)
        else:
            start_s = max(self._now, self._gpu_free_s)
        end_s = self._gpu_free_s if any(w.requests for w in works) else start_s
        for replica, work, flight in zip(self._replicas, works, flights, strict=True):
            if flight is None:
                continue
            flight.end_s = end_s
            if self._recorder is not None:
                step = Step(work, flight.output, began_s, host_s, start_s, end_s, replica.scheduler.gauges())
                self._recorder.stepped(replica.index, replica.scheduler, step)
        self._flights.append((end_s, flights))


def _load(replica: Replica) -> tuple[int, int]:
    running, waiting = replica.scheduler.get_request_counts()
    return 4 * (waiting + len(replica.inbox)) + running, replica.index
