"""Shortage of KV: which running requests pause and which are preempted, decided before vLLM must preempt by itself.

When the running requests need more blocks in this step than are free:

1. Client priority goes before everything.
2. Prefills are served first: what they have computed is of no use before they are complete.
   Decodes are served by rank: those with the fewest expected remaining tokens free their KV soonest.
3. A request that is not served is paused with its KV kept: no work is lost.
4. If the paused would hold more than ``paused_share`` of the cache, a prefill would starve, or no request would run, a
   victim is preempted (recompute): the request of last rank. What it loses and what it would hold
   both grow with its blocks, so the least work is lost per block and second won where the rest is longest
   (docs/log.md has the comparison). A request that was a victim ``spare_after`` times is passed over while there is
   another.

A forecast alone preempts nothing: only blocks needed in this very step count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ecoserve.serving.core.tasks import Task, TaskState

#: Client priority and the ordering's rank; lower goes first.
Rank = tuple[float, float]


@dataclass(slots=True)
class Relief:
    """What to do about a shortage: preempt ``drop``, pause ``pause``."""

    drop: list[Task] = field(default_factory=list)
    pause: list[Task] = field(default_factory=list)


def relieve(
    needs: Mapping[Task, int],
    running: Sequence[Task],
    paused: Sequence[Task],
    held: Mapping[Task, int],
    rank: Mapping[Task, Rank],
    free_blocks: int,
    paused_limit_blocks: float,
    spare_after: int = 3,
) -> Relief:
    """Decide which requests pause and which are preempted so that the needs of the others fit.

    Args:
        needs: blocks that running requests need in this step; without an entry, none.
        running: all running requests. paused: decodes that wait with their KV.
        held: blocks that come free if a request is preempted (shared blocks not counted).
        rank: of all of them; lower goes first.
        paused_limit_blocks: the most blocks that paused decodes may hold.
    """
    relief = Relief()
    active = list(running)
    idle = list(paused)
    free = free_blocks
    while True:
        relief.pause = _unserved(needs, active, rank, free)
        if not relief.pause:
            return relief
        idle_blocks = sum(held.get(t, 0) for t in idle) + sum(held.get(t, 0) for t in relief.pause)
        some_run = len(relief.pause) < len(active)
        prefill_starves = any(t.state is TaskState.PREFILL for t in relief.pause)
        if some_run and idle_blocks <= paused_limit_blocks and not prefill_starves:
            return relief
        victim = _victim([*active, *idle], held, rank, spare_after)
        if victim is None:
            # No other request can give way. A prefill cannot be paused half-way: it is preempted itself.
            starved = [t for t in relief.pause if t.state is TaskState.PREFILL]
            relief.drop += starved
            relief.pause = [t for t in relief.pause if t not in starved]
            return relief
        relief.drop.append(victim)
        free += held.get(victim, 0)
        if victim in active:
            active.remove(victim)
        else:
            idle.remove(victim)
        if not active:
            relief.pause = []
            return relief


def _unserved(needs: Mapping[Task, int], running: Sequence[Task], rank: Mapping[Task, Rank], free: int) -> list[Task]:
    """Requests that do not get their blocks when prefills, then decodes with the fewest remaining tokens, go first."""
    asking = [t for t in running if needs.get(t, 0) > 0]
    if sum(needs[t] for t in asking) <= free:
        return []
    asking.sort(key=lambda t: (rank[t][0], t.state is not TaskState.PREFILL, *rank[t][1:], t.arrival_s))
    out = []
    for task in asking:
        if needs[task] <= free:
            free -= needs[task]
        else:
            out.append(task)
    return out


def _victim(
    candidates: Sequence[Task],
    held: Mapping[Task, int],
    rank: Mapping[Task, Rank],
    spare_after: int,
) -> Task | None:
    """The request of last rank that frees anything; of equals the one with least work to lose."""
    useful = [t for t in candidates if held.get(t, 0) > 0]
    if not useful or len(candidates) == 1:
        return None
    return max(useful, key=lambda t: (rank[t][0], t.preemptions < spare_after, rank[t][1], -t.written, t.arrival_s))
