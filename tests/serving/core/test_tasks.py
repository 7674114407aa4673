from __future__ import annotations

import pytest
from core_rig import a_task
from hypothesis import given
from hypothesis import strategies as st

from ecoserve.lengths import LengthDistribution


def test_a_new_task_waits_and_guesses_its_median() -> None:
    task = a_task(lengths=LengthDistribution((0, 10, 30), (0.2, 0.8)))
    assert task.state.value == "waiting"
    assert (task.written, task.generated, task.promised, task.row) == (0, 0, 0, -1)
    assert task.predicted_median == LengthDistribution((0, 10, 30), (0.2, 0.8)).quantile(0.5)


def test_the_first_guess_is_not_renewed_with_the_lengths() -> None:
    task = a_task(lengths=LengthDistribution.point(7))
    task.lengths = LengthDistribution.point(900)
    assert task.predicted_median == 7


@pytest.mark.parametrize(("generated", "rest"), [(0, 50.0), (49, 1.0), (20, 30.0)])
def test_expected_rest_counts_what_is_out(generated: int, rest: float) -> None:
    assert a_task(generated=generated).expected_rest() == pytest.approx(rest)


@given(st.integers(0, 5000))
def test_expected_rest_is_never_less_than_the_next_token(generated: int) -> None:
    assert a_task(generated=generated).expected_rest() >= 1.0


def test_span_is_what_is_written_or_the_whole_context_if_that_is_more() -> None:
    assert a_task().span_tokens() == 16
    assert a_task(generated=5, written=20).span_tokens() == 21
    assert a_task(generated=5, written=30).span_tokens() == 30


def test_the_promised_span_never_says_less_than_what_is_held() -> None:
    assert a_task(promised=50).promised_span_tokens() == 66
    assert a_task(promised=5, generated=20, written=36).promised_span_tokens() == 36
    assert a_task().promised_span_tokens() == 16


def test_tasks_are_equal_only_to_themselves() -> None:
    assert a_task() != a_task()
    assert len({a_task(), a_task()}) == 2
