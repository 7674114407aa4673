"""Each KV policy's promises and admissions, on ledgers written by hand."""

from __future__ import annotations

from typing import Any

import pytest
from core_rig import a_task, distributions, holder
from hypothesis import given
from hypothesis import strategies as st

from ecoserve.lengths import LengthDistribution
from ecoserve.serving.core.forecast import Forecast
from ecoserve.serving.core.kv_policy import KVPolicy
from ecoserve.serving.core.kv_use import Group, KVUse
from ecoserve.serving.core.ledger import Ledger
from ecoserve.serving.core.orderings import Ordering, Pace
from ecoserve.serving.core.policies import KV_POLICIES, ORDERINGS, load
from ecoserve.serving.core.settings import SchedulerSettings
from ecoserve.serving.core.tasks import Task, TaskState

BLOCK = 16


def a_policy(name: str, *holders: Task, usable: int = 100, **settings: Any) -> KVPolicy:
    kv_use = KVUse([Group(BLOCK)])
    ledger = Ledger(usable, kv_use)
    ledger.tasks = {t.request_id: t for t in holders}
    ledger.set_holders(list(holders))
    for task in holders:
        task.blocks, task.row = ledger.blocks(task.written), -1
    ledger.held_blocks = sum(t.blocks for t in holders)
    chosen = SchedulerSettings(**settings)
    ordering: Ordering = load(ORDERINGS[chosen.ordering or "srpt"])(chosen, Pace(512))
    policy: KVPolicy = load(KV_POLICIES[name])(chosen, ledger, Forecast(kv_use, 4096), ordering)
    policy.begin_step()
    return policy


def exactly(length: int) -> LengthDistribution:
    return LengthDistribution.point(length)


# -- promises ------------------------------------------------------------------------------------------


def test_on_demand_promises_nothing_ahead() -> None:
    assert a_policy("on-demand").promise(a_task(generated=7)) == 7


def test_exact_promises_the_padded_median() -> None:
    assert a_policy("exact", padding=0.15).promise(a_task(lengths=exactly(100))) == 115
    assert a_policy("exact", padding=0.0).promise(a_task(lengths=exactly(100))) == 100


def test_ranked_promises_a_quantile() -> None:
    lengths = LengthDistribution((0, 100), (1.0,))
    assert a_policy("ranked", quantile=0.8).promise(a_task(lengths=lengths)) == 80


@pytest.mark.parametrize("name", ["exact", "ranked"])
@given(lengths=distributions(), generated=st.integers(0, 500), limit=st.integers(501, 900))
def test_a_promise_covers_the_next_token_and_never_more_than_the_limit(
    name: str, lengths: LengthDistribution, generated: int, limit: int
) -> None:
    promise = a_policy(name).promise(a_task(lengths=lengths, generated=generated, limit=limit))
    assert generated < promise <= limit


def test_a_promise_ends_at_the_limit() -> None:
    assert a_policy("exact").promise(a_task(lengths=exactly(100), limit=40)) == 40


# -- who may start ---------------------------------------------------------------------------------------


def test_on_demand_admits_all() -> None:
    full = [holder(str(i), TaskState.DECODE, 400) for i in range(4)]
    policy = a_policy("on-demand", *full)
    assert policy.admits_prompt(a_task(lengths=exactly(4000)))
    assert policy.admits_decode(full[0])


def test_exact_starts_a_prompt_if_all_promises_fit_together() -> None:
    # Promised: 160 + 160 tokens, 20 blocks each; 100 usable, none in reserve.
    hosts = [holder(str(i), TaskState.DECODE, 160, prompt_tokens=160, promised=160) for i in range(4)]
    policy = a_policy("exact", *hosts, reserve=0.0, padding=0.0, waiting_share=1e-9)
    assert policy.admits_prompt(a_task(prompt_tokens=160, lengths=exactly(160)))  # exactly 20 more
    assert not policy.admits_prompt(a_task(prompt_tokens=160, lengths=exactly(161)))


def test_exact_keeps_its_reserve() -> None:
    hosts = [holder(str(i), TaskState.DECODE, 160, prompt_tokens=160, promised=160) for i in range(4)]
    policy = a_policy("exact", *hosts, reserve=0.02, padding=0.0, waiting_share=1e-9)
    assert (policy.reserve_blocks, policy.open_blocks) == (2, 98)
    assert not policy.admits_prompt(a_task(prompt_tokens=160, lengths=exactly(160)))
    assert policy.admits_prompt(a_task(prompt_tokens=160, lengths=exactly(128)))


