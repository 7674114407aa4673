"""The decode-only fast path does what ``schedule()`` does: twins under any calls, and by hand at its edges."""

from __future__ import annotations

import inspect
import logging
import random
from collections.abc import Callable
from typing import Any

import pytest
from stateful_machine import soak_once
from twin_rig import Twins, difference
from virtual_rig import ByHand, Case, Spec, arrivals_of, same, scheduler_for
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.output import SchedulerOutput

from ecoserve.serving.adapter import fast_path_rules as rules
from ecoserve.serving.adapter.fast_path import FastPath

WIDE = Case((), blocks=60, block_size=4, max_model_len=200, max_num_seqs=8, max_num_batched_tokens=64)


@pytest.mark.parametrize(
    ("depth", "prefix_caching", "number", "runs"),
    [(1, False, 50, 1), (1, True, 51, 1), (2, False, 60, 2), (2, True, 61, 3)],
)
def test_whatever_is_called_both_twins_hold_the_same(depth: int, prefix_caching: bool, number: int, runs: int) -> None:
    sums, _ = soak_once(number, runs=runs, rig=Twins, depth=depth, prefix_caching=prefix_caching)
    assert sums["fast_steps"] > 0.1 * sums["steps"] > 20
    assert sums["finished"]


@pytest.mark.parametrize(("depth", "runner"), [(1, 1), (2, 2)])
def test_among_pauses_aborts_drops_and_resets(depth: int, runner: int) -> None:
    rng = random.Random(depth)
    case = same(WIDE, blocks=40, depth=depth, runner=runner, prefix_caching=True, max_num_batched_tokens=24)
    run = Twins(same(case, policy="ecoserve-exact", max_model_len=120, knobs=(("paused_share", 0.3),)))
    for step in range(150):
        if step % 9 == 0 and len(run.alive()) < 14:
            specs = [Spec(prompt=rng.randint(2, 30), answer=rng.randint(5, 60), told="one", shared=4) for _ in range(2)]
            run.add(specs[0], siblings=2)
            run.add(specs[1])
        if step % 23 == 0:
            run.abort(rng.choice(run.alive()))
        if step % 31 == 0 and run.alive():
            run.end_soon(rng.choice(run.alive()))
        if step == 100:
            run.reset()
        run.drain_only(70 < step < 76)
        if run.scheduler.has_requests():
            run.step()
    run.run_out()
    sums = run.totals()
    assert sums["fast_steps"] > 0.1 * sums["steps"]
    for what in ("pauses", "resumes", "preemptions", "recomputed_tokens", "aborts", "under_predictions"):
        assert sums[what], f"no {what}"


# -- by hand ------------------------------------------------------------------------------------------------------


def twins(case: Case, *specs: Spec, siblings: int = 1) -> Twins:
    out = Twins(case)
    for spec in specs:
        out.add(spec, siblings)
    return out


def fast_steps(run: Twins, steps: int = 1) -> int:
    """So many of the next steps are composed on the fast path."""
    before = run.scheduler.counters.fast_steps
    for _ in range(steps):
        run.step()
    return int(run.scheduler.counters.fast_steps - before)


@pytest.mark.parametrize("runner", [1, 2])
@pytest.mark.parametrize("depth", [1, 2])
def test_decoding_alone_is_fast(depth: int, runner: int) -> None:
    run = twins(same(WIDE, depth=depth, runner=runner, prefix_caching=True), Spec(prompt=6, answer=60), siblings=3)
    run.step()
    assert fast_steps(run, 30) >= 28
    run.run_out()


def test_nobody_else_can_start_while_all_seats_are_taken() -> None:
    run = twins(same(WIDE, max_num_seqs=2, policy="ecoserve-d"), *[Spec(prompt=5, answer=30)] * 4)
    for _ in range(4):
        run.step()
    assert run.scheduler.waiting, "a head is visible"
    assert fast_steps(run, 5) == 5
    run.run_out()


def test_a_prompt_that_comes_in_pieces_is_left_to_vllm() -> None:
    run = twins(same(WIDE, max_num_batched_tokens=16), *[Spec(prompt=5, answer=40)] * 2)
    for _ in range(3):
        run.step()
    assert fast_steps(run, 3) == 3
    run.add(Spec(prompt=60, answer=4))
    assert fast_steps(run, 3) == 0
    run.run_out()


