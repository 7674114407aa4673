"""The virtual clock: time, pipeline depth, aborts, and what it reports."""

from __future__ import annotations

from typing import Any

import pytest
from virtual_rig import STOCK, Case, Spec, StrictWorker, arrivals_of, drive, play, scheduler_for

from ecoserve.errors import RunError
from ecoserve.serving.simulate.cost import LinearCost, StepWork
from ecoserve.serving.simulate.loop import run_replicas
from ecoserve.serving.simulate.replica import Replica

COST = LinearCost(step_s=0.01, prefill_token_s=0.001, decode_s=0.0001, context_token_s=0.0)


def run(case: Case) -> Any:
    return drive(scheduler_for(case), arrivals_of(case), case.depth, StrictWorker(case), cost=COST)


def test_a_step_costs_what_its_work_costs() -> None:
    cost = LinearCost(step_s=1.0, prefill_token_s=0.1, decode_s=0.01, context_token_s=0.001)
    work = StepWork(prefill_tokens=5, decodes=3, context_tokens=40)
    assert cost.seconds(work) == pytest.approx(1.0 + 0.5 + 0.03 + 0.04)
    assert cost.seconds(StepWork()) == 1.0


def test_costs_are_not_negative() -> None:
    with pytest.raises(ValueError, match="step_s"):
        LinearCost(step_s=-1.0)


@pytest.mark.parametrize("policy", ["ecoserve", STOCK])
def test_one_request_takes_its_prefill_and_its_decodes(policy: str) -> None:
    (row,) = run(Case((Spec(prompt=20, answer=5),), policy=policy)).rows
    prefill, decode = 0.01 + 0.02, 0.01 + 0.0001
    assert row.first_token_s == pytest.approx(prefill)
    assert row.finish_s == pytest.approx(prefill + 4 * decode)
    assert row.output_tokens == 5
    assert row.status == "completed"


@pytest.mark.parametrize("depth", [1, 2])
def test_the_clock_jumps_to_the_next_arrival(depth: int) -> None:
    case = Case((Spec(prompt=20, answer=2), Spec(gap_s=100.0, prompt=20, answer=2)), depth=depth)
    result = run(case)
    assert result.rows[1].arrival_s == 100.0
    assert result.rows[1].first_token_s == pytest.approx(100.03)
    assert 100.0 < result.end_s < 100.1
    assert result.totals.steps < 12, "no steps are run while nothing happens"


def test_at_depth_two_a_step_is_scheduled_before_the_last_ones_output() -> None:
    seen: dict[int, list[tuple[int, int]]] = {}
    for depth in (1, 2):
        seen[depth] = []

        def look(s: Any, output: Any, depth: int = depth) -> None:
            for request in s.running:
                seen[depth].append((request.num_in_flight_tokens, request.num_output_placeholders))

        case = Case((Spec(prompt=20, answer=8),), depth=depth)
        play(case, look)
    assert max(p for _, p in seen[1]) == 0
    assert max(p for _, p in seen[2]) == 2


def test_the_last_step_at_depth_two_is_for_nothing_and_is_not_counted_as_output() -> None:
    one, two = (play(Case((Spec(prompt=20, answer=8, max_tokens=50),), depth=d)) for d in (1, 2))
    assert [p.result.rows[0].output_tokens for p in (one, two)] == [8, 8]
    scheduled = [p.scheduler.counters.steps for p in (one, two)]
    assert scheduled[1] == scheduled[0] + 1


@pytest.mark.parametrize("depth", [0, 3])
def test_no_other_depths(depth: int) -> None:
    with pytest.raises(ValueError, match="depth must be 1 to 2"):
        Replica(scheduler_for(Case(())), COST, depth)


# -- aborts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("policy", ["ecoserve", STOCK])
def test_a_client_that_goes_away(policy: str, depth: int) -> None:
    leaves = Spec(prompt=20, answer=60, max_tokens=100, abort_after_s=0.1)
    rows = play(Case((leaves, Spec(prompt=20, answer=30)), policy=policy, depth=depth)).result.rows
    assert (rows[0].status, rows[0].error) == ("failed", "aborted")
    assert 0 < rows[0].output_tokens < 60
    assert rows[0].finish_s is None
    assert rows[1].status == "completed"


