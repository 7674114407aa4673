"""What reserving wastes: by hand, and step by step."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from profiled import skewed, table_of, trace_of

from ecoserve.data.profiling import Predictions, profile_trace
from ecoserve.data.profiling.model import Waste
from ecoserve.data.profiling.same_prompt import answer_sets
from ecoserve.data.profiling.worth import find, reserve, reserved_time, used_time, waste


def way(found: Waste, policy: str) -> dict[str, float]:
    reservation = find(found, policy)
    assert reservation is not None, policy
    return {k: v for k, v in reservation.model_dump().items() if k != "policy"}


def test_a_small_case_by_hand() -> None:
    """A prompt of 10 answered with 2 tokens, one of 0 with 4; max_tokens 8."""
    found = waste(table_of([2, 4], prompt_tokens=[10, 0]), None, None, 8)
    # Used: (11 + 12) + (1 + 2 + 3 + 4). Reserved: 2 steps of 18, 4 of 8.
    most = way(found, "max_tokens")
    assert most["waste_share"] == pytest.approx(1 - 33 / 68)
    assert most["answer_waste_share"] == pytest.approx(1 - 13 / 48)
    assert (most["concurrency"], most["overflow_share"], most["mean_reserved_tokens"]) == (1.0, 0.0, 8.0)
    # The median is 2: two steps of 12; two steps of 2, and then 3 and 4 as they are written.
    half = way(found, "p50")
    assert half["waste_share"] == pytest.approx(1 - 33 / 35)
    assert half["concurrency"] == pytest.approx(68 / 35)
    assert half["overflow_share"] == 0.5
    # The true lengths: two steps of 12, four of 4.
    assert way(found, "true length")["waste_share"] == pytest.approx(1 - 33 / 40)
    demand = way(found, "on demand")
    assert (demand["waste_share"], demand["overflow_share"]) == (0.0, 1.0)
    assert demand["concurrency"] == pytest.approx(68 / 33)


@given(st.integers(0, 50), st.integers(1, 60), st.integers(0, 80))
@settings(max_examples=100, deadline=None)
def test_token_time_is_that_of_every_step(prompt: int, response: int, reserved: int) -> None:
    p, r = np.asarray([float(prompt)]), np.asarray([float(response)])
    steps = range(1, response + 1)
    assert used_time(p, r)[0] == sum(prompt + t for t in steps)
    assert reserved_time(p, r, np.asarray([float(reserved)]))[0] == sum(prompt + max(t, reserved) for t in steps)


def test_a_reservation_is_never_more_than_max_tokens() -> None:
    p, r, limit = np.zeros(2), np.asarray([5.0, 9.0]), np.asarray([10.0, 10.0])
    assert reserve("x", p, r, np.asarray([50.0, 50.0]), limit).mean_reserved_tokens == 10.0


def test_a_predictor_reserves_what_it_says() -> None:
    lengths = skewed(400)
    rows = np.arange(0, 400, 4)
    exact = Predictions("p", rows, dict.fromkeys((0.5, 0.9, 0.95), lengths[rows]))
    found = waste(table_of(lengths, prompt_tokens=[100] * 400), None, exact, None)
    predicted, most = way(found, "predicted p90"), way(found, "max_tokens")
    assert predicted["rows"] == 100
    assert predicted["overflow_share"] == 0.0
    # Against max_tokens on the same hundred records, and less wasted than by any constant that holds nine in ten.
    assert predicted["concurrency"] > way(found, "p90")["concurrency"] > 1.0
    assert predicted["waste_share"] < way(found, "p90")["waste_share"] < most["waste_share"]


def test_percentiles_overflow_as_they_promise() -> None:
    found = waste(table_of(skewed(5000)), None, None, None)
    for name, share in (("p50", 0.5), ("p90", 0.1), ("p95", 0.05), ("p99", 0.01)):
        assert way(found, name)["overflow_share"] == pytest.approx(share, abs=0.005)
    assert (found.max_tokens_from, found.prompts_known) == ("longest", False)


def test_percentiles_of_a_prompt_band_are_its_own() -> None:
    """Short prompts have answers of 100, long ones of 1,000: each band's p90 is exact."""
    found = waste(table_of([100, 1000] * 300, prompt_tokens=[20, 700] * 300), None, None, None)
    assert way(found, "p90 per prompt band")["mean_reserved_tokens"] == pytest.approx(550)
    assert way(found, "p90")["mean_reserved_tokens"] == 1000


@pytest.mark.parametrize(
    ("columns", "given_limit", "expected", "origin"),
    [
        ({"max_tokens": [50, 60, 70]}, None, 60, "trace"),
        ({"max_tokens": [50, 60, 70]}, 99, 99, "given"),
        ({"censored": [False, True, True]}, None, 30, "cap"),
        ({}, None, 30, "longest"),
        # Of one in three it is known: that is not what requests allow.
        ({"max_tokens": [500, None, None]}, None, 30, "longest"),
    ],
)
def test_where_max_tokens_comes_from(
    columns: dict[str, list[object]], given_limit: int | None, expected: int, origin: str
) -> None:
    found = waste(table_of([10, 30, 30], **columns), None, None, given_limit)
    assert (found.max_tokens, found.max_tokens_from) == (expected, origin)


def test_the_longest_other_answer_leaves_one_in_k_outgrown() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.lognormal(5, 0.5, (400, 4)).round().astype(int) + 1
    table = table_of(lengths.ravel(), prompt=[f"q{i}" for i in range(400) for _ in range(4)])
    found = waste(table, answer_sets(table, 0), None, None)
    # Of four exchangeable answers each is the longest with a chance of one in four.
    assert way(found, "longest other answer")["overflow_share"] == pytest.approx(0.25, abs=0.02)


def test_the_sentence_is_of_the_figures() -> None:
    profile = profile_trace(trace_of([100] * 50 + [200] * 50, prompt_tokens=[50] * 100), max_tokens=1000)
    most = way(profile.waste, "max_tokens")
    assert f"leaves {100 * most['waste_share']:.0f} % of the reserved KV cache unused" in profile.answer[3]
    assert "max_tokens (1,000, as given)" in profile.answer[3]