def test_the_last_token_under_way_is_left_to_vllm() -> None:
    run = twins(same(WIDE, depth=2), Spec(prompt=5, answer=50, max_tokens=12), Spec(prompt=5, answer=50))
    last = 0
    while "r0" in run.scheduler.requests:
        last = fast_steps(run)
    assert last == 0
    run.run_out()


def test_the_longest_sequence_is_left_to_vllm() -> None:
    run = twins(same(WIDE, depth=2, max_model_len=24), Spec(prompt=5, answer=500, max_tokens=500))
    run.run_out()
    assert run.tokens["r0"] == 19


def test_too_few_blocks_are_left_to_vllm() -> None:
    case = same(WIDE, blocks=16, max_model_len=60, knobs=(("kv_policy", "on-demand"), ("paused_share", 1.0)))
    run = twins(case, *[Spec(prompt=12, answer=40, told="one")] * 5)
    run.run_out()
    assert run.scheduler.counters.shortage_steps


@pytest.mark.parametrize("state", [PauseState.PAUSED_NEW, PauseState.PAUSED_ALL])
def test_draining_is_left_to_vllm(state: PauseState) -> None:
    run = twins(WIDE, Spec(prompt=5, answer=30))
    for _ in range(3):
        run.step()
    run.scheduler.set_pause_state(state)
    assert run.scheduler.fast_path.compose(False) is None
    run.scheduler.set_pause_state(PauseState.UNPAUSED)
    assert run.scheduler.fast_path.compose(True) is None, "prefills are throttled"


def test_stats_are_the_same() -> None:
    from vllm.v1.metrics.stats import PrefixCacheStats

    run = twins(same(WIDE, prefix_caching=True), *[Spec(prompt=9, answer=20, group=1, shared=8)] * 3)
    both = [d.scheduler for d in (run, run.other) if d is not None]
    for s in both:
        s.log_stats = s.kv_cache_manager.log_stats = True
        s.kv_cache_manager.prefix_cache_stats = PrefixCacheStats()
    assert fast_steps(run, 12) > 5
    stats = [s.make_stats() for s in both]
    assert stats[0] is not None
    assert difference(*stats) is None


def test_the_rigs_load_in_one_piece() -> None:
    """n > 1, priorities, shared prefixes: the outputs themselves, field by field."""
    specs = tuple(
        Spec(gap_s=0.01, prompt=7 + i, answer=20 + 3 * i, priority=i % 3, group=i % 2, shared=6) for i in range(9)
    )
    case = same(WIDE, specs=specs, prefix_caching=True, scheduling_policy="priority", depth=2)
    kept: list[list[Any]] = []
    for on in (True, False):
        s = scheduler_for(same(case, knobs=(("decode_fast_path", on),)))
        hand = ByHand(s, {f"r{i}": spec.answer for i, spec in enumerate(specs)})
        for arrival in arrivals_of(case):
            s.add_request(arrival.request)
        kept.append([])
        while s.has_requests():
            hand.schedule()
            kept[-1].append(hand.last)
            if len(hand.flights) == 2 or not hand.last.num_scheduled_tokens:
                hand.finish()
    assert s.counters.fast_steps == 0
    assert difference(*kept) is None


# -- the twins would notice -----------------------------------------------------------------------------------------


def _no_cached_blocks(path: FastPath) -> None:
    path._caches = False


def _no_step(path: FastPath) -> None:
    compose = path.compose

    def wrong(throttle_prefills: bool) -> SchedulerOutput | None:
        output = compose(throttle_prefills)
        path.s.current_step -= output is not None
        return output

    path.compose = wrong  # type: ignore[method-assign]


def _first_block_twice(path: FastPath) -> None:
    path._nothing = path.s.kv_cache_manager.create_kv_cache_blocks(([path.s.kv_cache_manager.block_pool.blocks[1]],))


def _keeps_finished(path: FastPath) -> None:
    output = path._output

    def wrong(data: Any) -> SchedulerOutput:
        before = path.s.finished_req_ids
        made = output(data)
        path.s.finished_req_ids = set(before)
        return made

    path._output = wrong  # type: ignore[method-assign]


