"""True lengths are for the clients' eyes only: before the first response ends, nothing depends on them.

Predicted lengths are fixed; the true ones change places among the requests. vLLM's outputs, step by step, must
be the same until the first response ends in either run.
"""

from __future__ import annotations

import random
from contextlib import suppress
from dataclasses import asdict, replace
from typing import Any

import pytest
from virtual_rig import OURS, STOCK, Case, Spec, arrivals_of, drive, play, random_case, same, scheduler_for

from ecoserve.serving.adapter import predictions
from ecoserve.serving.core import keys


def decisions(output: Any) -> dict[str, Any]:
    """Everything that a step tells the workers, as plain values."""
    cached = output.scheduled_cached_reqs
    return {
        "tokens": dict(output.num_scheduled_tokens),
        "new": [(n.req_id, n.block_ids, n.num_computed_tokens) for n in output.scheduled_new_reqs],
        "cached": [cached.req_ids, cached.new_block_ids, cached.num_computed_tokens, cached.resumed_req_ids],
        "preempted": set(output.preempted_req_ids or ()),
        "finished": set(output.finished_req_ids),
    }


class FirstEndedError(Exception):
    """The first response has ended: the rest of the run is not compared."""


def until_the_first_ends(case: Case) -> list[dict[str, Any]]:
    """The decisions of all steps that were scheduled before a response had ended."""
    steps: list[dict[str, Any]] = []

    def on_step(scheduler: Any, output: Any) -> None:
        if scheduler.counters.finished:
            raise FirstEndedError
        steps.append(decisions(output))

    with suppress(FirstEndedError):
        play(case, on_step)
    return steps


def first_difference(case: Case, seed: int) -> tuple[int, int | None]:
    """(steps compared, the first that differs) when the answers of a case change places."""
    answers = [s.answer for s in case.specs]
    random.Random(seed).shuffle(answers)
    specs = [replace(s, predicted_answer=s.answer) for s in case.specs]
    one, other = (
        until_the_first_ends(same(case, specs=tuple(replace(s, answer=n) for s, n in zip(specs, lengths, strict=True))))
        for lengths in ([s.answer for s in specs], answers)
    )
    compared = min(len(one), len(other))
    return compared, next((i for i in range(compared) if one[i] != other[i]), None)


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("policy", [*OURS, STOCK])
def test_no_decision_depends_on_lengths_that_are_not_over(policy: str, depth: int) -> None:
    compared = 0
    for seed in range(4):
        case = random_case(seed, policy=policy, depth=depth, aborts=False)
        # Long enough that much is decided before the first one ends.
        long = tuple(replace(s, answer=s.answer + 25, max_tokens=4096) for s in case.specs)
        steps, different = first_difference(same(case, specs=long), seed)
        assert different is None, f"seed {seed}: step {different} knows how long a response will be"
        compared += steps
    assert compared > 75, "hardly anything was compared"


def test_pauses_and_drops_are_among_the_decisions_compared() -> None:
    """Responses that are predicted short and are all long: every action is taken before the first one ends."""
    specs = tuple(
        Spec(prompt=20 + i, answer=90 + 3 * i, source="one", max_tokens=400, predicted_answer=1) for i in range(12)
    )
    case = Case(specs, blocks=26, max_model_len=208, max_num_seqs=12, knobs=(("epsilon", 0.5), ("paused_share", 0.25)))
    seen = {}

    def on_step(scheduler: Any, output: Any) -> None:
        if not scheduler.counters.finished:
            seen.update(asdict(scheduler.counters))

    play(case, on_step)
    assert seen["pauses"] > 0
    assert seen["shortage_preemptions"] > 0
    steps, different = first_difference(case, 1)
    assert steps > 50
    assert different is None


@pytest.mark.parametrize("policy", OURS)
def test_the_length_that_replay_forces_is_not_read(policy: str) -> None:
    """Replay sends the true length along, for the logits processor: a scheduler that looked would be seen here."""
    case = random_case(3, policy=policy, source="noisy", aborts=False, most=16)

    def run(forced: int | None) -> list[dict[str, Any]]:
        arrivals = arrivals_of(case)
        for i, arrival in enumerate(arrivals):
            if forced is not None:
                arrival.request.sampling_params.extra_args[keys.REPLAY_TOKENS] = forced + i
        steps: list[dict[str, Any]] = []
        drive(scheduler_for(case), arrivals, case.depth, on_step=lambda o: steps.append(decisions(o)))
        return steps

    assert run(None) == run(1) == run(10_000)


def test_a_scheduler_that_peeks_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test of the test: a scheduler that knows the true lengths decides by them."""
    case = random_case(1, policy="ecoserve", source="noisy", aborts=False, knobs=())
    assert len(case.specs) > 8
    truth: dict[str, int] = {}
    task_of = predictions.task_of

    def peeking(request: Any, *rest: Any) -> Any:
        task = task_of(request, *rest)
        task.lengths = predictions.LengthDistribution.point(truth[request.request_id])
        task.prediction = None  # nothing that would be corrected
        return task

    monkeypatch.setattr("ecoserve.serving.adapter.scheduler.task_of", peeking)
    outputs = []
    for order in (1, -1):
        answers = [25 + 7 * i for i in range(len(case.specs))][::order]
        truth.update({f"r{i}": n for i, n in enumerate(answers)})
        specs = tuple(
            replace(s, answer=n, predicted_answer=s.answer, max_tokens=4096)
            for s, n in zip(case.specs, answers, strict=True)
        )
        outputs.append(until_the_first_ends(same(case, specs=specs)))
    assert any(a != b for a, b in zip(*outputs, strict=False))
