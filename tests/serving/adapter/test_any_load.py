"""Any load on any small engine: what must hold of every run, on the real scheduler classes in virtual time.

``ECOSERVE_SOAK_STEPS=1000000 pytest tests/serving/adapter/test_any_load.py -k soak`` looks for rare failures: other
loads every time, until so many steps have been scheduled; one that fails is made as small as it gets.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from itertools import product
from typing import Any

import pytest
from virtual_rig import OURS, SOURCES, STOCK, Case, Played, play, random_case, smallest

SOAK = "ECOSERVE_SOAK_STEPS"


def played(case: Case) -> Played:
    """Play a case; what fails says which case it was."""
    try:
        return play(case)
    except BaseException as error:
        error.add_note(repr(case))
        raise


def play_all(seeds: Iterable[int], **fixed: Any) -> Counter[str]:
    """Play the cases of these seeds; returns the sum of their counters."""
    seen: Counter[str] = Counter()
    for seed in seeds:
        seen.update(asdict(played(random_case(seed, **fixed)).scheduler.counters))
    return seen


#: whole windows leave little to go wrong: their loads have fewer events
HARD = ("ecoserve", "ecoserve-exact", "ecoserve-d")


@pytest.mark.parametrize("policy", OURS)
def test_every_request_is_served_and_nothing_is_left_behind(policy: str) -> None:
    seen: Counter[str] = Counter()
    for depth, runner in product((1, 2), (1, 2)):
        first = 1000 * OURS.index(policy) + 100 * depth + 50 * runner
        seen.update(play_all(range(first, first + 4), policy=policy, depth=depth, runner=runner))
    # The loads are of use only if they are hard.
    for what in ("pauses", "resumes", "shortage_preemptions", "recomputed_tokens", "under_predictions"):
        assert seen[what] >= (5 if policy in HARD else 1), f"hardly any {what} in all of the loads"


@pytest.mark.parametrize("source", SOURCES)
def test_any_source_of_lengths(source: str) -> None:
    play_all(range(3), source=source)


@pytest.mark.parametrize("depth", [1, 2])
def test_the_prefix_cache_is_reset_under_load(depth: int) -> None:
    seen = play_all(range(6), depth=depth, resets=True)
    assert seen["preemptions"] > seen["shortage_preemptions"]


def test_vllms_own_scheduler_passes_the_same_checks() -> None:
    """Else the checks would be of our own making."""
    seen = play_all(range(8), policy=STOCK)
    assert seen["preemptions"] > 5
    assert seen["recomputed_tokens"] > 100


def test_a_run_can_be_repeated() -> None:
    for seed in range(4):
        first, second = played(random_case(seed)), played(random_case(seed))
        assert first.result.rows == second.result.rows
        assert first.scheduler.counters == second.scheduler.counters
        assert first.result.end_s == second.result.end_s


@pytest.mark.slow
@pytest.mark.skipif(SOAK not in os.environ, reason=f"a soak is asked for by {SOAK}")
def test_soak() -> None:
    left = int(os.environ[SOAK])
    while left > 0:
        seed = random.SystemRandom().randrange(2**32)
        case = random_case(seed, resets=seed % 5 == 0, most=40)
        try:
            left -= max(1, play(case).result.totals.steps)
        except BaseException as error:
            kind = type(error)

            def fails(smaller: Case, kind: type[BaseException] = kind) -> bool:
                try:
                    play(smaller)
                except kind:
                    return True
                return False

            error.add_note(repr(smallest(case, fails)))
            raise
