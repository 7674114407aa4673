"""Any load with draft tokens, pipeline stages and deferred releases of KV, in virtual time, all checked every step."""

from __future__ import annotations

from typing import Any

import pytest
import virtual_rig
from virtual_rig import Case, Spec, play, random_case, same, scheduler_for

FEATURES: dict[str, dict[str, Any]] = {
    "drafts": {"drafts": 3},
    "drafts, asynchronous": {"drafts": 3, "depth": 2, "runner": 2},
    "three stages": {"stages": 3, "depth": 3},
    "three stages with drafts, asynchronous": {"stages": 3, "depth": 4, "runner": 2, "drafts": 3},
}


@pytest.mark.parametrize("features", FEATURES.values(), ids=FEATURES)
def test_any_load(features: dict[str, Any]) -> None:
    """:func:`play` checks lengths, block tables, the ledger, and that vLLM preempts nothing by itself."""
    counters = [play(same(random_case(seed), **features)).scheduler.counters for seed in range(3)]
    assert sum(c.pauses for c in counters) > 10
    assert sum(c.preemptions for c in counters) > 3


@pytest.mark.parametrize("seed", [0, 3, 21])
def test_any_load_with_deferred_releases(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A consumer of KV: blocks come free when the steps under way have ended. vLLM waits for them, as we do."""
    made: list[Any] = []

    def deferring(case: Case) -> Any:
        made.append(scheduler_for(case))
        made[0].defer_block_free = True
        return made[0]

    monkeypatch.setattr(virtual_rig, "scheduler_for", deferring)
    played = play(same(random_case(seed), depth=2, runner=2, resets=()))
    assert not made[0].deferred_frees
    assert played.scheduler.counters.preemptions > 0


@pytest.mark.parametrize(("acceptance", "least", "most"), [(0.0, 1.0, 1.05), (0.6, 1.9, 2.5), (1.0, 3.7, 4.0)])
def test_tokens_per_step_are_learned(acceptance: float, least: float, most: float) -> None:
    """With 3 drafts and 0.6, 1 + 0.6 + 0.36 + 0.216 tokens are expected."""
    specs = tuple(Spec(gap_s=0.01, prompt=20, answer=90, max_tokens=120) for _ in range(20))
    case = Case(specs, drafts=3, blocks=200, acceptance=acceptance, depth=2, runner=2)
    pace = play(case).scheduler.planner.pace
    assert least <= pace.tokens_per_step <= most
    assert pace.token_s == pytest.approx(pace.step_s / pace.tokens_per_step)


def test_a_decode_has_its_turn_once_in_as_many_steps_as_there_are_stages() -> None:
    case = Case(tuple(Spec(prompt=20, answer=30) for _ in range(6)), stages=3, depth=3, blocks=100)
    assert play(case).scheduler.planner.pace.tokens_per_step == pytest.approx(1 / 3)
