"""The metrics of a run, by hand on three requests."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ecoserve.serving.runs import EngineTotals, RequestRow, RunResult


def row(name: str, at: float, first: float | None, end: float | None, tokens: int, **fields: Any) -> RequestRow:
    return RequestRow(name, at, 10, output_tokens=tokens, first_token_s=first, finish_s=end, **fields)


ROWS = [
    row("a", 0.0, 1.0, 5.0, 5, deadline_s=6.0),
    row("b", 2.0, 3.0, 3.0, 1, deadline_s=2.5),
    row("c", 4.0, 6.0, 14.0, 9, deadline_s=14.0),
]


def result(rows: list[RequestRow], totals: EngineTotals | None = None, **labels: Any) -> dict[str, Any]:
    return RunResult("ecoserve", "true", 2.0, 7, rows, totals or EngineTotals(), labels).summary()


def test_times_of_one_request() -> None:
    a = ROWS[0]
    assert (a.e2el_s, a.ttft_s, a.tpot_s, a.normalized_latency_s) == (5.0, 1.0, 1.0, 1.0)
    assert ROWS[1].tpot_s is None
    assert ROWS[1].normalized_latency_s == 1.0


def test_what_never_came_has_no_times() -> None:
    lost = row("x", 0.0, None, None, 0)
    assert (lost.e2el_s, lost.ttft_s, lost.tpot_s, lost.normalized_latency_s) == (None, None, None, None)
    assert lost.met_deadline is None
    assert row("x", 0.0, None, None, 0, deadline_s=5.0).met_deadline is False


def test_the_summary_by_hand() -> None:
    s = result(ROWS, depth=2)
    assert (s["policy"], s["lengths"], s["rate_rps"], s["seed"], s["depth"]) == ("ecoserve", "true", 2.0, 7, 2)
    assert (s["requests"], s["completed"], s["rejected"], s["failed"]) == (3, 3, 0, 0)
    assert s["duration_s"] == 14.0
    assert s["throughput_rps"] == pytest.approx(3 / 14)
    assert s["output_tokens_per_s"] == pytest.approx(15 / 14)
    assert s["slo_attainment"] == pytest.approx(2 / 3)
    assert s["goodput_rps"] == pytest.approx(2 / 14)
    e2el = [5.0, 1.0, 10.0]
    assert s["e2el_mean_ms"] == pytest.approx(np.mean(e2el) * 1e3)
    assert s["e2el_p90_ms"] == pytest.approx(np.percentile(e2el, 90) * 1e3)
    assert s["ttft_p50_ms"] == pytest.approx(1000.0)
    assert s["tpot_mean_ms"] == pytest.approx(1000.0), "answers of one token have no time per further token"
    assert s["normalized_latency_mean_ms"] == pytest.approx(np.mean([1.0, 1.0, 10 / 9]) * 1e3)


def test_the_failed_and_the_rejected_count_as_such() -> None:
    failed = row("x", 1.0, 2.0, None, 3, status="failed", error="aborted", deadline_s=9.0)
    rejected = row("y", 1.0, None, None, 0, status="rejected", deadline_s=9.0)
    s = result([*ROWS, failed, rejected])
    assert (s["requests"], s["completed"], s["rejected"], s["failed"]) == (5, 3, 1, 1)
    assert s["slo_attainment"] == pytest.approx(2 / 4), (
        "a failed request has missed its deadline, a rejected one had none"
    )
    assert s["output_tokens_per_s"] == pytest.approx(15 / 14), "tokens of failed requests are not output"


def test_totals_are_taken_over() -> None:
    totals = EngineTotals(
        preemptions=3,
        recomputed_tokens=50,
        pauses=4,
        re_reservations=5,
        steps=6,
        kv_used_mean=0.5,
        schedule_s=[0.001, 0.003],
        update_s=[0.002],
    )
    s = result(ROWS, totals)
    assert (s["preemptions"], s["recomputed_tokens"], s["pauses"], s["re_reservations"], s["steps"]) == (3, 50, 4, 5, 6)
    assert (s["kv_used_mean"], s["kv_lent_mean"]) == (0.5, None)
    assert s["schedule_p50_ms"] == pytest.approx(2.0)
    assert s["update_p50_ms"] == pytest.approx(2.0)


@pytest.mark.parametrize("rows", [[], [row("x", 3.0, None, None, 0, status="failed")]])
def test_a_run_of_nothing_has_no_figures_and_no_nan(rows: list[RequestRow]) -> None:
    s = result(rows)
    assert s["completed"] == 0
    assert s["duration_s"] == 0.0
    for key in ("throughput_rps", "goodput_rps", "slo_attainment", "e2el_mean_ms", "ttft_p99_ms", "schedule_p50_ms"):
        assert s[key] is None
    assert not [k for k, v in s.items() if isinstance(v, float) and v != v]


def test_without_deadlines_there_is_no_attainment() -> None:
    s = result([row("a", 0.0, 1.0, 5.0, 5)])
    assert s["slo_attainment"] is None
    assert s["goodput_rps"] is None
