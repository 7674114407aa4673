"""Drift: a shift that was put in is found and put down to the right cause, and none is found where there is none."""

from __future__ import annotations

import numpy as np
import pytest
from profiled import skewed, table_of

from ecoserve.data.profiling.model import Drift
from ecoserve.data.profiling.over_time import drift, in_order, mix_and_within
from ecoserve.data.profiling.table import TraceTable


def drift_of(table: TraceTable) -> Drift:
    found = drift(table, np.unique(table.conversation, return_inverse=True)[1])
    assert found is not None
    return found


def test_longer_answers_to_the_same_requests() -> None:
    first, second = skewed(2000, 200, seed=1), skewed(2000, 300, seed=2)
    found = drift_of(table_of(np.concatenate((first, second)), prompt_tokens=[100] * 4000))
    assert found.kind == "marked"
    assert found.change_tokens == pytest.approx(second.mean() - first.mean())
    assert found.change_low_tokens < 100 * np.exp(0.18) < found.change_high_tokens
    assert found.within_tokens == pytest.approx(found.change_tokens)
    assert found.mix_tokens == pytest.approx(0.0, abs=1e-9)
    assert "answered differently" in found.verdict
    assert len(found.windows) == 20
    assert sum(w.n for w in found.windows) == 4000
    # Two levels and nothing between: the windows of the first half are all below those of the second.
    assert max(w.p50 for w in found.windows[:10]) < min(w.p50 for w in found.windows[10:])


def test_other_requests_with_the_same_answers() -> None:
    """Short prompts always have answers around 50, long ones around 500; long ones become more."""
    rng = np.random.default_rng(0)
    long = rng.random(4000) < np.where(np.arange(4000) < 2000, 0.2, 0.6)
    lengths = np.where(long, skewed(4000, 500, 0.2, seed=3), skewed(4000, 50, 0.2, seed=4))
    found = drift_of(table_of(lengths, prompt_tokens=np.where(long, 1000, 10)))
    assert found.kind == "marked"
    assert found.mix_tokens is not None
    assert found.within_tokens is not None
    assert found.mix_tokens / found.change_tokens > 0.95
    assert found.mix_tokens + found.within_tokens == pytest.approx(found.change_tokens)
    assert "by other kinds of requests" in found.verdict


def test_a_trend_has_its_sign() -> None:
    falling = np.linspace(600, 300, 3000) * np.random.default_rng(0).lognormal(0, 0.2, 3000)
    found = drift_of(table_of(falling.round().astype(int)))
    assert found.trend_tau is not None
    assert found.trend_p is not None
    assert found.trend_tau < -0.8
    assert found.trend_p < 0.001
    assert found.change_high_tokens < 0
    assert "shorter" in found.verdict


def test_nothing_is_found_where_nothing_is() -> None:
    """False alarms are as rare as they should be."""
    alarms = sum(drift_of(table_of(skewed(1000, seed=seed))).kind != "none" for seed in range(40))
    assert alarms <= 3


def test_long_conversations_are_no_drift() -> None:
    """Conversations of 40 answers of nearly equal length: neighbours are alike, and that is all."""
    alarms = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        lengths = np.repeat(rng.lognormal(5, 0.5, 50), 40) * rng.lognormal(0, 0.05, 2000)
        names = [f"c{i // 40}" for i in range(2000)]
        alarms += drift_of(table_of(np.maximum(1, lengths.round()).astype(int), conversation=names)).kind != "none"
    assert alarms <= 6


def test_time_is_the_order_where_it_is_known() -> None:
    lengths = np.concatenate((skewed(500, 100, 0.2, seed=1), skewed(500, 400, 0.2, seed=2)))
    shuffled = np.random.default_rng(0).permutation(1000)
    table = table_of(lengths[shuffled], arrival_s=[float(t) for t in shuffled])
    found = drift_of(table)
    assert (found.order, found.kind) == ("arrival", "marked")
    assert [w.begin_s for w in found.windows][:2] == [0.0, 50.0]
    by_file = drift_of(table_of(lengths[shuffled]))
    assert (by_file.order, by_file.kind) == ("file", "none")
    assert "need not be time" in by_file.verdict


def test_few_arrivals_are_no_order_and_gaps_stay_where_they_were() -> None:
    assert in_order(table_of([1, 2, 3], arrival_s=[3.0, None, None]))[1] == "file"
    times: list[float | None] = [float(t) for t in range(40)]
    times[20] = None
    order, by = in_order(table_of(range(1, 41), arrival_s=times))
    assert by == "arrival"
    assert order.tolist() == list(range(40))


def test_few_records_have_no_drift() -> None:
    table = table_of(skewed(199))
    assert drift(table, np.arange(199)) is None


def test_equal_lengths_do_not_drift() -> None:
    found = drift_of(table_of([5] * 400))
    assert (found.kind, found.between_windows, found.between_windows_p, found.trend_tau) == ("none", 0.0, 1.0, None)


def test_mix_and_within_by_hand() -> None:
    a, b = np.asarray([0, 0, 0, 1]), np.asarray([0, 1, 1, 1])
    mix, within = mix_and_within(a, np.asarray([10, 10, 10, 30]), b, np.asarray([12, 30, 30, 30]))
    # Mean goes from 15 to 25.5; within: cell 0 rises by 2, and has half of the records on average.
    assert within == pytest.approx(1.0)
    assert mix == pytest.approx(9.5)
    assert mix_and_within(np.asarray([0]), np.asarray([1.0]), np.asarray([1]), np.asarray([2.0])) == (None, None)