def test_within_one_step_exact_counts_whom_it_has_let_in() -> None:
    policy = a_policy("exact", reserve=0.0, padding=0.0, waiting_share=1e-9)
    newcomers = [a_task(str(i), prompt_tokens=160, lengths=exactly(160)) for i in range(6)]
    verdicts = []
    for task in newcomers:
        verdicts.append(policy.admits_prompt(task))
        if verdicts[-1]:
            policy.admitted(task)
    assert verdicts == [True] * 5 + [False]


def test_a_prompt_runs_ahead_while_few_generations_wait() -> None:
    host = holder("host", TaskState.DECODE, 16, lengths=exactly(1200), promised=1200)  # 76 blocks
    waiting = holder("waiting", TaskState.PAUSED, 160, prompt_tokens=160)  # 10 blocks
    newcomer = a_task("new", prompt_tokens=64, lengths=exactly(2000))  # 5 blocks now, far too many later
    policy = a_policy("exact", host, waiting, reserve=0.0, waiting_share=0.15)
    assert policy.admits_prompt(newcomer)
    assert not a_policy("exact", host, waiting, reserve=0.0, waiting_share=0.14).admits_prompt(newcomer)


def test_what_waits_with_its_kv_counts_when_prompts_ask() -> None:
    newcomer = a_task("new", prompt_tokens=320, lengths=exactly(16))
    waiting = [holder(str(i), TaskState.PAUSED, 400, prompt_tokens=400) for i in range(4)]
    assert a_policy("exact", *waiting[:2]).admits_prompt(newcomer)
    assert not a_policy("exact", *waiting).admits_prompt(newcomer)
    assert a_policy("pooled", *waiting[:2]).admits_prompt(newcomer)
    assert not a_policy("pooled", *waiting).admits_prompt(newcomer)


def test_a_generation_goes_on_if_its_new_promise_fits_beside_the_others() -> None:
    other = holder("other", TaskState.DECODE, 160, prompt_tokens=160, promised=1000)  # 73 blocks
    mine = holder("mine", TaskState.PAUSED, 160, prompt_tokens=160, lengths=exactly(260))
    policy = a_policy("exact", other, mine, reserve=0.0, padding=0.0)
    assert policy.admits_decode(mine)  # 27 blocks, its own 10 among them
    mine.lengths = exactly(273)
    assert not policy.admits_decode(mine)  # 28


def test_the_reserve_is_lent_to_the_outlived_only() -> None:
    other = holder("other", TaskState.DECODE, 160, prompt_tokens=160, promised=1360)  # 95 blocks
    mine = holder("mine", TaskState.DECODE, 48, prompt_tokens=16, generated=32, lengths=exactly(200), promised=32)
    policy = a_policy("exact", other, mine, reserve=0.05, padding=0.0)
    assert not policy.admits_decode(mine)
    assert policy.lends_reserve(mine)  # one block more
    other.promised += 32
    policy.begin_step()
    assert not policy.lends_reserve(mine)


def test_pooled_starts_a_prompt_if_the_forecast_stays_within_the_cache() -> None:
    hosts = [holder(str(i), TaskState.DECODE, 16, lengths=exactly(64)) for i in range(10)]  # 5 blocks each in the end
    policy = a_policy("pooled", *hosts, reserve=0.0, epsilon=0.023)
    # The hosts will have gone by the time this one is long.
    assert policy.admits_prompt(a_task(prompt_tokens=16, lengths=exactly(1300)))
    assert not policy.admits_prompt(a_task(prompt_tokens=16, lengths=exactly(2200)))


def test_pooled_is_the_more_careful_the_smaller_epsilon() -> None:
    def admitted(epsilon: float) -> int:
        policy = a_policy("pooled", reserve=0.0, epsilon=epsilon, usable=400)
        for i in range(200):
            task = a_task(str(i), lengths=LengthDistribution.lognormal(300, 0.8, 4000))
            if not policy.admits_prompt(task):
                return i
            policy.admitted(task)
        raise AssertionError("every request was admitted")

    assert admitted(0.0001) < admitted(0.023) < admitted(0.5)


