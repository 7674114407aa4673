"""Time on the host and on the GPU, several replicas on one clock, and which replica gets a request."""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from typing import Any

import pytest
from virtual_rig import STOCK, Case, Spec, arrivals_of, scheduler_for

from ecoserve.errors import RunError
from ecoserve.lengths import LengthDistribution
from ecoserve.serving.routing import ROUTERS, Router, RouterName
from ecoserve.serving.simulate.cost import LinearCost, StepWork, alone_s
from ecoserve.serving.simulate.loop import Arrival, LoopResult, run_replicas
from ecoserve.serving.simulate.replica import Charge, Replica
from ecoserve.serving.simulate.run import SimulateSettings, simulate


class Machine:
    """A GPU of 10 ms a step whose host takes ``host`` seconds, half of it for launching."""

    def __init__(self, host: float) -> None:
        self.host = host

    def seconds(self, work: StepWork) -> float:
        return 0.010

    def host_s(self, work: StepWork) -> float:
        return self.host

    def launch_s(self, work: StepWork) -> float:
        return self.host / 2


def period(depth: int, host: float, charge: Charge = "model") -> float:
    """Seconds a token of one request that has the machine for itself."""
    case = Case((Spec(prompt=20, answer=40),), policy=STOCK, depth=depth)
    replica = Replica(scheduler_for(case), Machine(host), depth, charge=charge)
    row = run_replicas([replica], arrivals_of(case)).rows[0]
    assert row.finish_s is not None
    assert row.first_token_s is not None
    return (row.finish_s - row.first_token_s) / 39


# -- host and GPU -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("depth", "host", "seconds"), [(1, 0.004, 0.014), (2, 0.004, 0.010), (2, 0.016, 0.016)])
def test_the_host_adds_at_depth_one_and_hides_at_depth_two(depth: int, host: float, seconds: float) -> None:
    assert period(depth, host) == pytest.approx(seconds, rel=0.02)


def test_what_scheduling_is_charged_as() -> None:
    assert period(1, 0.008, "none") == pytest.approx(0.014), "launching stays"
    measured = period(1, 0.008, "measured")
    assert measured > 0.014, "scheduling took some time of this machine"
    assert measured != period(1, 0.008, "measured"), "and not the same again"


def test_what_other_processes_take_is_not_charged(monkeypatch: pytest.MonkeyPatch) -> None:
    worked, passed = count(), count()
    # Half a millisecond of work in each call, while a minute passes on the wall.
    monkeypatch.setattr("ecoserve.serving.simulate.replica.time.thread_time", lambda: next(worked) / 2000)
    monkeypatch.setattr("ecoserve.serving.simulate.replica.time.perf_counter", lambda: 60.0 * next(passed))
    gpu, launch, schedule, update = 0.010, 0.004, 0.0005, 0.0005
    assert period(1, 0.008, "measured") == pytest.approx(gpu + launch + schedule + update)


def test_a_first_token_waits_for_the_host() -> None:
    case = Case((Spec(prompt=20, answer=1),), policy=STOCK)
    replica = Replica(scheduler_for(case), Machine(0.004))
    assert run_replicas([replica], arrivals_of(case)).rows[0].first_token_s == pytest.approx(0.014)


def test_alone_is_what_an_idle_engine_takes() -> None:
    cost = Machine(0.004)
    for depth in (1, 2):
        case = Case((Spec(prompt=150, answer=30),), policy=STOCK, depth=depth, max_num_batched_tokens=64)
        row = run_replicas([Replica(scheduler_for(case), cost, depth)], arrivals_of(case)).rows[0]
        assert row.finish_s == pytest.approx(alone_s(cost, 150, 30, depth, 64), rel=0.05)


def test_a_step_says_what_kernels_need() -> None:
    works: list[StepWork] = []

    class Noting(LinearCost):
        def seconds(self, work: StepWork) -> float:
            works.append(replace(work))
            return super().seconds(work)

    case = Case((Spec(prompt=100, answer=3), Spec(prompt=40, answer=3)), policy=STOCK, max_num_batched_tokens=64)
    run_replicas([Replica(scheduler_for(case), Noting())], arrivals_of(case))
    assert works[0].chunks == [(64, 0)]
    assert works[1].chunks == [(36, 64), (28, 0)]
    assert (works[2].chunks, works[2].decodes, works[2].decode_context_tokens) == ([(12, 28)], 1, 101)
    for work in works:
        assert work.prefill_tokens == sum(new for new, _ in work.chunks)
        chunks = sum(new + before for new, before in work.chunks)
        assert work.context_tokens == chunks + work.decode_context_tokens
        assert work.requests == work.decodes + len(work.chunks)


