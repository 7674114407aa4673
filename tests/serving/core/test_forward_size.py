"""The target forward size: found on curves whose knee is known."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from ecoserve.serving.forward_run import SATURATION, profile_sizes, target_forward_size


def timed(curve: Callable[[int], float], largest: int = 8192) -> list[tuple[int, float]]:
    return [(n, curve(n)) for n in profile_sizes(largest)]


@pytest.mark.parametrize("knee", [48, 300, 461, 1000])
def test_a_roofline_saturates_at_its_knee(knee: int) -> None:
    """Reading the weights takes 10 ms, a token 10 ms / knee: 90 % of the best is at 0.9 of the knee, where the time is
    still flat."""
    found = target_forward_size(timed(lambda n: 0.010 * max(1.0, n / knee)))
    # Between two measured sizes the corner is cut: half an octave at most.
    assert round(SATURATION * knee) <= found.tokens <= 1.25 * knee
    assert found.best_tokens_per_s == pytest.approx(knee / 0.010)
    assert found.saturated


def test_on_a_measured_knee_the_answer_is_exact() -> None:
    found = target_forward_size([(100, 1.0), (200, 1.0), (400, 2.0)], saturation=1.0)
    assert found.tokens == 200
    assert target_forward_size([(100, 1.0), (200, 1.0), (400, 2.0)]).tokens == 180


def test_attention_that_makes_large_forwards_worse_does_not_move_it_far() -> None:
    plain = target_forward_size(timed(lambda n: 0.010 * max(1.0, n / 400)))
    worse = target_forward_size(timed(lambda n: 0.010 * max(1.0, n / 400) + 2e-10 * n * n))
    assert worse.saturated
    assert worse.tokens == pytest.approx(plain.tokens, rel=0.1)


def test_noise_of_a_few_percent_does_not_move_it_far() -> None:
    rng = random.Random(5)
    found = [
        target_forward_size(timed(lambda n: 0.010 * max(1.0, n / 400) * rng.uniform(0.97, 1.03))).tokens
        for _ in range(50)
    ]
    assert min(found) >= 300
    assert max(found) <= 520


def test_what_still_rises_is_said_to() -> None:
    found = target_forward_size(timed(lambda n: 0.010, 512))
    assert not found.saturated
    assert 460 <= found.tokens <= 512


def test_sizes_ascend_to_the_largest() -> None:
    assert profile_sizes(100) == [16, 24, 32, 48, 64, 96, 100]
    assert profile_sizes(64) == [16, 24, 32, 48, 64]
    assert profile_sizes(17) == [16, 17]
