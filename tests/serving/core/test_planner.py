"""The planner by itself: snapshots in, plans out, no engine."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from core_rig import a_task, holder

from ecoserve.lengths import LengthDistribution
from ecoserve.serving.core.counters import Counters, Recorder
from ecoserve.serving.core.forward_size import LEAST_PROMPT_TOKENS
from ecoserve.serving.core.kv_use import Group, KVUse
from ecoserve.serving.core.planner import Planner, Snapshot
from ecoserve.serving.core.policies import GROUPS, KV_POLICIES, ORDERINGS, load
from ecoserve.serving.core.settings import SchedulerSettings
from ecoserve.serving.core.tasks import Task, TaskState


def a_planner(*tasks: Task, usable: int = 100, **settings: Any) -> Planner:
    counters = Counters()
    planner = Planner(
        SchedulerSettings(**settings),
        usable_blocks=usable,
        kv_use=KVUse([Group(16)]),
        max_model_len=4096,
        max_step_tokens=512,
        counters=counters,
        recorder=Recorder(counters, lambda task: (0.0, 0, task.blocks, 0)),
    )
    for task in tasks:
        planner.on_arrival(task, 0.0)
    return planner


def decoding(name: str, rest: int, blocks: int, **fields: Any) -> Task:
    """A decode that fills its blocks and has ``rest`` tokens to come."""
    written = 16 * blocks
    generated = written - 15
    lengths = LengthDistribution.point(generated + rest)
    return holder(
        name, TaskState.DECODE, written, lengths=lengths, generated=generated, blocks=blocks, promised=4000, **fields
    )


def snapshot(running: list[Task], holding: list[Task] | None = None, free: int = 0, **fields: Any) -> Snapshot:
    every = [*running, *(holding or [])]
    known: dict[str, Any] = {"step": 10, "paused_at": {t.request_id: 3 for t in holding or []}}
    known |= {"private_blocks": {t.request_id: t.blocks for t in every}}
    return Snapshot(running=running, holding=holding or [], free_blocks=free, **(known | fields))


def test_nothing_is_planned_while_blocks_suffice() -> None:
    tasks = [decoding("a", 10, 2), decoding("b", 20, 2)]
    plan = a_planner(*tasks).plan_step(snapshot(tasks, free=2))
    assert (plan.pause, plan.preempt, plan.token_budget) == ([], [], 2 + LEAST_PROMPT_TOKENS)


def test_a_shortage_pauses_and_closes_admission() -> None:
    short, long = decoding("short", 10, 2), decoding("long", 90, 2)
    planner = a_planner(short, long, paused_share=0.5)
    plan = planner.plan_step(snapshot([long, short], free=1))
    assert (plan.pause, plan.preempt) == (["long"], [])
    assert long.state is TaskState.PAUSED
    planner.begin_admission(10, 1, {"long": 10})
    assert not planner.admits_prompt(a_task("new"))
    assert not planner.admits_decode(long)
    assert planner.counters.shortage_steps == 1


def test_beyond_the_share_of_the_paused_the_longest_is_preempted() -> None:
    short, long = decoding("short", 10, 2), decoding("long", 90, 2)
    plan = a_planner(short, long, paused_share=0.0).plan_step(snapshot([short, long], free=1))
    assert (plan.pause, plan.preempt) == ([], ["long"])


def test_while_draining_no_decode_waits_for_its_promise() -> None:
    task = holder("t", TaskState.DECODE, 16, lengths=LengthDistribution.point(5000), limit=5000, generated=1, blocks=1)
    other = decoding("other", 10, 2)
    for admitting, paused in ((True, ["t"]), (False, [])):
        task.state = TaskState.DECODE
        planner = a_planner(task, other, policy="ecoserve-exact")
        assert planner.plan_step(snapshot([task, other], free=9, admitting=admitting)).pause == paused


def test_prompts_fill_the_forward_up_to_the_target() -> None:
    tasks = [decoding(str(i), 10, 1) for i in range(3)]
    for target, budget in ((64, 64), (2, 4), (4096, 512)):
        planner = a_planner(*tasks, target_forward_tokens=target)
        assert planner.plan_step(snapshot(tasks, free=50)).token_budget == budget


def test_room_is_made_for_the_first_that_may_go_on() -> None:
    head, often, fresh = (decoding(n, 10, 2) for n in ("head", "often", "fresh"))
    often.preemptions = 2
    paused_at = {"head": 3, "often": 3, "fresh": 3}
    plan = a_planner(head, often, fresh).make_room([head, often, fresh], paused_at, step=10)
    assert (plan.preempt, plan.until_free) == (["fresh", "often"], 1)
    session = decoding("session", 10, 2)
    plan = a_planner(head, session).make_room([head, session], {"head": 3}, step=10)
    assert plan.preempt == ["head"], "a session cannot be preempted: the head gives way"
    assert not a_planner(head).make_room([head], {"head": 10}, step=10).preempt, "paused in this very step"


@pytest.mark.parametrize("entry", [*KV_POLICIES.values(), *ORDERINGS.values(), GROUPS])
def test_every_registry_entry_can_be_loaded(entry: str) -> None:
    assert callable(load(entry))


def test_the_default_policy_imports_no_baseline() -> None:
    code = (
        "import sys; from test_planner import a_planner; a_planner();"
        "assert not [m for m in sys.modules if m.startswith(('ecoserve.serving.baselines.', 'vllm'))]"
    )
    here = __file__.rsplit("/", 1)[0]
    paths = f"import sys; sys.path[:0] = [{here!r}, {here.rsplit('/', 1)[0]!r}];"
    subprocess.run([sys.executable, "-c", paths + code], check=True)