def test_stock_is_taken_again_after_begin_step_only() -> None:
    policy = a_policy("exact", reserve=0.0, padding=0.0)
    newcomer = a_task("new", prompt_tokens=1500, lengths=exactly(64))
    assert policy.admits_prompt(newcomer)
    policy.ledger.set_holders([holder("late", TaskState.DECODE, 160, promised=160)])
    assert policy.admits_prompt(newcomer)
    policy.begin_step()
    assert not policy.admits_prompt(newcomer)


def test_a_reservation_is_counted_at_once() -> None:
    mine = holder("mine", TaskState.DECODE, 160, prompt_tokens=160, lengths=exactly(800))
    policy = a_policy("exact", mine, reserve=0.0, padding=0.0, waiting_share=1e-9)
    newcomer = a_task("new", prompt_tokens=640, lengths=exactly(320))  # 60 blocks
    assert policy.admits_prompt(newcomer)
    policy.reserve_for(mine, 800)
    assert mine.promised == 800
    assert not policy.admits_prompt(newcomer)
    policy.reserve_for(mine, 10**6)
    assert mine.promised == mine.limit


@given(
    st.lists(st.tuples(st.integers(1, 300), st.integers(1, 600)), min_size=1, max_size=40),
    st.sampled_from([0.0, 0.02, 0.2]),
    st.sampled_from([0.0, 0.15]),
)
def test_exact_never_promises_generations_more_than_there_is(
    load: list[tuple[int, int]], reserve: float, padding: float
) -> None:
    """Whatever passes the gate, in any order, the sum of the promises stays within what is open."""
    tasks = [
        holder(str(i), TaskState.PAUSED, prompt, prompt_tokens=prompt, lengths=exactly(length))
        for i, (prompt, length) in enumerate(load)
    ]
    policy = a_policy("exact", *tasks, usable=200, reserve=reserve, padding=padding)
    before = sum(policy.ledger.promised_blocks(t) for t in tasks)
    for task in tasks:
        if policy.admits_decode(task):
            policy.reserve_for(task, policy.promise(task))
    after = sum(policy.ledger.promised_blocks(t) for t in tasks)
    assert after == before or after <= policy.open_blocks


def test_prompts_on_their_way_count_among_those_without_a_promise() -> None:
    host = holder("host", TaskState.DECODE, 16, lengths=exactly(1200), promised=1200)  # 76 blocks
    under_way = holder("under way", TaskState.PREFILL, 16, prompt_tokens=160)  # 10 blocks when it is through
    newcomer = a_task("new", prompt_tokens=64, lengths=exactly(2000))
    assert a_policy("exact", host, under_way, reserve=0.0, waiting_share=0.15).admits_prompt(newcomer)
    assert not a_policy("exact", host, under_way, reserve=0.0, waiting_share=0.14).admits_prompt(newcomer)


def test_within_one_step_no_more_run_ahead_than_may_wait() -> None:
    host = holder("host", TaskState.DECODE, 16, lengths=exactly(800), promised=800)  # 51 blocks
    policy = a_policy("exact", host, reserve=0.0, waiting_share=0.15)
    verdicts = []
    for i in range(5):
        task = a_task(str(i), prompt_tokens=64, lengths=exactly(2000))  # five blocks each
        verdicts.append(policy.admits_prompt(task))
        if verdicts[-1]:
            policy.admitted(task)
    assert verdicts == [True, True, True, False, False]


def test_who_was_passed_by_long_enough_is_passed_by_no_more() -> None:
    running = holder("running", TaskState.DECODE, 160, prompt_tokens=160, promised=640)  # 50 blocks
    long = holder("long", TaskState.PAUSED, 32, prompt_tokens=32, lengths=exactly(960))  # 62 blocks, it holds 2
    short = holder("short", TaskState.DECODE, 32, prompt_tokens=32, lengths=exactly(320))  # 22 blocks
    prompt = a_task("prompt", prompt_tokens=32, lengths=exactly(320))
    policy = a_policy("exact", running, long, short, reserve=0.0, padding=0.0, waiting_share=1e-9)
    assert policy.admits_new_decode(short)
    assert policy.admits_prompt(prompt)
    long.passed_by = True
    policy.begin_step()
    assert not policy.admits_new_decode(short)
    assert not policy.admits_prompt(prompt)
    assert policy.admits_decode(short), "in the queue of those who wait, the ordering decides"
    running.promised = 0
    running.prompt_tokens = 16
    running.written = 16
    policy.begin_step()
    assert policy.admits_new_decode(short), "there is room for both"


