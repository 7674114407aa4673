"""Shortage of KV: the last rungs of the under-prediction ladder, decided before vLLM must preempt by itself.

When the running requests need more blocks in this step than are free, somebody must wait or give way.

1. Prompts being prefilled are served first: what they have computed is of no use before they are through.
2. decodes are served in the order of what they have left, least first: they will free their KV soonest.
3. Whoever is not served is paused, KV kept: nothing is lost, and it goes on when others have finished.
4. Pausing cannot go on for ever: if the paused would hold more than ``paused_share`` of the cache, a prefill would
   starve, or nobody would be left to run, a victim's KV is dropped (recompute). The victim is the request with the
   longest rest to come: what it loses (its tokens, computed again) and what it would hold both grow with the blocks
   it has, so the least work is lost per block and second won where the rest is longest (docs/log.md has the
   comparison with the least work lost). One that was a victim ``spare_after`` times already is passed over while there
   is another.

A forecast alone preempts nobody: this is only asked about blocks needed in this very step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ecoserve.serving.core.tasks import Task, TaskState


@dataclass(slots=True)
class Relief:
    """What to do about a shortage, in this order: drop the KV of some, pause others."""

    drop: list[Task] = field(default_factory=list)
    pause: list[Task] = field(default_factory=list)


def relieve(
    needs: Mapping[Task, int],
    running: Sequence[Task],
    paused: Sequence[Task],
    held: Mapping[Task, int],
    free_blocks: int,
    paused_limit_blocks: float,
    victims_before: Mapping[str, int],
    spare_after: int = 3,
) -> Relief:
    """Decide who pauses and who is dropped so that the others' needs fit.

    Args:
        needs: blocks that running requests need in this step (those that need none may be left out).
        running: all running requests. paused: decodes that wait with KV.
        held: blocks that would come free if a request's KV were dropped (shared blocks not counted).
        free_blocks: free now.
        paused_limit_blocks: the most blocks that paused decodes may hold.
        victims_before: how often a request id was dropped before.

    Returns:
        the smallest set of drops this greedy rule finds, and the pauses that remain.
    """
    relief = Relief()
    alive = list(running)
    asleep = list(paused)
    free = free_blocks
    while True:
        relief.pause = _unserved(needs, alive, free)
        if not relief.pause:
            return relief
        waiting = sum(held.get(t, 0) for t in asleep) + sum(held.get(t, 0) for t in relief.pause)
        someone_runs = len(relief.pause) < len(alive)
        prefill_starves = any(t.state is TaskState.PREFILL for t in relief.pause)
        if someone_runs and waiting <= paused_limit_blocks and not prefill_starves:
            return relief
        victim = _victim([*alive, *asleep], held, victims_before, spare_after)
        if victim is None:
            # Nobody else can give way. A prefill cannot be paused half-way: it hands back what it has and waits.
            starved = [t for t in relief.pause if t.state is TaskState.PREFILL]
            relief.drop += starved
            relief.pause = [t for t in relief.pause if t not in starved]
            return relief
        relief.drop.append(victim)
        free += held.get(victim, 0)
        if victim in alive:
            alive.remove(victim)
        else:
            asleep.remove(victim)
        if not alive:
            relief.pause = []
            return relief


def _unserved(needs: Mapping[Task, int], running: Sequence[Task], free: int) -> list[Task]:
    """Who does not get the blocks it needs when prefills, then decodes with least left, are served first."""
    asking = [t for t in running if needs.get(t, 0) > 0]
    if sum(needs[t] for t in asking) <= free:
        return []
    asking.sort(key=lambda t: (t.state is not TaskState.PREFILL, t.expected_rest(), t.arrival_s))
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
    victims_before: Mapping[str, int],
    spare_after: int,
) -> Task | None:
    """The longest rest to come among those that free anything; of equals the one with least work to lose."""
    useful = [t for t in candidates if held.get(t, 0) > 0]
    fresh = [t for t in useful if victims_before.get(t.request_id, 0) < spare_after]
    pool = fresh or useful
    if not pool or len(candidates) == 1:
        return None
    return max(pool, key=lambda t: (t.expected_rest(), -t.written, t.arrival_s))
