from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import pytest
from core_rig import a_task
from hypothesis import given
from hypothesis import strategies as st

from ecoserve.lengths import LengthDistribution
from ecoserve.serving.core.orderings import PROMPT_WEIGHT, Ordering, Pace
from ecoserve.serving.core.policies import ORDERINGS, load
from ecoserve.serving.core.settings import SchedulerSettings
from ecoserve.serving.core.tasks import Task, TaskState

NAMES = tuple(ORDERINGS)
QUEUES = ("prompt", "generation")


def arrived(name: str, at: float, length: int = 50, **fields: object) -> Task:
    return a_task(name, arrival_s=at, lengths=LengthDistribution.point(length), **fields)


def ordering(name: str, **settings: Any) -> Any:
    out: Ordering = load(ORDERINGS[name])(SchedulerSettings(**settings), Pace(512))
    out.pace.step_s = 0.1
    return out


def order(tasks: list[Task], name: str, queue: str = "prompt", now: float = 0.0, **settings: Any) -> list[str]:
    by = ordering(name, **settings)
    for task in tasks:
        by.on_arrival(task)
    key = partial(by.key, prompt=queue == "prompt")
    return [t.request_id for t in sorted(tasks, key=lambda t: key(t, now))]


@pytest.mark.parametrize("queue", QUEUES)
def test_fcfs_is_by_arrival_whatever_the_length(queue: str) -> None:
    assert order([arrived("short", 1.0, 1), arrived("long", 0.0, 900)], "fcfs", queue) == ["long", "short"]


@pytest.mark.parametrize("name", ["sjf", "srpt", "hrrn", "slo"])
@pytest.mark.parametrize("queue", QUEUES)
def test_the_shorter_of_two_that_arrived_together_goes_first(name: str, queue: str) -> None:
    tasks = [arrived("long", 0.0, 200, number=1), arrived("short", 0.0, 10, number=2)]
    assert order(tasks, name, queue, now=1.0) == ["short", "long"]


def test_sjf_asks_for_the_whole_and_srpt_for_the_rest() -> None:
    tasks = [arrived("nearly done", 0.0, 200, generated=195), arrived("short", 0.0, 100, generated=1)]
    assert order(tasks, "sjf", "generation") == ["short", "nearly done"]
    assert order(tasks, "srpt", "generation") == ["nearly done", "short"]


@pytest.mark.parametrize(("length", "first"), [(62, "short"), (65, "most is out")])
def test_slo_asks_for_the_product_of_rest_and_whole(length: int, first: str) -> None:
    # 40 tokens of 100 remain: the root of 40 x 100 is 63.2.
    tasks = [arrived("most is out", 0.0, 100, generated=60), arrived("short", 0.0, length)]
    assert order(tasks, "slo", "generation")[0] == first
    assert order(tasks, "srpt", "generation")[0] == "most is out"


@pytest.mark.parametrize(("length", "before"), [(80, True), (85, False)])
def test_a_newcomer_goes_before_a_holder_only_if_it_saves_what_is_computed_again(length: int, before: bool) -> None:
    # The holder: the root of 100 x 150, 122.5, less 0.2 x 150 tokens, is 92.5. The newcomer: its length and 0.2 x 50.
    holds = arrived("holds", 0.0, 150, prompt_tokens=100, generated=50, state=TaskState.DECODE)
    comes = arrived("comes", 0.0, length, prompt_tokens=50)
    holder, newcomer = ordering("slo").places([holds, comes], np.array([100.0, float(length)]))
    assert bool(newcomer < holder) == before


def test_a_quantile_in_place_of_the_mean() -> None:
    sure = a_task("sure", lengths=LengthDistribution.point(100))
    vague = a_task("vague", lengths=LengthDistribution((0, 20, 400), (0.8, 0.2)))
    assert order([sure, vague], "srpt") == ["vague", "sure"]
    assert order([sure, vague], "srpt", ordering_quantile=0.9) == ["sure", "vague"]