# -- several replicas --------------------------------------------------------------------------------------------------


def serve(
    specs: tuple[Spec, ...],
    replicas: int,
    router: RouterName,
    predicted: bool = True,
    depth: int = 1,
    stale_s: float = 0.0,
    **engine: Any,
) -> LoopResult:
    case = Case(specs, policy=STOCK, depth=depth, **engine)
    engines = [Replica(scheduler_for(case), LinearCost(), depth, index=i) for i in range(replicas)]
    arrivals = arrivals_of(case)
    for arrival, spec in zip(arrivals, specs, strict=True):
        tokens = spec.predicted_answer or spec.answer
        arrival.lengths = LengthDistribution.point(tokens) if predicted else None
    return run_replicas(engines, arrivals, Router(router, range(replicas)), stale_s=stale_s)


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("router", sorted(ROUTERS))
def test_every_request_is_served_by_one_replica(router: RouterName, depth: int) -> None:
    specs = tuple(Spec(gap_s=0.01, prompt=8 + i, answer=5 + 7 * i % 40) for i in range(30))
    result = serve(specs, 3, router, depth=depth)
    assert [r.output_tokens for r in result.rows] == [s.answer for s in specs]
    assert set(result.replica_of) == {r.request_id for r in result.rows}
    assert set(result.replica_of.values()) == {0, 1, 2}
    assert result == replace(serve(specs, 3, router, depth=depth), totals=result.totals), (
        "the same load gives the same run"
    )


def test_one_replica_of_many_is_a_machine_of_its_own() -> None:
    """Two requests far apart in load, on two replicas, take what each takes alone."""
    specs = (Spec(prompt=20, answer=30), Spec(prompt=100, answer=10))
    both = serve(specs, 2, "round-robin").rows
    alone = [serve((spec,), 1, "round-robin").rows[0] for spec in specs]
    assert [r.finish_s for r in both] == [r.finish_s for r in alone]


def test_round_robin_takes_turns() -> None:
    specs = tuple(Spec(gap_s=0.01) for _ in range(7))
    assert list(serve(specs, 3, "round-robin").replica_of.values()) == [0, 1, 2, 0, 1, 2, 0]


def test_long_answers_that_come_in_step_with_the_turns_do_not_pile_up() -> None:
    """Every second request is long: round robin sends all of those to one replica."""
    specs = tuple(Spec(gap_s=0.02, prompt=8, answer=150 if i % 2 else 4, max_tokens=180) for i in range(24))
    engine = {"max_num_seqs": 4, "blocks": 60}
    turns, tokens = (serve(specs, 2, router, **engine) for router in ("round-robin", "least-work"))
    piled = {turns.replica_of[f"r{i}"] for i in range(1, 24, 2)}
    assert len(piled) == 1, "this load is not adversarial"
    assert {tokens.replica_of[f"r{i}"] for i in range(1, 24, 2)} == {0, 1}

    def mean_e2el(result: LoopResult) -> float:
        long = [r for r in result.rows if r.output_tokens > 100]
        return sum(r.e2el_s or 0.0 for r in long) / len(long)

    assert mean_e2el(tokens) < 0.7 * mean_e2el(turns)
    assert tokens.end_s < 0.7 * turns.end_s


def test_a_router_sees_predictions_and_never_true_lengths() -> None:
    """Permuting the true lengths of answers that have not ended changes no choice; permuting predictions does."""
    specs = tuple(Spec(gap_s=0.001, prompt=8, answer=60 + i, predicted_answer=30 + 7 * i % 50) for i in range(12))
    other = tuple(replace(s, answer=71 - i) for i, s in enumerate(specs))
    wrong = tuple(replace(s, predicted_answer=80 - 5 * i) for i, s in enumerate(specs))
    first, permuted, lied = (serve(x, 3, "least-work", blocks=100).replica_of for x in (specs, other, wrong))
    assert first == permuted
    assert first != lied