def test_going_away_after_the_end_changes_nothing() -> None:
    (row,) = play(Case((Spec(prompt=20, answer=3, abort_after_s=50.0),))).result.rows
    assert row.status == "completed"


def test_going_away_in_the_queue() -> None:
    specs = (Spec(prompt=20, answer=60), Spec(prompt=20, answer=60, abort_after_s=0.05))
    rows = play(Case(specs, max_num_seqs=1)).result.rows
    assert [r.status for r in rows] == ["completed", "failed"]
    assert rows[1].output_tokens == 0


# -- a hang is an error -----------------------------------------------------------------------------------------------


def test_a_scheduler_that_schedules_nothing_is_an_error() -> None:
    case = Case((Spec(), Spec()))
    s = scheduler_for(case)
    s.waiting._gate = lambda request: False
    with pytest.raises(RunError, match=r"no progress: \(0, 2\) running and waiting"):
        drive(s, arrivals_of(case))


# -- what it reports ------------------------------------------------------------------------------------------


def test_a_load_of_nothing() -> None:
    result = run(Case(()))
    assert result.rows == []
    assert result.end_s == 0.0
    assert result.totals.steps == 0


def test_kv_is_averaged_over_time() -> None:
    case = Case((Spec(prompt=32, answer=1),), blocks=10, max_model_len=160)
    assert run(case).totals.kv_used_mean == pytest.approx(0.2), "two of ten blocks, all of the time"
    longer = Case((Spec(prompt=30, answer=4),), blocks=10, max_model_len=160)
    replica = Replica(scheduler_for(longer), COST)
    assert 0.2 < (run_replicas([replica], arrivals_of(longer)).totals.kv_used_mean or 0) < 0.3
    assert replica.peak_blocks == 3


def test_every_step_is_timed() -> None:
    totals = run(Case((Spec(prompt=20, answer=9),))).totals
    assert len(totals.schedule_s) == totals.steps
    assert len(totals.update_s) == totals.steps
    assert min(totals.schedule_s) > 0


def test_rows_are_in_order_of_arrival_and_carry_what_was_predicted() -> None:
    case = Case(tuple(Spec(gap_s=0.01 * i, prompt=8 + i) for i in range(5)))
    arrivals = arrivals_of(case)
    for i, arrival in enumerate(arrivals):
        arrival.predicted_tokens = 10.0 + i
    rows = drive(scheduler_for(case), arrivals[::-1]).rows
    assert [r.request_id for r in rows] == [f"r{i}" for i in range(5)]
    assert [r.prompt_tokens for r in rows] == [8 + i for i in range(5)]
    assert [r.predicted_tokens for r in rows] == [10.0 + i for i in range(5)]


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("policy", ["ecoserve-paper", "ecoserve", STOCK])
def test_kv_over_time_and_pauses_add_up_to_the_totals(policy: str, depth: int) -> None:
    specs = tuple(Spec(gap_s=0.01, prompt=20, answer=30 + 5 * (i % 7), source="inverted") for i in range(24))
    case = Case(specs, policy=policy, depth=depth)
    replica = Replica(scheduler_for(case), COST, depth, StrictWorker(case))
    result = run_replicas([replica], arrivals_of(case))
    totals = result.totals
    assert sum(row.pauses for row in result.rows) == totals.pauses
    busy = replica.kv.seconds
    for name in ("used", "reserved", "lent"):
        column = "held" if name == "used" else name
        area = sum(getattr(point, column) * point.seconds for point in result.kv)
        assert area == pytest.approx(getattr(totals, f"kv_{name}_mean") * busy), name
    assert all(point.wasted is not None and 0 <= point.wasted <= 1.01 for point in result.kv)
    if policy == "ecoserve-paper":
        assert totals.pauses > 0
        assert any(point.wasted for point in result.kv), "inverted predictions reserve too much for some"
    if policy == STOCK:
        assert not any(point.wasted for point in result.kv)
        assert set(totals.mispredictions.values()) == {0}
