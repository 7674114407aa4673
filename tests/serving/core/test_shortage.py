"""What relief may and may not do, whatever the shortage."""

from __future__ import annotations

from typing import Any

from core_rig import a_task, holder
from hypothesis import given
from hypothesis import strategies as st

from ecoserve.lengths import LengthDistribution
from ecoserve.serving.core.shortage import Relief, relieve
from ecoserve.serving.core.tasks import Task, TaskState


def decoding(name: str, rest: int, written: int = 64, **fields: Any) -> Task:
    """A decode with ``rest`` tokens to come."""
    return holder(name, TaskState.DECODE, written, lengths=LengthDistribution.point(rest), **fields)


def ask(
    needs: dict[Task, int], running: list[Task], free: int, paused: list[Task] | None = None, **options: Any
) -> Relief:
    known: dict[str, Any] = {
        "held": dict.fromkeys((*running, *(paused or [])), 4),
        "paused_limit_blocks": 100.0,
        "rank": {t: (t.priority, t.expected_rest()) for t in (*running, *(paused or []))},
    }
    known |= options
    return relieve(needs, running, paused or [], free_blocks=free, **known)


def test_nothing_is_done_without_a_shortage() -> None:
    tasks = [decoding("a", 10), decoding("b", 20)]
    assert ask(dict.fromkeys(tasks, 1), tasks, free=2) == Relief()
    assert ask({}, tasks, free=0) == Relief()


def test_those_with_least_left_go_on() -> None:
    long, short, shorter = (decoding(n, rest) for n, rest in (("long", 90), ("short", 20), ("shorter", 10)))
    relief = ask(dict.fromkeys((long, short, shorter), 1), [long, short, shorter], free=2)
    assert relief == Relief(pause=[long])


def test_a_prefill_goes_before_generations() -> None:
    short, prefill = (
        decoding("short", 1),
        holder("prefill", TaskState.PREFILL, 16, lengths=LengthDistribution.point(900)),
    )
    relief = ask({short: 1, prefill: 3}, [short, prefill], free=3)
    assert relief == Relief(pause=[short])


def test_who_needs_little_is_served_where_who_needs_much_is_not() -> None:
    much, little = holder("much", TaskState.PREFILL, 16), decoding("little", 90)
    other = decoding("other", 5)
    relief = ask({much: 1, little: 1, other: 2}, [much, little, other], free=2)
    assert relief == Relief(pause=[other])


def test_when_too_much_would_wait_one_request_is_preempted() -> None:
    tasks = [decoding(str(i), 10 + i, written=40 + i) for i in range(4)]
    relief = ask(dict.fromkeys(tasks, 1), tasks, free=1, paused_limit_blocks=11.0)
    assert relief == Relief(drop=[tasks[3]]), "the one with most to come makes room for all the others"


def test_of_equally_long_rests_the_one_with_least_work_to_lose_starts_anew() -> None:
    much, little = decoding("much", 50, written=90), decoding("little", 50, written=40)
    assert ask({much: 1, little: 1}, [much, little], free=0, paused_limit_blocks=0.0).drop == [little]


def test_a_generation_that_waits_already_can_be_the_victim() -> None:
    running, paused = decoding("running", 10, written=200), decoding("paused", 500, written=20)
    relief = ask({running: 1}, [running], free=0, paused=[paused], paused_limit_blocks=4.0)
    assert relief == Relief(drop=[paused])


def test_one_request_goes_on_running() -> None:
    running, paused = decoding("running", 10, written=20), decoding("paused", 500, written=200)
    relief = ask({running: 1}, [running], free=0, paused=[paused])
    assert len(relief.drop) == 1
    assert not relief.pause


def test_the_last_one_keeps_its_kv() -> None:
    alone = decoding("alone", 10)
    assert ask({alone: 1}, [alone], free=0) == Relief(pause=[alone])


def test_a_prefill_without_room_hands_back_what_it_has() -> None:
    alone = holder("alone", TaskState.PREFILL, 16)
    assert ask({alone: 9}, [alone], free=3) == Relief(drop=[alone])


def test_a_victim_is_spared_after_some_times() -> None:
    for of_young, of_old, victim in ((0, 0, "young"), (2, 0, "young"), (3, 0, "old"), (3, 3, "young")):
        young = decoding("young", 10, written=10, preemptions=of_young)
        old = decoding("old", 10, written=900, preemptions=of_old)
        relief = ask({young: 1, old: 1}, [young, old], free=0)
        assert [t.request_id for t in relief.drop] == [victim]


