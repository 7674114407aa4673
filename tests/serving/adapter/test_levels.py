"""Levels of our scheduler: shadow decides as vLLM does, order changes only who is first, and a switch loses nothing."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any, get_args

import pytest
from virtual_rig import STOCK, Case, Played, Spec, play, random_case, same

from ecoserve.serving.adapter.level_file import LEVEL, RunLevel
from ecoserve.serving.core.settings import Level

LEVELS = get_args(Level)


def rows(played: Played) -> list[tuple[Any, ...]]:
    return [(r.request_id, r.first_token_s, r.finish_s, r.output_tokens) for r in played.result.rows]


@pytest.mark.parametrize("seed", range(10))
def test_shadow_decides_as_vllm_and_counts_what_it_would_have_done(seed: int) -> None:
    case = random_case(seed, policy=STOCK, prefix_caching=bool(seed % 2), depth=1 + seed % 2, runner=1 + seed // 2 % 2)
    stock, shadow = play(case), play(same(case, policy="ecoserve", knobs=(("level", "shadow"),)))
    assert rows(shadow) == rows(stock)
    assert shadow.scheduler.counters.preemptions == stock.scheduler.counters.preemptions
    assert shadow.scheduler.counters.pauses == 0
    assert not stock.scheduler.counters.shadow_reordered


def long_before_short(level: Level) -> Played:
    """Eight long responses come just before eight short ones, and one runs at a time."""
    specs = tuple(Spec(prompt=16, answer=n, source="true") for n in [60] * 8 + [2] * 8)
    return play(Case(specs, max_num_seqs=1, blocks=24, knobs=(("level", level), ("ageing_tokens_per_s", 0.0))))


def test_order_goes_by_rank_and_shadow_counts_who_would_have_gone_first() -> None:
    shadow, order = long_before_short("shadow"), long_before_short("order")
    first = {level: [r.first_token_s for r in p.result.rows] for level, p in (("shadow", shadow), ("order", order))}
    assert max(first["order"][8:]) < min(sorted(first["order"][:8])[1:]), "the short ones wait behind long ones"
    assert first["shadow"] == sorted(first["shadow"])
    # The first is alone when it starts, and the last long one is followed by short ones only.
    assert 7 <= shadow.scheduler.counters.shadow_reordered <= 8
    assert order.scheduler.counters.shadow_reordered == 0


@pytest.mark.parametrize("seed", range(8))
def test_switches_while_serving_lose_nothing(seed: int) -> None:
    rng = random.Random(seed)
    case = random_case(seed, policy="ecoserve", depth=1 + seed % 2, runner=1 + seed // 2 % 2)
    seen = set()

    def switch(scheduler: Any, _: Any) -> None:
        if rng.random() < 0.3:
            scheduler._run_level.current = rng.choice(LEVELS)
        seen.add(scheduler.level)

    # What must hold of every run is checked by play(), but that only level full saves vLLM from preempting.
    play(same(case, knobs=(*case.knobs, ("level", "order"))), on_step=switch)
    assert len(seen) == 3


def test_the_file_is_looked_at_now_and_then_and_nonsense_in_it_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("ecoserve.serving.adapter.level_file.time.monotonic", lambda: now[0])
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    level = RunLevel("full")
    assert level.look() == "full"
    level.file.write("shadow")
    assert level.look() == "full", "looked at again too soon"
    now[0] += 1
    assert level.look() == "shadow"
    (tmp_path / LEVEL).write_text("nonsense")
    os.utime(tmp_path / LEVEL, ns=(1, 1))
    now[0] += 1
    assert level.look() == "shadow"
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR")
    assert RunLevel("order").look() == "order"
