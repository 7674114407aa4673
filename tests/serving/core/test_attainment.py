"""TTFT and TPOT against each request's own SLO."""

from __future__ import annotations

from ecoserve.lengths import LengthDistribution
from ecoserve.serving.core.counters import Attainment, Counters
from ecoserve.serving.core.tasks import Task


def task(name: str, ttft: float | None = None, tpot: float | None = None, generated: int = 0) -> Task:
    lengths = LengthDistribution.point(10)
    return Task(name, 5, lengths, 10, 14, True, arrival_s=100.0, generated=generated, ttft_slo_s=ttft, tpot_slo_s=tpot)


def counted(counters: Counters) -> tuple[int, int, int, int]:
    return counters.ttft_met, counters.ttft_missed, counters.tpot_met, counters.tpot_missed


def test_both_times_are_judged_once() -> None:
    counters = Counters()
    a = Attainment(counters)
    quick, slow, other = task("quick", 1.0, 0.1), task("slow", 1.0, 0.1), task("other")
    for t in (quick, slow, other):
        a.arrives(t)
    assert counters.slo_requests == 2
    assert a.awaits(["other", "slow", "quick"]) == ["slow", "quick"]
    a.first_token("quick", 101.0)
    a.first_token("slow", 101.5)
    assert a.awaits(["other", "slow", "quick"]) == []
    quick.generated, slow.generated = 11, 11
    a.ended(quick, 102.0, completed=True)
    a.ended(slow, 102.6, completed=True)
    a.ended(other, 103.0, completed=True)
    assert counted(counters) == (1, 1, 1, 1)


def test_one_that_ends_with_its_first_token_is_judged_then() -> None:
    counters = Counters()
    a = Attainment(counters)
    one = task("one", 1.0, 0.1, generated=1)
    a.arrives(one)
    a.ended(one, 100.5, completed=True)
    assert counted(counters) == (1, 0, 1, 0)
    assert not a._first_s


def test_clients_that_leave_are_counted_only_where_we_were_late() -> None:
    counters = Counters()
    a = Attainment(counters)
    for name, left_s in (("early", 100.5), ("late", 101.5)):
        gone = task(name, 1.0, 0.1)
        a.arrives(gone)
        a.ended(gone, left_s, completed=False)
    half = task("half", 1.0, 0.1)
    a.arrives(half)
    a.first_token("half", 100.1)
    half.generated = 5
    a.ended(half, 200.0, completed=False)
    assert counted(counters) == (1, 1, 0, 0)


def test_a_bound_that_was_not_asked_for_is_not_counted() -> None:
    counters = Counters()
    a = Attainment(counters)
    only = task("only", tpot=0.1, generated=3)
    a.arrives(only)
    a.first_token("only", 100.1)
    a.ended(only, 101.0, completed=True)
    assert counted(counters) == (0, 0, 0, 1)
    again = task("again", ttft=1.0)
    a.arrives(again)
    a.forget("again")
    a.ended(again, 500.0, completed=True)
    assert counted(counters) == (0, 0, 0, 1)
