"""How many tokens a forward may have, and the time of a step that it goes by."""

from __future__ import annotations

import random
from typing import Any

import pytest
from core_rig import a_task, holder

from ecoserve.lengths import LengthDistribution
from ecoserve.serving.core.forecast import Forecast
from ecoserve.serving.core.forward_size import LEAST_PROMPT_TOKENS, ForwardSize
from ecoserve.serving.core.kv_use import Group, KVUse
from ecoserve.serving.core.settings import SchedulerSettings
from ecoserve.serving.core.step_time import WARM_UP, StepLoad, StepTime
from ecoserve.serving.core.tasks import Task, TaskState

MOST = 8192


def seconds(load: StepLoad) -> float:
    """A machine: 7 ms a step, 20 us a prompt token, 10 us a decode, 40 ns a KV token."""
    return 7e-3 + 20e-6 * load.prompt_tokens + 10e-6 * load.decodes + 40e-9 * load.kv_tokens


def a_load(rng: random.Random) -> StepLoad:
    decodes = rng.randrange(1, 200)
    return StepLoad(rng.choice([0, 0, rng.randrange(1, 2000)]), decodes, decodes * rng.randrange(100, 1500))


def a_forward(learned: bool = True, **settings: Any) -> ForwardSize:
    forward = ForwardSize(SchedulerSettings(**settings), MOST, Forecast(KVUse([Group(16)]), 4096))
    rng = random.Random(0)
    for _ in range(400 if learned else 0):
        load = a_load(rng)
        forward.step_time.learn(load, seconds(load))
    return forward


def decoding(count: int, **fields: Any) -> list[Task]:
    known: dict[str, Any] = {"lengths": LengthDistribution.point(200), "generated": 100}
    return [holder(str(i), TaskState.DECODE, 116, **(known | fields)) for i in range(count)]


# -- the time of a step ------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_the_time_of_a_step_is_learned(noise: float) -> None:
    rng = random.Random(1)
    model = StepTime()
    assert not model.ready
    for _ in range(600):
        load = a_load(rng)
        model.learn(load, seconds(load) * rng.lognormvariate(0.0, noise))
    assert model.ready
    for _ in range(50):
        load = a_load(rng)
        assert model.seconds(load) == pytest.approx(seconds(load), rel=0.1 if noise else 0.03)


def test_a_machine_that_stood_still_teaches_little() -> None:
    rng = random.Random(2)
    model = StepTime()
    for i in range(600):
        load = a_load(rng)
        model.learn(load, 30.0 if i % 100 == 99 else seconds(load))
    load = StepLoad(500, 100, 50_000)
    assert model.seconds(load) == pytest.approx(seconds(load), rel=0.15)


def test_a_machine_that_has_become_slower_is_followed() -> None:
    rng = random.Random(3)
    model = StepTime()
    for factor, steps in ((1.0, 500), (2.0, 3000)):
        for _ in range(steps):
            load = a_load(rng)
            model.learn(load, factor * seconds(load))
    load = StepLoad(500, 100, 50_000)
    assert model.seconds(load) == pytest.approx(2 * seconds(load), rel=0.15)


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf"), 1e9])
def test_what_is_no_duration_is_not_learned(value: float) -> None:
    model = StepTime()
    before = model.coefficients.tolist()
    for _ in range(WARM_UP * 2):
        model.learn(StepLoad(100, 10, 1000), value)
    assert model.coefficients.tolist() == before
    assert not model.ready


# -- the forward -------------------------------------------------------------------------------------------


def test_a_step_takes_what_decodes_with_deadlines_can_spare() -> None:
    forward = a_forward()
    forward.waits(a_task("new", prompt_tokens=100_000))
    tokens = []
    for slack_s in (0.012, 0.02, 0.04):
        running = decoding(50, deadline_s=100 * slack_s)
        tokens.append(forward.tokens(running, 10**9, 0.0))
        load = StepLoad(tokens[-1] - 50, 50, 50 * 116)
        assert seconds(load) == pytest.approx(0.9 * slack_s, rel=0.05)
    assert tokens == sorted(tokens)


def test_decodes_that_are_late_in_any_case_do_not_count() -> None:
    forward = a_forward()
    forward.waits(a_task("new", prompt_tokens=10**6))
    late, in_time = decoding(30, deadline_s=0.1), decoding(30, deadline_s=3.0)
    assert forward.tokens([*late, *in_time], 10**9, 0.0) > 1000
    assert forward.tokens(late, 10**9, 0.0) == MOST
    assert forward.tokens(decoding(30, deadline_s=0.85), 10**9, 0.0) == 30 + LEAST_PROMPT_TOKENS


def test_without_deadlines_prompts_are_spread_over_steps() -> None:
    forward = a_forward(learned=False)
    forward.waits(a_task("new", prompt_tokens=3000))
    assert forward.tokens(decoding(100), 10**9, 0.0) == 100 + 300, "ten steps: the root of 100 decodes for a prompt"
    assert forward.tokens([], 10**9, 0.0) == 3000
    assert forward.tokens(decoding(100), 1000, 0.0) == 100 + 100, "KV for no more"
    for i in range(3):
        forward.waits(a_task(str(i), prompt_tokens=3000))
    assert forward.tokens(decoding(100), 10**9, 0.0) == 100 + 12000 // 5


def test_a_request_that_no_longer_waits_does_not_count() -> None:
    forward = a_forward(learned=False)
    task = a_task("new", prompt_tokens=3000)
    for _ in range(2):
        forward.waits(task)
    forward.waits_no_more(task)
    forward.waits_no_more(task)
    assert forward.tokens(decoding(4), 10**9, 0.0) == 4 + LEAST_PROMPT_TOKENS
    chunk = holder("chunk", TaskState.PREFILL, 500, prompt_tokens=2500, known_tokens=2500)
    assert forward.tokens([*decoding(4), chunk], 10**9, 0.0) == 4 + 1000


def test_what_is_set_holds() -> None:
    running = decoding(50, deadline_s=1.2)
    assert a_forward(target_forward_tokens=512).tokens(running, 10**9, 0.0) == 512
    whole = ForwardSize(SchedulerSettings(), MOST, Forecast(KVUse([Group(16)]), 4096), chunked_prefill=False)
    assert whole.tokens(running, 10**9, 0.0) == MOST
