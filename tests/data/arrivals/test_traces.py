"""Arrivals of a trace: Poisson at a rate, as recorded, stretched, or conversation by conversation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ecoserve.data import LoadReport, Record, Trace, fingerprint, poisson_arrivals, with_arrivals
from ecoserve.data.arrivals import ThinkTime, rescale_arrivals
from ecoserve.errors import TraceError


def trace_of(*arrivals: float | None) -> Trace:
    records = tuple(Record(str(i), arrival_s=t, response_tokens=1) for i, t in enumerate(arrivals))
    return Trace(records, "here", "records", fingerprint(records), "trace", LoadReport())


def test_gaps_are_exponential_at_the_rate() -> None:
    times = poisson_arrivals(20_000, 4.0, seed=3)
    gaps = np.diff(times, prepend=0.0)
    assert gaps.min() > 0
    assert gaps.mean() == pytest.approx(0.25, rel=0.03)
    assert gaps.std() == pytest.approx(0.25, rel=0.05)
    # Memoryless: of those longer than the mean, the rest is as long as any.
    assert (gaps[gaps > 0.25] - 0.25).mean() == pytest.approx(0.25, rel=0.05)


def test_the_seed_decides_and_the_rate_stretches() -> None:
    one = poisson_arrivals(100, 1.0, seed=5)
    assert np.array_equal(one, poisson_arrivals(100, 1.0, seed=5))
    assert not np.array_equal(one, poisson_arrivals(100, 1.0, seed=6))
    assert poisson_arrivals(100, 8.0, seed=5) * 8.0 == pytest.approx(one)
    assert np.array_equal(one[:10], poisson_arrivals(10, 1.0, seed=5))
    assert poisson_arrivals(0, 1.0, seed=5).shape == (0,)


@pytest.mark.parametrize(("n", "rate"), [(-1, 1.0), (5, 0.0), (5, -2.0), (5, math.nan), (5, math.inf)])
def test_impossible_arrivals_are_refused(n: int, rate: float) -> None:
    with pytest.raises(TraceError):
        poisson_arrivals(n, rate, seed=0)


def test_a_rate_replaces_recorded_arrivals_and_keeps_the_order() -> None:
    trace = trace_of(5.0, 1.0, None)
    got = with_arrivals(trace, rate=2.0, seed=1)
    assert [r.conversation for r in got.records] == ["0", "1", "2"]
    assert [r.arrival_s for r in got.records] == poisson_arrivals(3, 2.0, seed=1).tolist()
    assert got.sha256 == fingerprint(got.records) != trace.sha256
    assert [r.arrival_s for r in trace.records] == [5.0, 1.0, None]


def test_recorded_arrivals_are_sorted_and_start_at_zero() -> None:
    got = with_arrivals(trace_of(7.5, 5.0, 7.5, 6.0))
    assert [(r.conversation, r.arrival_s) for r in got.records] == [("1", 0.0), ("3", 1.0), ("0", 2.5), ("2", 2.5)]
    assert with_arrivals(got).records == got.records
    assert with_arrivals(trace_of()).records == ()


def test_missing_arrivals_are_refused_with_the_way_out() -> None:
    with pytest.raises(TraceError, match=r"here: 2 of 3 records have no recorded arrival; give a rate"):
        with_arrivals(trace_of(1.0, None, None))


def talks(*turns: int, tokens: int = 100) -> Trace:
    """A trace of conversations with so many turns each, one after the other."""
    records = tuple(
        Record(f"c{i}", turn=k, response_tokens=tokens, prompt=f"{i}.{k}")
        for i, n in enumerate(turns)
        for k in range(n)
    )
    return Trace(records, "talks", "records", fingerprint(records), "trace", LoadReport())


def test_turns_come_after_a_think_time() -> None:
    trace = talks(*[1, 3, 5, 2] * 500)
    think = ThinkTime(median_s=8.0, sigma=0.7, seconds_per_token=0.02)
    got = with_arrivals(trace, rate=6.0, seed=3, think=think)
    assert len(got) == len(trace)
    times = [r.arrival_s or 0.0 for r in got.records]
    assert times == sorted(times)
    last: dict[str, float] = {}
    pauses = []
    for r in got.records:
        if r.turn:
            pauses.append((r.arrival_s or 0.0) - last[r.conversation] - 100 * 0.02)
        last[r.conversation] = r.arrival_s or 0.0
    logs = np.log(pauses)
    assert np.exp(logs.mean()) == pytest.approx(8.0, rel=0.05)
    assert logs.std() == pytest.approx(0.7, rel=0.05)
    # Between the first seconds and the last ones, requests come at the rate.
    middle = [t for t in times if 100 <= t < 700]
    assert len(middle) / 600 == pytest.approx(6.0, rel=0.1)
    assert got.records == with_arrivals(trace, rate=6.0, seed=3, think=think).records
    assert got.records != with_arrivals(trace, rate=6.0, seed=4, think=think).records


def test_another_rate_moves_conversations_not_the_thinking() -> None:
    trace, think = talks(*[3] * 50), ThinkTime(5.0)
    slow, fast = (
        {(r.conversation, r.turn): r.arrival_s or 0.0 for r in with_arrivals(trace, rate, 1, think=think).records}
        for rate in (2.0, 4.0)
    )
    for i in range(50):
        assert fast[f"c{i}", 0] * 2.0 == pytest.approx(slow[f"c{i}", 0])
        assert fast[f"c{i}", 2] - fast[f"c{i}", 0] == pytest.approx(slow[f"c{i}", 2] - slow[f"c{i}", 0])


def test_several_answers_to_one_turn_are_asked_for_at_once() -> None:
    records = tuple(Record("c", turn=t, sample=s, response_tokens=5) for t in (0, 1) for s in (0, 1, 2))
    trace = Trace(records, "here", "records", fingerprint(records), "trace", LoadReport())
    times = [r.arrival_s for r in with_arrivals(trace, 1.0, 0, think=ThinkTime(4.0)).records]
    assert len(set(times[:3])) == len(set(times[3:])) == 1
    assert times[0] != times[3]


@pytest.mark.parametrize("bad", [{"median_s": 0}, {"median_s": math.nan}, {"median_s": 1, "sigma": -1}])
def test_impossible_thinking_is_refused(bad: dict[str, float]) -> None:
    with pytest.raises(TraceError, match="think time"):
        ThinkTime(**bad)


def test_recorded_arrivals_can_be_stretched_to_a_rate() -> None:
    got = rescale_arrivals(trace_of(7.0, 5.0, 6.5), rate=4.0)
    assert [(r.conversation, r.arrival_s) for r in got.records] == [("1", 0.0), ("2", 0.375), ("0", 0.5)]
    for rate in (0.0, math.nan):
        with pytest.raises(TraceError, match="is not above 0"):
            rescale_arrivals(trace_of(1.0, 2.0), rate)
    with pytest.raises(TraceError, match="arrivals at one time"):
        rescale_arrivals(trace_of(1.0, 1.0), 2.0)
    with pytest.raises(TraceError, match="1 of 2 records have no recorded arrival"):
        rescale_arrivals(trace_of(1.0, None), 2.0)