def go_on(run: Twins) -> None:
    for step in range(20):
        run.step()
        if step == 5:
            run.add(Spec(prompt=4, answer=5))


@pytest.mark.parametrize("mistake", [_no_cached_blocks, _no_step, _first_block_twice, _keeps_finished])
def test_a_mistake_makes_a_difference(mistake: Callable[[FastPath], None]) -> None:
    case = same(WIDE, prefix_caching=True)
    run = twins(case, Spec(prompt=6, answer=9), Spec(prompt=5, answer=30), Spec(prompt=3, answer=30))
    mistake(run.scheduler.fast_path)
    with pytest.raises(AssertionError, match="the fast path makes a difference"):
        go_on(run)


def test_differences_are_told_by_where_they_are() -> None:
    one, other = (_Thing([1, 2], {"a": {3}}) for _ in range(2))
    assert difference(one, other) is None
    other.pairs["a"].add(4)
    assert difference(one, other) == ".pairs[a]: 1 and 2 items"
    shared = [7]
    assert difference([shared, shared], [[7], [7]]) == "[1]: another list is referred to"
    assert difference({"a": 1, "b": 1}, {"b": 1, "a": 1}) is not None


class _Thing:
    def __init__(self, numbers: list[int], pairs: dict[str, set[int]]) -> None:
        self.numbers, self.pairs = numbers, {k: set(v) for k, v in pairs.items()}


# -- when it is off -------------------------------------------------------------------------------------------------


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Any:
    rules.unknown.cache_clear()
    yield monkeypatch
    monkeypatch.undo()
    rules.unknown.cache_clear()


def test_the_installed_vllm_is_the_one_that_was_read(fresh: pytest.MonkeyPatch) -> None:
    assert rules.unknown() is None


def test_a_new_field_switches_it_off(fresh: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    fresh.setattr(rules, "OUTPUT_FIELDS", rules.OUTPUT_FIELDS - {"kv_cache_block_copies"})
    with caplog.at_level(logging.WARNING):
        s = scheduler_for(same(WIDE, knobs=(("decode_fast_path", True),)))
    assert s.fast_path.off == "vLLM's SchedulerOutput differs in kv_cache_block_copies"
    assert "fast path is off: vLLM's SchedulerOutput differs" in caplog.text
    assert "allocate_slots" not in vars(s.kv_cache_manager)
    hand = ByHand(s, {"r0": 12})
    for arrival in arrivals_of(same(WIDE, specs=(Spec(prompt=5, answer=12),))):
        s.add_request(arrival.request)
    hand.drain()
    assert hand.tokens == {"r0": 12}
    assert s.counters.fast_steps == 0


def test_another_method_switches_it_off(fresh: pytest.MonkeyPatch) -> None:
    from vllm.v1.core.single_type_kv_cache_manager import FullAttentionManager

    def get_num_skipped_tokens(self: Any, num_computed_tokens: int) -> int:
        return 1

    fresh.setattr(FullAttentionManager, "get_num_skipped_tokens", get_num_skipped_tokens)
    assert (
        rules.unknown()
        == "vLLM's FullAttentionManager.get_num_skipped_tokens is not the one that the rules were read from"
    )
    fresh.setattr(inspect, "getsource", lambda of: (_ for _ in ()).throw(OSError))
    rules.unknown.cache_clear()
    assert rules.unknown() == "vLLM's AsyncScheduler.schedule is not the one that the rules were read from"


@pytest.mark.parametrize(("attribute", "what"), [(a, what) for a, _, what in rules.PLAIN])
def test_a_feature_beyond_the_rules_switches_it_off(attribute: str, what: str) -> None:
    s = scheduler_for(WIDE)
    assert rules.unsuited(s) is None
    setattr(s, attribute, 2)
    assert rules.unsuited(s) == what
    delattr(s, attribute)
    assert rules.unsuited(s) == what, "an attribute that is gone"


def test_the_setting_switches_it_off(caplog: pytest.LogCaptureFixture) -> None:
    s = scheduler_for(same(WIDE, knobs=(("decode_fast_path", False),)))
    assert s.fast_path.off == "switched off by the setting"
    assert not caplog.records
