from __future__ import annotations

import random

import pytest

from ecoserve.serving.core.history import LengthHistory


def test_before_anything_has_finished_the_guess_is_broad() -> None:
    lengths = LengthHistory(1000, 4096).distribution(4096)
    assert 50 <= lengths.quantile(0.5) <= 800
    assert lengths.quantile(0.9) > 2 * lengths.quantile(0.5)


@pytest.mark.parametrize("upper", [1, 2, 3, 10])
def test_tiny_models_have_a_history_too(upper: int) -> None:
    history = LengthHistory(8, upper)
    assert history.distribution(max(1, upper)).quantile(1.0) <= max(2, upper)
    for _ in range(20):
        history.record(upper)
    assert history.distribution(max(1, upper)).quantile(1.0) <= max(1, upper)


def test_it_learns_what_finishes() -> None:
    rng = random.Random(0)
    history = LengthHistory(1000, 4096)
    sample = [max(1, round(rng.lognormvariate(4.0, 0.5))) for _ in range(1000)]
    for n in sample:
        history.record(n)
    sample.sort()
    lengths = history.distribution(4096)
    for q in (0.1, 0.5, 0.9):
        assert lengths.quantile(q) == pytest.approx(sample[int(q * len(sample))], rel=0.1)
    assert len(history) == 1000


def test_it_forgets_what_is_older_than_its_window() -> None:
    history = LengthHistory(64, 4096)
    for n in range(64):
        history.record(1000 + n)
    assert history.distribution(4096).quantile(0.5) > 1000
    for n in range(96):
        history.record(5 + n % 5)
    assert len(history) == 64
    assert history.distribution(4096).quantile(0.9) <= 10


def test_the_distribution_ends_at_the_limit() -> None:
    history = LengthHistory(64, 4096)
    for _ in range(64):
        history.record(1000)
    lengths = history.distribution(100)
    assert lengths.quantile(1.0) == 100
    assert lengths.closed_by == "max_tokens"


def test_it_is_not_made_anew_for_every_finish() -> None:
    history = LengthHistory(1000, 4096, refresh=32)
    for _ in range(200):
        history.record(50)
    before = history.distribution(4096)
    history.record(51)
    assert history.distribution(4096) is before


def test_lengths_beyond_the_model_are_taken_as_they_are() -> None:
    history = LengthHistory(16, 100)
    for _ in range(16):
        history.record(500)
    assert history.distribution(1000).quantile(0.5) > 100
