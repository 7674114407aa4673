"""Arrivals: Poisson at a rate, or as recorded."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ecoserve.data import LoadReport, Record, Trace, fingerprint, poisson_arrivals, with_arrivals
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