@pytest.mark.parametrize("name", ["on-demand", "ranked"])
def test_only_exact_has_a_gate(name: str) -> None:
    task = holder("t", TaskState.DECODE, 32, lengths=exactly(10**4))
    policy = a_policy(name, task, usable=4)
    assert policy.admits_new_decode(task)
    assert policy.admits_decode(task)
    assert policy.lends_reserve(task)


# -- admission by rank -----------------------------------------------------------------------------------


def test_holders_that_rank_behind_are_no_obstacle() -> None:
    # Ten blocks each, eleven in the next step; the newcomer has two.
    others = [holder(str(i), TaskState.DECODE, 160, lengths=exactly(1400)) for i in range(4)]

    def admits(name: str) -> bool:
        return a_policy(name, *others, reserve=0.0, usable=45).admits_prompt(a_task("new", lengths=exactly(300)))

    assert not admits("pooled")
    assert admits("ranked")
    for other in others:
        other.lengths = exactly(290)
    assert not admits("ranked"), "they rank before"


def test_the_prompts_new_blocks_must_be_free_now() -> None:
    long = holder("long", TaskState.DECODE, 1440, lengths=exactly(4000))  # 90 blocks now

    def admits(prompt_tokens: int, reserve: float = 0.0, shared_blocks: int = 0) -> bool:
        short = a_task("short", prompt_tokens=prompt_tokens, lengths=exactly(2), shared_blocks=shared_blocks)
        return a_policy("ranked", long, reserve=reserve).admits_prompt(short)

    assert admits(159)
    assert not admits(159, reserve=0.01)
    assert not admits(160)
    assert admits(160, shared_blocks=1), "others hold its first block"


def test_within_one_step_ranked_counts_the_prompts_it_has_admitted() -> None:
    policy = a_policy("ranked", reserve=0.0)
    verdicts = []
    for i in range(10):
        task = a_task(str(i), prompt_tokens=160, lengths=exactly(160))
        verdicts.append(policy.admits_prompt(task))
        if verdicts[-1]:
            policy.admitted(task)
    assert verdicts == [True] * 9 + [False], "eleven blocks each"


def test_client_priority_ranks_before_length() -> None:
    holders = [holder(str(i), TaskState.DECODE, 160, lengths=exactly(900), priority=i) for i in range(3)]
    for priority, admitted in ((-1, True), (0, True), (2, True), (3, False)):
        task = a_task("new", prompt_tokens=64, lengths=exactly(300), priority=priority)
        # Eleven blocks for each holder in the next step, five for the newcomer.
        policy = a_policy("ranked", *holders, reserve=0.0, usable=36)
        assert policy.admits_prompt(task) is admitted, priority


def test_a_shared_prefix_is_charged_once() -> None:
    sharers = [holder(str(i), TaskState.DECODE, 656, prompt_tokens=640, lengths=exactly(60)) for i in range(4)]
    policy = a_policy("ranked", *sharers, reserve=0.0, usable=110)
    for task in sharers:
        task.shared_blocks = 40
    policy.ledger.held_blocks = 44
    newcomer = a_task("new", prompt_tokens=640, lengths=exactly(60))
    assert policy.ledger.shared_blocks() == 40
    assert policy.admits_prompt(newcomer), "its own copy would fit as well"
    newcomer.row = -1
    tight = a_policy("ranked", *sharers, reserve=0.0, usable=64)
    for task in sharers:
        task.shared_blocks = 40
    tight.ledger.held_blocks = 44
    assert not tight.admits_prompt(newcomer)
    newcomer.shared_blocks = 40
    tight.begin_step()
    assert tight.admits_prompt(newcomer)


@pytest.mark.parametrize("idle", [True, False])
def test_an_idle_sessions_kv_stays_as_it_is(idle: bool) -> None:
    session = holder("session", TaskState.PAUSED, 640, prompt_tokens=600, generated=40, lengths=exactly(90), idle=idle)
    policy = a_policy("ranked", session, reserve=0.0, usable=42)
    assert policy.admits_prompt(a_task("new", lengths=exactly(300))) is idle


def test_first_come_first_served_ranks_by_arrival() -> None:
    old = holder("old", TaskState.DECODE, 160, lengths=exactly(1300), arrival_s=1.0)
    for arrival_s, admitted in ((0.5, True), (2.0, False)):
        policy = a_policy("ranked", old, reserve=0.0, usable=12, ordering="fcfs")
        assert policy.admits_prompt(a_task("new", lengths=exactly(600), arrival_s=arrival_s)) is admitted
