"""A sample is fair, in order, and the seed's alone."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ecoserve.data.reservoir import Reservoir


def drawn(n: int, size: int, seed: int, cuts: list[int]) -> list[int]:
    reservoir = Reservoir[int](size, seed)
    ends = [*sorted(c % (n + 1) for c in cuts), n]
    start = 0
    for end in ends:
        reservoir.add(range(start, end))
        start = end
    assert reservoir.seen == n
    return reservoir.items()


@given(st.integers(0, 200), st.integers(1, 50), st.integers(0, 5), st.lists(st.integers(0, 1000), max_size=6))
def test_it_has_the_size_keeps_the_order_and_does_not_see_batches(
    n: int, size: int, seed: int, cuts: list[int]
) -> None:
    sample = drawn(n, size, seed, [])
    assert len(sample) == min(n, size)
    assert sample == sorted(set(sample))
    assert set(sample) <= set(range(n))
    assert drawn(n, size, seed, cuts) == sample


def test_each_item_is_as_likely_as_any_other() -> None:
    n, size, runs = 40, 10, 4000
    counts = Counter(item for seed in range(runs) for item in drawn(n, size, seed, []))
    share = np.array([counts[i] for i in range(n)]) / runs
    # 40 shares of 0.25, each with a standard error of 0.0068.
    assert abs(share - size / n).max() < 0.03
    assert abs(share[:10].mean() - share[-10:].mean()) < 0.02


def test_another_seed_draws_others() -> None:
    assert len({tuple(drawn(1000, 10, seed, [])) for seed in range(20)}) == 20
