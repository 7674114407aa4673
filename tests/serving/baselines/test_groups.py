from __future__ import annotations

from core_rig import a_task

from ecoserve.lengths import LengthDistribution
from ecoserve.serving.baselines.groups import Groups
from ecoserve.serving.core.orderings import SortKey
from ecoserve.serving.core.tasks import Task


def window(task: Task) -> int:
    return task.lengths.quantile(0.5)


def of(name: str, length: int, at: float, **fields: int) -> Task:
    return a_task(name, arrival_s=at, lengths=LengthDistribution.point(length), **fields)


def own(task: Task) -> SortKey:
    return (0.0, task.arrival_s, 0.0)


def order(groups: Groups, tasks: list[Task], step: int = 0) -> list[str]:
    groups.begin_step(step, [(t, own(t)) for t in tasks])
    return [t.request_id for t in sorted(tasks, key=lambda t: groups.key(t, own(t)))]


def test_members_of_a_bin_go_together_and_bins_by_their_best_member() -> None:
    tasks = [of("long 1", 300, 0.0), of("short 1", 100, 1.0), of("long 2", 310, 2.0), of("short 2", 101, 3.0)]
    assert order(Groups(1.25, window), tasks) == ["long 1", "long 2", "short 1", "short 2"]


def test_a_member_that_ends_early_leaves_a_vacancy_for_what_ends_with_the_group() -> None:
    groups = Groups(1.25, window)
    groups.ended(of("early", 300, 0.0, promised=300, generated=200), step=1000)  # vacant until step 1,100
    tasks = [of("first", 300, 0.0), of("fits", 95, 5.0), of("too", 95, 6.0)]
    assert order(groups, tasks, step=1005)[0] == "fits"
    groups.started(tasks[1], step=1005)
    assert order(groups, [tasks[0], tasks[2]], step=1006) == ["first", "too"], "one vacancy takes one"


def test_a_vacancy_ends_with_its_window() -> None:
    groups = Groups(1.25, window)
    groups.ended(of("early", 300, 0.0, promised=300, generated=200), step=1000)
    assert order(groups, [of("first", 300, 0.0), of("fits", 95, 5.0)], step=1101) == ["first", "fits"]


def test_a_member_that_ends_on_time_or_late_leaves_none() -> None:
    groups = Groups(1.25, window)
    groups.ended(of("on time", 300, 0.0, promised=300, generated=300), step=10)
    groups.ended(of("late", 300, 0.0, promised=300, generated=400), step=10)
    assert groups._vacant_until == []
