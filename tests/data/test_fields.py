"""Numbers, times and truncated answers are read alike in every format."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecoserve.data.fields import number, seconds, was_cut_off, whole
from ecoserve.data.known_fields import time_of, usage_of


@pytest.mark.parametrize(
    ("value", "count"),
    [
        (5, 5),
        (5.0, 5),
        ("5", 5),
        (" 12 ", 12),
        ("12.0", 12),
        ("12.", 12),
        ("-3", -3),
        ("+3", 3),
        (5.5, None),
        ("5.5", None),
        ("", None),
        ("five", None),
        ("1_000", None),
        ("1e3", None),
        ("٥", None),
        ("9" * 30, None),
        (math.nan, None),
        (math.inf, None),
        (True, None),
        (None, None),
        ([5], None),
    ],
)
def test_a_whole_number_is_read_from_numbers_and_text(value: Any, count: int | None) -> None:
    assert whole(value) == count


@pytest.mark.parametrize(
    ("value", "read"),
    [
        (2, 2.0),
        ("2.5", 2.5),
        ("1e3", 1000.0),
        (" 7 ", 7.0),
        ("nan", None),
        ("inf", None),
        (10**400, None),
        ("1_0", None),
        (False, None),
        (None, None),
        ("2023-01-01", None),
    ],
)
def test_a_number_is_finite(value: Any, read: float | None) -> None:
    assert number(value) == read


@pytest.mark.parametrize(
    ("value", "time"),
    [
        (0, 0.0),
        (12.5, 12.5),
        ("12.5", 12.5),
        (1_700_158_546, 1_700_158_546.0),
        (1_700_158_546_680, 1_700_158_546.68),
        (1_700_158_546_680_590, 1_700_158_546.68059),
        ("1700158546680590000", 1_700_158_546.68059),
        # Azure's trace of 2023: seven digits, no zone. That of 2024: with one.
        ("2023-11-16 18:15:46.6805900", 1_700_158_546.68059),
        ("2023-11-16 19:15:46.680590+01:00", 1_700_158_546.68059),
        ("2023-11-16T18:15:46Z", 1_700_158_546.0),
        (datetime(2023, 11, 16, 18, 15, 46), 1_700_158_546.0),
        (datetime(2023, 11, 16, 18, 15, 46, tzinfo=UTC), 1_700_158_546.0),
        (datetime(2023, 11, 16, 20, 15, 46, tzinfo=timezone(timedelta(hours=2))), 1_700_158_546.0),
        (-1, None),
        ("1969-12-31 00:00:00", None),
        ("noon", None),
        ("", None),
        (None, None),
        (math.nan, None),
        (True, None),
    ],
)
def test_a_point_in_time_becomes_seconds(value: Any, time: float | None) -> None:
    assert seconds(value) == pytest.approx(time, abs=1e-6)


@given(st.datetimes(min_value=datetime(1971, 1, 1), max_value=datetime(2100, 1, 1)))
def test_the_same_moment_is_the_same_however_it_is_written(moment: datetime) -> None:
    utc = moment.replace(tzinfo=UTC)
    written = [utc, moment, moment.isoformat(" "), utc.isoformat(), utc.timestamp()]
    if moment.year >= 1974:
        written.append(utc.timestamp() * 1000)
    assert [seconds(w) for w in written] == pytest.approx([utc.timestamp()] * len(written), abs=1e-5)


@pytest.mark.parametrize(
    ("reason", "answer", "cut"),
    [
        ("length", None, True),
        ("LENGTH", "whole text.", True),
        ("max_tokens", None, True),
        ("content_filter", None, True),
        ("abort", None, True),
        ("stop", "whole text.", False),
        (None, "whole text.", False),
        (None, None, False),
        (None, "It goes on [truncated]", True),
        (None, "It goes on... [Truncated].", True),
        (None, "It goes on <truncated>\n", True),
        (None, "It goes on (output truncated)", True),
        (None, "A [truncated] text that goes on to its end.", False),
        (None, "They say truncated", False),
        (None, ["[truncated]"], False),
        (None, "[truncated]" + " and then a lot of text" * 5, False),
    ],
)
def test_an_answer_was_cut_off_if_server_or_text_says_so(reason: str | None, answer: Any, cut: bool) -> None:
    assert was_cut_off(reason, answer) == cut


@pytest.mark.parametrize(
    ("usage", "read"),
    [
        ({"prompt_tokens": 3, "completion_tokens": 4}, (3, 4)),
        ({"input_tokens": 3, "output_tokens": 4.0}, (3, 4)),
        ({"completion_tokens": 4}, (None, 4)),
        ({}, (None, None)),
        (None, (None, None)),
        (7, (None, None)),
    ],
)
def test_usage_goes_by_two_pairs_of_names(usage: Any, read: tuple[int | None, int | None]) -> None:
    assert usage_of({"usage": usage})[:2] == read


def test_the_first_field_that_holds_a_time_counts() -> None:
    assert time_of({"timestamp": "noon", "created": 5, "created_at": 6}) == 5.0
    assert time_of({"created": None}) is None