def test_a_prompt_counts_a_tenth_before_the_prefill_and_nothing_after_it() -> None:
    long_prompt, short_prompt = arrived("a", 0.0, 50, prompt_tokens=1000), arrived("b", 0.0, 60, prompt_tokens=10)
    by = ordering("srpt", ageing_tokens_per_s=0.0)
    difference = by.key(long_prompt, 0.0, True)[1] - by.key(short_prompt, 0.0, True)[1]
    assert difference == pytest.approx(PROMPT_WEIGHT * 990 - 10)
    assert by.key(long_prompt, 0.0, False) < by.key(short_prompt, 0.0, False)


def test_hrrn_prefers_the_short_until_the_long_has_waited_for_its_length() -> None:
    early_long, late_short = arrived("long", 0.0, 100), arrived("short", 60.0, 10)
    # services 10.16 and 1.16 s with the prompts; ratios at 61 s: 7.0 and 1.86
    assert order([late_short, early_long], "hrrn", now=61.0) == ["long", "short"]
    assert order([late_short, arrived("long", 59.5, 100)], "hrrn", now=61.0) == ["short", "long"]


@pytest.mark.parametrize("queue", QUEUES)
def test_edf_is_by_deadline_and_who_has_none_is_not_forgotten(queue: str) -> None:
    tasks = [
        arrived("none", 0.0),
        arrived("late", 0.0, deadline_s=300.0),
        arrived("soon", 5.0, deadline_s=20.0),
    ]
    assert order(tasks, "edf", queue, max_wait_s=100.0) == ["soon", "none", "late"]


def test_edf_counts_the_first_token_only_while_it_is_to_come() -> None:
    tasks = [arrived("first soon", 0.0, ttft_slo_s=1.0), arrived("all soon", 0.0, deadline_s=2.0)]
    assert order(tasks, "edf", "prompt") == ["first soon", "all soon"]
    assert order(tasks, "edf", "generation") == ["all soon", "first soon"]


def test_paper_goes_by_ranges_of_time_left_then_kv_held_then_length() -> None:
    urgent = arrived("urgent", 0.0, 10, deadline_s=2.0, written=16)
    holds_much = arrived("holds much", 0.0, 10, deadline_s=100.0, written=1000)
    longer = arrived("longer", 0.0, 300, deadline_s=100.0, written=20)
    shorter = arrived("shorter", 0.0, 40, deadline_s=100.0, written=16)
    tasks = [shorter, longer, holds_much, urgent]
    assert order(tasks, "paper", "generation") == ["urgent", "holds much", "longer", "shorter"]
    other = order(tasks, "paper", "generation", longer_first=False)
    assert other == ["urgent", "holds much", "shorter", "longer"]


def test_paper_takes_a_prompts_own_length() -> None:
    tasks = [arrived("short", 0.0, 500, prompt_tokens=8), arrived("long", 0.0, 5, prompt_tokens=800)]
    assert order(tasks, "paper", "prompt") == ["long", "short"]


def test_slo_counts_three_times_the_size_of_late_requests() -> None:
    tasks = [
        arrived("hopeless and tiny", 0.0, 2, deadline_s=0.1),
        arrived("hopeless", 0.0, 60, deadline_s=1.0),
        arrived("hopeless and longer", 0.0, 70, deadline_s=1.0),
        arrived("in time", 0.0, 100, deadline_s=11.0),
        arrived("no deadline", 0.0, 150),
    ]
    first = "hopeless and tiny"  # two tokens make no other request late
    expected = [first, "in time", "no deadline", "hopeless", "hopeless and longer"]
    assert order(tasks, "slo", "generation", now=0.5) == expected
    # Time passes: 100 tokens at 0.1 s are no longer in time.
    expected = [first, "no deadline", "hopeless", "hopeless and longer", "in time"]
    assert order(tasks, "slo", "generation", now=2.0) == expected


