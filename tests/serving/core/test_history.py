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


# -- responses that run, or were cut off -----------------------------------------------------------------


class Server:
    """``slots`` responses run at a time, a token each a step; the next one starts when one ends."""

    def __init__(self, slots: int, cut: float = 0.0, window: int = 1000) -> None:
        self.rng = random.Random(4)
        self.cut = cut
        self.history = LengthHistory(window, 32768, running=lambda: [r[0] for r in self.running])
        self.running = [self.new() for _ in range(slots)]

    def new(self) -> list[int]:
        """Tokens so far, its length, and where its client leaves."""
        length = max(1, round(self.rng.lognormvariate(5.0, 1.0)))
        leaves = round(self.rng.lognormvariate(5.0, 1.0)) + 1 if self.rng.random() < self.cut else 10**9
        return [0, length, leaves]

    def until(self, over: int) -> LengthHistory:
        done = 0
        while done < over:
            for i, response in enumerate(self.running):
                response[0] += 1
                if response[0] >= min(response[1:]):
                    self.running[i] = self.new()
                    self.history.record(response[0], ended=response[0] == response[1])
                    done += 1
        return self.history


@pytest.mark.parametrize("over", [150, 400, 2000])
@pytest.mark.parametrize("cut", [0.0, 0.5])
def test_short_responses_finish_first_and_do_not_make_the_history_short(over: int, cut: float) -> None:
    """From the first hundred to a full window, with clients that leave or without."""
    lengths = Server(100, cut).until(over).distribution(32768)
    assert lengths.quantile(0.5) == pytest.approx(148, rel=0.25)
    assert lengths.quantile(0.9) == pytest.approx(535, rel=0.35)


def test_a_window_smaller_than_the_batch_is_no_shorter_either() -> None:
    sample = [Server(100, window=64).until(over).distribution(32768).quantile(0.5) for over in range(200, 1000, 100)]
    assert sum(sample) / len(sample) == pytest.approx(148, rel=0.25)


def test_what_only_reached_its_limit_would_have_been_longer() -> None:
    history = LengthHistory(64, 4096)
    for _ in range(64):
        history.record(100, ended=False)
    assert history.distribution(100).quantile(0.05) == 100
    assert history.distribution(4096).quantile(0.1) > 100


def test_equal_lengths_are_one_sharp_bin() -> None:
    history = LengthHistory(64, 4096)
    for _ in range(64):
        history.record(1000)
    lengths = history.distribution(4096)
    assert 980 <= lengths.quantile(0.1) <= lengths.quantile(0.9) <= 1020


def test_one_distribution_serves_all_requests_of_a_limit_until_the_history_changes() -> None:
    history = LengthHistory(64, 4096)
    for i in range(64):
        history.record(100 + i)
    first = history.distribution(120)
    assert history.distribution(120) is first
    assert history.distribution(130) is not first
    for i in range(64):
        history.record(10 + i)
    assert history.distribution(120).quantile(0.5) < first.quantile(0.5)


def test_limits_without_end_do_not_fill_the_memory() -> None:
    history = LengthHistory(64, 4096)
    for limit in range(1, 3000):
        history.distribution(limit)
    assert len(history._closed) <= 256