def test_a_router_sees_what_has_ended_and_no_more() -> None:
    """Between two arrivals a request ends: only then does the router see its replica as free."""
    short = Spec(prompt=8, answer=5)
    long = Spec(prompt=8, answer=100, gap_s=0.001)
    late = Spec(prompt=8, answer=5, gap_s=0.3)
    assert list(serve((short, long, late), 2, "least-requests", blocks=60).replica_of.values()) == [0, 1, 0]
    soon = replace(late, gap_s=0.001)
    assert list(serve((long, short, soon, soon), 2, "least-requests", blocks=60).replica_of.values()) == [0, 1, 0, 1]


def test_a_replica_that_hangs_is_an_error_even_if_others_are_done() -> None:
    case = Case((Spec(), Spec(), Spec()))
    engines = [Replica(scheduler_for(case), LinearCost(), index=i) for i in range(2)]
    engines[1].scheduler.waiting._gate = lambda request: False
    with pytest.raises(RunError, match=r"no progress: \(0, 1\) running and waiting"):
        run_replicas(engines, arrivals_of(case))


@pytest.mark.parametrize(("stale_s", "third"), [(0.0, 0), (0.2, 0), (10.0, 1)])
def test_a_client_that_goes_away_comes_off_the_routers_load_when_it_looks(stale_s: float, third: int) -> None:
    gone = Spec(prompt=8, answer=140, max_tokens=150, abort_after_s=0.1)
    specs = (gone, Spec(prompt=8, answer=100), Spec(prompt=8, answer=90, gap_s=0.3))
    result = serve(specs, 2, "least-work", stale_s=stale_s, blocks=100)
    assert [r.status for r in result.rows] == ["failed", "completed", "completed"]
    assert list(result.replica_of.values()) == [0, 1, third]


def test_totals_are_sums_and_shares_are_means() -> None:
    specs = tuple(Spec(gap_s=0.005, prompt=30, answer=60) for _ in range(16))
    one, two = (serve(specs, n, "round-robin", blocks=24) for n in (1, 2))
    assert one.totals.preemptions > 0
    halves = [serve(specs[i::2], 1, "round-robin", blocks=24).totals for i in (0, 1)]
    assert two.totals.steps == pytest.approx(sum(h.steps for h in halves), abs=4)
    assert two.totals.preemptions <= one.totals.preemptions
    assert 0 < (two.totals.kv_used_mean or 0) <= 1
    assert len(two.totals.schedule_s) == two.totals.steps
    assert sum(r.preemptions for r in one.rows) == one.totals.preemptions


# -- from settings -----------------------------------------------------------------------------------------------------


def test_two_replicas_from_settings() -> None:
    chosen = SimulateSettings(
        trace="synthetic:300",
        policy="ecoserve",
        lengths="noise:0.4",
        rate_rps=40.0,
        requests=40,
        blocks=120,
        replicas=2,
        max_model_len=1024,
        max_tokens=300,
        router="least-work",
        slo_ttft_ms=500.0,
        slo_tpot_ms=40.0,
    )
    summary = simulate(chosen).summary()
    assert (summary["replicas"], summary["router"]) == (2, "least-work")
    assert summary["completed"] == 40
    assert 0 <= summary["slo_attainment"] <= 1
    alone = simulate(chosen.model_copy(update={"replicas": 1})).summary()
    assert summary["e2el_mean_ms"] < alone["e2el_mean_ms"]
    assert summary["kv_demand_peak"] < alone["kv_demand_peak"]
    assert "replicas" not in alone


def test_arrivals_are_handed_over_between_steps_in_order() -> None:
    order: list[str] = []
    case = Case(tuple(Spec(gap_s=0.003) for _ in range(9)), policy=STOCK)
    engine = Replica(scheduler_for(case), LinearCost())
    add = engine.scheduler.add_request
    engine.scheduler.add_request = lambda request: (order.append(request.request_id), add(request))[1]
    arrivals: list[Arrival] = arrivals_of(case)
    run_replicas([engine], arrivals[::-1])
    assert order == [f"r{i}" for i in range(9)]