def test_slo_counts_a_first_token_that_can_not_come_in_time() -> None:
    tasks = [arrived("too late", 0.0, 100, ttft_slo_s=0.5), arrived("usual", 0.0, 200)]
    assert order(tasks, "slo", "prompt", now=0.45) == ["usual", "too late"]
    assert order(tasks, "slo", "prompt", now=0.0) == ["too late", "usual"]
    # Once it is out, it holds no request back.
    tasks[0].generated = 1
    assert order(tasks, "slo", "generation", now=0.45) == ["too late", "usual"]


def test_slo_by_tokens_is_due_when_as_many_as_expected_are_due() -> None:
    task = arrived("t", 10.0, 41, ttft_slo_s=1.0, tpot_slo_s=0.5)
    assert task.due_s() == pytest.approx(10.0 + 1.0 + 0.5 * 41)
    assert arrived("t", 10.0, ttft_slo_s=1.0).due_s() == math.inf


def test_without_any_deadline_slo_is_srpt_and_stands_still() -> None:
    tasks = [arrived(str(i), 0.5 * i, 1 + 37 * i % 101) for i in range(20)]
    assert order(tasks, "slo", now=30.0) == order(tasks, "srpt", now=99.0)
    by = ordering("slo")
    by.on_arrival(tasks[0])
    assert not by.moves
    by.on_arrival(arrived("due", 0.0, deadline_s=1.0))
    assert by.moves


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("queue", QUEUES)
def test_priority_goes_before_everything(name: str, queue: str) -> None:
    tasks = [arrived("usual", 0.0, 1, deadline_s=1.0), arrived("urgent", 100.0, 900, priority=-1)]
    assert order(tasks, name, queue) == ["urgent", "usual"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("queue", QUEUES)
def test_equals_keep_the_order_in_which_they_came(name: str, queue: str) -> None:
    siblings = [arrived(str(i), 5.0, number=i) for i in range(20)]
    assert order(siblings[::-1], name, queue) == [str(i) for i in range(20)]


@pytest.mark.parametrize("name", ["hrrn", "paper", "slo"])
def test_who_has_waited_too_long_is_passed_by_no_newcomer(name: str) -> None:
    """Under a stream of newcomers that any rule would prefer."""
    waits = arrived("waits", 0.0, 4000, prompt_tokens=8, deadline_s=0.001)
    newcomers = [arrived(f"n{i}", 200.0 + i, 1, prompt_tokens=9000, deadline_s=1e6) for i in range(20)]
    late = 200.0 + 4000 + 900.0
    for newcomer in newcomers:
        newcomer.arrival_s += late
    assert order([*newcomers, waits], name, "prompt", now=late + 230.0, max_wait_s=100.0)[0] == "waits"


tasks = st.builds(
    lambda at, length, prompt: arrived("t", at, length, prompt_tokens=prompt),
    st.floats(0, 1000),
    st.integers(1, 2000),
    st.integers(1, 2000),
)


@pytest.mark.parametrize("name", ["sjf", "srpt"])
@given(early=tasks, late=tasks, ageing=st.floats(0.1, 100))
def test_no_request_is_overtaken_by_what_arrives_too_late(name: str, early: Task, late: Task, ageing: float) -> None:
    """The bound that the module's docstring states."""
    by = ordering(name, ageing_tokens_per_s=ageing)

    def size(task: Task) -> float:
        return by.rest(task) + PROMPT_WEIGHT * task.prompt_tokens

    bound = max(0.0, (size(early) - size(late)) / ageing)
    if late.arrival_s > early.arrival_s + bound + 1e-6:
        assert by.key(early, 0.0, True) < by.key(late, 0.0, True)


@pytest.mark.parametrize("name", NAMES)
@given(task=tasks, now=st.floats(0, 5000), deadline=st.none() | st.floats(-10, 5000))
def test_keys_are_numbers_that_can_be_compared(name: str, task: Task, now: float, deadline: float | None) -> None:
    task.deadline_s = deadline
    by = ordering(name)
    by.on_arrival(task)
    for key in (by.key(task, now, True), by.key(task, now, False)):
        assert all(math.isfinite(v) for v in key)
