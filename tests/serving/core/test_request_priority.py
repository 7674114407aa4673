"""Priorities of level ``order``: the order of ``srpt``, clients' own first, in 64 bits, and nothing starves."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from ecoserve.lengths import MAX_LENGTH, LengthDistribution
from ecoserve.serving.core.orderings import PROMPT_WEIGHT
from ecoserve.serving.core.request_priority import MOST_CLIENT, RANKS, RequestPriority
from ecoserve.serving.core.settings import SchedulerSettings

NOW = 1.8e9  # Unix time


def point(tokens: int) -> list[LengthDistribution]:
    return [LengthDistribution.point(tokens)]


@pytest.mark.parametrize("ageing", [0.0, 0.5, 1.0, 20.0, 1e6])
def test_the_order_is_that_of_aged_expected_work(ageing: float) -> None:
    priority = RequestPriority(SchedulerSettings(ageing_tokens_per_s=ageing))
    rng = np.random.default_rng(0)
    drawn = [(int(n), int(p), NOW + float(t)) for n, p, t in rng.uniform(1, 1000, (300, 3))]
    found = sorted((priority.of(point(n), p, at), n + PROMPT_WEIGHT * p + ageing * at) for n, p, at in drawn)
    assert all(0 <= rank < RANKS for rank, _ in found)
    # Equal to the unit: 1/4096 of a token, or of a second where more than a token ages in one.
    unit = max(1.0, ageing) / 4096
    assert all(a <= b + 1.01 * unit for (_, a), (_, b) in pairwise(found))


def test_a_clients_own_priority_ranks_first_in_64_bits() -> None:
    priority = RequestPriority()
    best, worst = (point(1), 0.0, 0.0), (point(MAX_LENGTH), 1e9, 4 * NOW)
    clients = [-(2**63), -MOST_CLIENT, -7, -1, 0, 1, 7, MOST_CLIENT, 2**63 - 1]
    ranges = [(priority.of(*best, client=c), priority.of(*worst, client=c)) for c in clients]
    assert ranges[0] == ranges[1]
    assert ranges[-1] == ranges[-2]
    assert all(upper < lower for (_, upper), (lower, _) in pairwise(ranges[1:-1]))
    assert all(-(2**63) <= value < 2**63 for pair in ranges for value in pair)


def test_a_long_request_is_overtaken_only_within_a_bounded_time() -> None:
    priority = RequestPriority(SchedulerSettings(ageing_tokens_per_s=2.0))
    long = priority.of(point(1000), 0, NOW)
    assert priority.of(point(10), 0, NOW + (1000 - 10) / 2.0 - 1.0) < long
    assert priority.of(point(10), 0, NOW + (1000 - 10) / 2.0 + 1.0) > long


def test_what_is_not_predicted_has_the_size_of_what_is_not_known_up_to_its_limit() -> None:
    priority = RequestPriority()
    short, unlimited = priority.of((), 0, NOW, limit=8), priority.of((), 0, NOW)
    assert short < priority.of(point(8), 0, NOW) < priority.of(point(50), 0, NOW) < unlimited
    assert unlimited < priority.of(point(2000), 0, NOW)


def test_limits_close_predictions_and_a_batch_counts_by_its_mean() -> None:
    priority = RequestPriority()
    assert priority.of(point(900), 0, NOW, limit=20) == priority.of(point(20), 0, NOW)
    assert priority.of([*point(10), *point(30)], 0, NOW) == priority.of(point(20), 0, NOW)


def test_a_quantile_in_place_of_the_mean() -> None:
    spread = [LengthDistribution.lognormal(100, 1.0, 4000)]
    careful = RequestPriority(SchedulerSettings(ordering_quantile=0.9))
    assert careful.of(spread, 0, NOW) > RequestPriority().of(spread, 0, NOW)
