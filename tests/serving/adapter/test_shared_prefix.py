"""Prompts that share a prefix: its blocks are charged once, so that as many run at once as under vLLM."""

from __future__ import annotations

from typing import Any

import pytest
from virtual_rig import STOCK, Case, Spec, play


def makespan(policy: str, *, shared: int, groups: int, siblings: int, requests: int = 48) -> tuple[float, int, int]:
    """(seconds of virtual time, preemptions, most running) of prompts of 16 tokens after a shared prefix."""
    specs = tuple(
        Spec(
            gap_s=0.0,
            prompt=shared + 16,
            answer=40,
            max_tokens=40,
            source="true",
            shared=shared,
            group=(i // siblings) % groups,
        )
        for i in range(requests)
    )
    case = Case(
        specs,
        policy=policy,
        blocks=200,
        max_model_len=shared + 200,
        max_num_seqs=64,
        max_num_batched_tokens=512,
        prefix_caching=True,
        depth=2,
        runner=2,
        knobs=() if policy == STOCK else (("check_every_step", False),),
    )
    most = 0

    def on_step(scheduler: Any, output: Any) -> None:
        nonlocal most
        most = max(most, len(scheduler.running))

    played = play(case, on_step)
    return played.result.end_s, played.scheduler.counters.preemptions, most


@pytest.mark.parametrize(
    ("shared", "groups", "siblings"), [(0, 1, 1), (800, 1, 1), (1600, 1, 1), (2400, 1, 1), (400, 4, 1), (1600, 1, 8)]
)
def test_a_shared_prefix_costs_no_newcomer_a_copy(shared: int, groups: int, siblings: int) -> None:
    stock_s, stock_preempted, stock_running = makespan(STOCK, shared=shared, groups=groups, siblings=siblings)
    own_s, own_preempted, own_running = makespan("ecoserve", shared=shared, groups=groups, siblings=siblings)
    assert own_s <= 1.05 * stock_s
    assert own_preempted <= stock_preempted
    assert own_running >= 0.5 * stock_running
