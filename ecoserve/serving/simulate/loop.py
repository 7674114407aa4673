"""The virtual clock: replicas, arrivals and a router between them.

Events happen in order of time, whichever replica they are on; at one time outputs come before arrivals and arrivals
before steps. A request goes to a replica when it arrives, by what the router may know then; the replica's scheduler is
given it when its next step starts, as vLLM's engine core takes its queue of new requests once a step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Any

from ecoserve.errors import RunError
from ecoserve.lengths import LengthDistribution
from ecoserve.serving.routing import PREFIX_TOKENS, Offer, OpenWork, Router, past_lengths
from ecoserve.serving.runs import EngineTotals, KVPoint, RequestRow
from ecoserve.serving.simulate.engine import LazyRequest
from ecoserve.serving.simulate.replica import ARRIVE, Live, Recorder, Replica

#: Called with (requests that have ended, virtual seconds).
Progress = Callable[[int, float], None]


@dataclass(slots=True)
class Arrival:
    """A request to come: vLLM's request and what only the simulation knows of it."""

    at_s: float
    #: vLLM's request, or a :class:`LazyRequest` that makes it when it arrives
    request: Any
    response_tokens: int
    predicted_tokens: float | None = None
    #: the client aborts the request at this time
    abort_at_s: float | None = None
    #: what a router may know: the predicted length
    lengths: LengthDistribution | None = None
    #: in a closed loop: it comes ``wait_s`` seconds after this request has ended, ``at_s`` is set then
    after: str | None = None
    wait_s: float = 0.0

    def row(self) -> RequestRow:
        request = self.request
        return RequestRow(
            request.request_id, self.at_s, request.num_prompt_tokens, predicted_tokens=self.predicted_tokens
        )


@dataclass(slots=True)
class LoopResult:
    rows: list[RequestRow]
    totals: EngineTotals
    end_s: float
    #: index of the replica that served each request, by request id
    replica_of: dict[str, int] = field(default_factory=dict)
    #: KV over time, of every replica
    kv: list[KVPoint] = field(default_factory=list)


def run_replicas(
    replicas: Sequence[Replica],
    arrivals: Sequence[Arrival],
    router: Router[int] | None = None,
    *,
    stale_s: float = 0.0,
    recorder: Recorder | None = None,
    progress: Progress | None = None,
) -> LoopResult:
    """Run a load to its end on new replicas of the same kind, which share one clock; ``arrivals`` in any order.

    ``router``: default round robin; what it knows of the replicas is up to ``stale_s`` seconds old, and what it has
    sent since is added. ``recorder`` gets every event; ``progress`` is called whenever a request ends.
    Raises RunError if requests wait and no step of their replica makes progress.
    """
    router = router or Router("round-robin", range(len(replicas)))
    open_work = [OpenWork(r.kv_tokens) for r in replicas]
    history = past_lengths()
    seen_s = -math.inf
    every = max(1, PREFIX_TOKENS // replicas[0].scheduler.block_size)
    ordered = sorted(arrivals, key=lambda a: a.at_s)
    rows = {a.request.request_id: a.row() for a in ordered}
    pending = [(a.at_s, i, a) for i, a in enumerate(ordered) if a.after is None]
    following: dict[str, list[Arrival]] = {}
    for a in ordered:
        if a.after is not None:
            following.setdefault(a.after, []).append(a)
    replica_of: dict[str, int] = {}
    ended = 0

    def on_end(replica: Replica, row: RequestRow) -> None:
        nonlocal ended
        ended += 1
        open_work[replica_of[row.request_id]].ended(row.request_id)
        if row.output_tokens:
            history.record(row.output_tokens, row.status == "completed")
        for a in following.pop(row.request_id, ()):
            a.at_s = rows[a.request.request_id].arrival_s = replica.now + a.wait_s
            heappush(pending, (a.at_s, len(rows) + ended, a))
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
        if pending and (pending[0][0], ARRIVE) <= when:
            a = heappop(pending)[2]
            request = a.request.make(a.at_s) if isinstance(a.request, LazyRequest) else a.request
            row = rows[request.request_id]
            if a.at_s - seen_s >= stale_s:
                seen_s = a.at_s
                for replica, work in zip(replicas, open_work, strict=True):
                    router.report(replica.index, replica.report(work, seen_s))
            # The hashes of its blocks are the chain of its prompt's beginnings.
            chain = request.block_hashes[every - 1 :: every]
            lengths = a.lengths or history.distribution(request.max_tokens)
            offer = Offer(row.request_id, row.prompt_tokens, lengths, chain)
            index = router.choose(offer)
            router.sent(offer, index, a.at_s)
            open_work[index].opened(offer)
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
    totals = EngineTotals.of(
        [r.scheduler.counters for r in replicas],
        [r.kv for r in replicas],
        cached_tokens=sum(r.cached_tokens for r in replicas),
        schedule_s=[s for r in replicas for s in r.schedule_s],
        update_s=[s for r in replicas for s in r.update_s],
    )
    kv = [point for r in replicas for point in r.kv.points()]
    return LoopResult(list(rows.values()), totals, max(r.now for r in replicas), replica_of, kv)