def test_as_many_start_anew_as_are_needed() -> None:
    first, second, needy = decoding("first", 90), decoding("second", 80), decoding("needy", 10)
    relief = ask(
        {needy: 5, first: 1, second: 1},
        [first, second, needy],
        free=0,
        held={first: 3, second: 3, needy: 60},
        paused_limit_blocks=0.0,
    )
    assert relief.drop == [first, second]


def test_who_frees_nothing_is_no_victim() -> None:
    sharer, owner = decoding("sharer", 10, written=10), decoding("owner", 10, written=500)
    relief = ask({sharer: 1, owner: 1}, [sharer, owner], free=0, held={sharer: 0, owner: 9})
    assert relief.drop == [owner]


@st.composite
def shortages(draw: st.DrawFn) -> dict[str, Any]:
    """Running and paused requests, what they need, and too little of it (or not)."""
    tasks = []
    for i in range(draw(st.integers(1, 10))):
        state = draw(st.sampled_from([TaskState.DECODE, TaskState.DECODE, TaskState.PREFILL, TaskState.PAUSED]))
        written = draw(st.integers(1, 300))
        rest = draw(st.integers(1, 300))
        tasks.append(holder(f"t{i}", state, written, lengths=LengthDistribution.point(rest), arrival_s=float(i)))
        tasks[-1].preemptions = draw(st.integers(0, 4))
    running = [t for t in tasks if t.state is not TaskState.PAUSED]
    if not running:
        running = [a_task("only", state=TaskState.DECODE, written=5)]
        tasks += running
    paused = [t for t in tasks if t.state is TaskState.PAUSED]
    return {
        "needs": {t: n for t in running if (n := draw(st.integers(0, 9))) > 0},
        "running": running,
        "paused": paused,
        # Some hold blocks that others share: those do not come free.
        "held": {t: draw(st.integers(0, -(-t.written // 16))) for t in (*running, *paused)},
        "rank": {t: (float(draw(st.integers(0, 1))), t.expected_rest()) for t in tasks},
        "free_blocks": draw(st.integers(0, 30)),
        "paused_limit_blocks": draw(st.floats(0, 60)),
    }


@given(shortages())
def test_what_must_hold_of_any_relief(case: dict[str, Any]) -> None:
    relief = relieve(**case)
    needs, running, paused, held = case["needs"], case["running"], case["paused"], case["held"]
    rank = case["rank"]
    dropped, stopped = set(relief.drop), set(relief.pause)

    assert len(dropped) == len(relief.drop)
    assert len(stopped) == len(relief.pause)
    assert not dropped & stopped
    assert dropped <= {*running, *paused}
    assert stopped <= {t for t in running if needs.get(t, 0) > 0}, "a request that needs nothing was paused"
    assert all(t.state is TaskState.DECODE for t in stopped), "only a decode can be paused"

    free = case["free_blocks"] + sum(held[t] for t in relief.drop)
    served = [t for t in running if t not in dropped | stopped]
    assert sum(needs.get(t, 0) for t in served) <= free, "what is left does not fit"

    if sum(needs.values()) <= case["free_blocks"]:
        assert relief == Relief(), "nothing was short"
    for one in stopped:
        later = [t for t in served if needs.get(t, 0) and t.state is TaskState.DECODE]
        assert all(rank[t] <= rank[one] or needs[t] < needs[one] for t in later), "one behind it was served first"
    survivors_holding = [t for t in (*running, *paused) if t not in dropped and held[t] > 0]
    victims = [rank[t][0] for t in relief.drop if held[t] > 0]
    assert all(rank[t][0] <= p for t in survivors_holding for p in victims), "one of higher priority was preempted"

    waits = sum(held[t] for t in paused if t not in dropped) + sum(held[t] for t in stopped)
    useful = [t for t in (*running, *paused) if t not in dropped and held[t] > 0]
    survivors = len(running) + len(paused) - len(dropped)
    if stopped and useful and survivors > 1:
        assert waits <= case["paused_limit_blocks"], "too much waits while there is a victim"
        assert served, "none is left to run while there is a victim"


@given(shortages())
def test_the_same_shortage_is_relieved_the_same_way(case: dict[str, Any]) -> None:
    assert relieve(**case) == relieve(**case)
