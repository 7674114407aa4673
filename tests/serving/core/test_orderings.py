from __future__ import annotations

from collections.abc import Sequence

import pytest
from core_rig import a_task
from hypothesis import given
from hypothesis import strategies as st

from ecoserve.lengths import LengthDistribution
from ecoserve.serving.core.orderings import PROMPT_WEIGHT, SortKey, generation_key, prompt_key
from ecoserve.serving.core.tasks import Task

KEYS = (prompt_key, generation_key)


def arrived(name: str, at: float, length: int = 50, **fields: int) -> Task:
    return a_task(name, arrival_s=at, lengths=LengthDistribution.point(length), **fields)


@pytest.mark.parametrize("key", KEYS)
def test_fcfs_is_by_arrival_whatever_the_length(key: object) -> None:
    tasks = [arrived("long", 0.0, 900), arrived("short", 1.0, 1)]
    assert sorted((tasks[1], tasks[0]), key=lambda t: key("fcfs", t, 5.0)) == tasks  # type: ignore[operator]


@pytest.mark.parametrize("key", KEYS)
def test_sjf_is_by_length_among_those_that_arrived_together(key: object) -> None:
    tasks = [arrived("short", 0.0, 10, number=2), arrived("long", 0.0, 20, number=1)]
    assert sorted((tasks[1], tasks[0]), key=lambda t: key("sjf", t, 5.0)) == tasks  # type: ignore[operator]


def test_a_prompt_counts_a_tenth_before_the_prefill_and_nothing_after_it() -> None:
    long_prompt, short_prompt = arrived("a", 0.0, 50, prompt_tokens=1000), arrived("b", 0.0, 60, prompt_tokens=10)
    assert prompt_key("sjf", long_prompt, 0.0)[1] - prompt_key("sjf", short_prompt, 0.0)[1] == pytest.approx(
        PROMPT_WEIGHT * 990 - 10
    )
    assert generation_key("sjf", long_prompt, 0.0) < generation_key("sjf", short_prompt, 0.0)


@pytest.mark.parametrize("ordering", ["fcfs", "sjf"])
@pytest.mark.parametrize("key", KEYS)
def test_priority_goes_before_everything(key: object, ordering: str) -> None:
    first, second = arrived("urgent", 100.0, 900, priority=-1), arrived("usual", 0.0, 1)
    assert key(ordering, first, 5.0) < key(ordering, second, 5.0)  # type: ignore[operator]


@pytest.mark.parametrize("ordering", ["fcfs", "sjf"])
@pytest.mark.parametrize("key", KEYS)
def test_equals_keep_the_order_in_which_they_came(key: object, ordering: str) -> None:
    siblings = [arrived(str(i), 5.0, number=i) for i in range(20)]
    assert sorted([siblings[i] for i in range(19, -1, -1)], key=lambda t: key(ordering, t, 5.0)) == siblings  # type: ignore[operator]


tasks = st.builds(
    lambda at, length, prompt: arrived("t", at, length, prompt_tokens=prompt),
    st.floats(0, 1000),
    st.integers(1, 2000),
    st.integers(1, 2000),
)


def size(task: Task) -> float:
    return task.expected_rest() + PROMPT_WEIGHT * task.prompt_tokens


@given(tasks, tasks, st.floats(0.1, 100))
def test_overtaking_is_bounded(early: Task, late: Task, ageing: float) -> None:
    """A request is overtaken only by those that arrive within (S - their size) / ageing seconds after it."""
    if late.arrival_s < early.arrival_s:
        early, late = late, early
    overtakes = prompt_key("sjf", late, ageing) < prompt_key("sjf", early, ageing)
    if overtakes:
        assert late.arrival_s - early.arrival_s <= (size(early) - size(late)) / ageing + 1e-6
    elif late.arrival_s > early.arrival_s:
        assert late.arrival_s - early.arrival_s >= (size(early) - size(late)) / ageing - 1e-6


@given(tasks, st.floats(20, 100), st.floats(0.1, 1.0))
def test_a_flood_of_short_ones_cannot_hold_a_long_one_up_for_ever(task: Task, ageing: float, gap: float) -> None:
    """Served one at a time, one each ``gap`` seconds while one arrives each ``gap`` seconds, its turn comes in time."""
    flood = (arrived(f"s{i}", task.arrival_s + i * gap, 1, prompt_tokens=1) for i in range(10**6))
    bound = task.arrival_s + size(task) / ageing + 2 * gap
    waiting = [task]
    now = task.arrival_s
    while now <= bound and len(waiting) < 2000:
        waiting.append(next(flood))
        served = min(waiting, key=lambda t: prompt_key("sjf", t, ageing))
        if served is task:
            return
        waiting.remove(served)
        now += gap
    raise AssertionError(f"still waiting after {now - task.arrival_s} s, bound {bound - task.arrival_s} s")


@given(st.lists(tasks, max_size=20), st.floats(0, 100), st.sampled_from(["fcfs", "sjf"]))
def test_keys_do_not_depend_on_the_time_they_are_asked_at(them: Sequence[Task], ageing: float, ordering: str) -> None:
    def keys() -> list[SortKey]:
        return [k(ordering, t, ageing) for k in KEYS for t in them]  # type: ignore[arg-type]

    assert keys() == keys()
