"""The virtual clock: engines, arrivals, a router between them, and no sleeping.

Rule: events happen in the order of their time, whichever replica they are on; at one time outputs come before arrivals
and arrivals before steps. A request goes to a replica when it arrives, by what the router may know then; its scheduler
is given it when it starts its next step, as vLLM's engine core takes its queue of new requests once a step.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ecoserve.errors import RunError
from ecoserve.serving.kv_series import KVPoint
from ecoserve.serving.runs import EngineTotals, RequestRow, mispredictions
from ecoserve.serving.simulate.cost import StepCost
from ecoserve.serving.simulate.engine import LazyRequest
from ecoserve.serving.simulate.replica import ARRIVE, Live, Recorder, Replica
from ecoserve.serving.simulate.router import Offer, RoundRobin, Router
from ecoserve.serving.simulate.worker import WorkerModel

#: Called with (requests that have ended, virtual seconds).
Progress = Callable[[int, float], None]


@dataclass(slots=True)
class Arrival:
    """A request to come: vLLM's request and what only the simulation knows of it."""

    at_s: float
    #: vLLM's, or what makes it when it arrives
    request: Any
    response_tokens: int
    predicted_tokens: float | None = None
    #: the client goes away at this time
    abort_at_s: float | None = None
    #: what a router may know: the mean of the predicted length
    expected_tokens: float | None = None


@dataclass(slots=True)
class LoopResult:
    """What came of a load."""

    rows: list[RequestRow]
    totals: EngineTotals
    end_s: float
    #: (time, held, reserved, lent) in blocks, one a step, if asked for; of the first replica
    series: list[tuple[float, int, int, int]] = field(default_factory=list)
    #: index of the replica that served each request, by request id
    replica_of: dict[str, int] = field(default_factory=dict)
    #: KV over time, of every replica
    kv: list[KVPoint] = field(default_factory=list)


class VirtualLoop:
    """Drives one scheduler through one load.

    Args:
        scheduler: a :class:`~ecoserve.serving.adapter.counting.CountingScheduler` or a subclass.
        cost: seconds a step takes.
        depth: 1 or 2 steps in flight.
        worker: if given, checks every output as a model runner would.
        keep_series: keep the KV's state after every step.
        on_step: called after every scheduled step (tests).
    """

    def __init__(
        self,
        scheduler: Any,
        cost: StepCost,
        depth: int = 1,
        worker: WorkerModel | None = None,
        keep_series: bool = False,
        on_step: Callable[[Any], None] | None = None,
    ) -> None:
        self.replica = Replica(scheduler, cost, depth, worker, keep_series=keep_series)
        self.on_step = on_step

    @property
    def now(self) -> float:
        """Virtual seconds."""
        return self.replica.now

    def run(self, arrivals: Sequence[Arrival]) -> LoopResult:
        """Run the load to its end.

        Raises:
            RunError: if requests wait and no step makes progress.
        """
        self.replica.on_step = self.on_step
        return run_replicas([self.replica], arrivals)


def run_replicas(
    replicas: Sequence[Replica],
    arrivals: Sequence[Arrival],
    router: Router | None = None,
    *,
    recorder: Recorder | None = None,
    progress: Progress | None = None,
) -> LoopResult:
    """Run a load on one or more replicas, which must be new, to its end.

    Args:
        replicas: engines of the same kind; their clocks are one.
        arrivals: the load, in any order.
        router: who gets a request; by default one after the other.
        recorder: told of everything that happens.
        progress: called whenever a request ends.

    Raises:
        RunError: if requests wait and no step of their replica makes progress.
    """
    router = router or RoundRobin(len(replicas))
    pending = deque(sorted(arrivals, key=lambda a: a.at_s))
    rows: dict[str, RequestRow] = {}
    replica_of: dict[str, int] = {}
    for a in pending:
        row = RequestRow(
            request_id=a.request.request_id,
            arrival_s=a.at_s,
            prompt_tokens=a.request.num_prompt_tokens,
            predicted_tokens=a.predicted_tokens,
        )
        rows[row.request_id] = row
    ended = 0

    def on_end(replica: Replica, row: RequestRow) -> None:
        nonlocal ended
        ended += 1
        router.ended(replica.index, row.request_id, row.output_tokens)
        if progress is not None:
            progress(ended, replica.now)

    for replica in replicas:
        replica.on_end = on_end
        replica.recorder = recorder
    while True:
        first: Replica | None = None
        when = (float("inf"), ARRIVE)
        for replica in replicas:
            event = replica.next_event()
            if event is not None and event < when:
                first, when = replica, event
        if pending and (pending[0].at_s, ARRIVE) <= when:
            a = pending.popleft()
            request = a.request.make() if isinstance(a.request, LazyRequest) else a.request
            row = rows[request.request_id]
            index = router.choose(Offer(row.request_id, row.prompt_tokens, a.expected_tokens))
            replica_of[row.request_id] = index
            replicas[index].hand(Live(request, a.response_tokens, row), a.abort_at_s)
        elif first is not None:
            first.act()
        else:
            break
    for replica in replicas:
        if replica.stuck:
            counts = replica.scheduler.get_request_counts()
            raise RunError(f"no progress: {counts} running and waiting, all idle")
    return LoopResult(
        list(rows.values()),
        _totals(replicas),
        max(r.now for r in replicas),
        replicas[0].series,
        replica_of,
        [point for r in replicas for point in r.kv_series.points()],
    )


def _totals(replicas: Sequence[Replica]) -> EngineTotals:
    """The sums over the replicas; shares of KV are averaged over their busy time."""
    counters = [r.scheduler.counters for r in replicas]
    span = sum(r.kv_time for r in replicas) or 1.0
    usable = replicas[0].scheduler.usable_blocks
    used, reserved, lent = (sum(r.kv_means[i] for r in replicas) / span / usable for i in range(3))
    return EngineTotals(
        preemptions=sum(c.preemptions for c in counters),
        recomputed_tokens=sum(c.recomputed_tokens for c in counters),
        pauses=sum(c.pauses for c in counters),
        re_reservations=sum(c.re_reservations for c in counters),
        steps=sum(c.steps for c in counters),
        kv_used_mean=used,
        kv_reserved_mean=reserved,
        kv_lent_mean=lent,
        mispredictions=mispredictions(counters),
        schedule_s=[s for r in replicas for s in r.schedule_s],
        update_s=[s for r in replicas for s in r.update_s],
    )
