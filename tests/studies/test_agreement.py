"""What benchmarks/studies/agreement.py says of runs, and the step cost that it fits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from agreement import FIGURES, POLICIES, fitted, judged

from ecoserve.serving.simulate.cost import LinearCost, StepWork

NAMES = [f"{policy}, {lengths}" for policy, lengths in POLICIES]


def runs_of(**machines: list[list[float]]) -> dict[str, list[dict[str, Any]]]:
    """Runs of some machines, from a list of figures for each seed: one for each policy."""
    return {
        machine: [
            {"policy": name, "seed": seed, **dict.fromkeys(FIGURES, value)}
            for seed, values in enumerate(seeds)
            for name, value in zip(NAMES, values, strict=True)
        ]
        for machine, seeds in machines.items()
    }


def entry_of(**machines: list[list[float]]) -> dict[str, Any]:
    found = judged(runs_of(**machines))
    assert {e["figure"] for e in found["agreement"]} == set(FIGURES)
    entry: dict[str, Any] = found["agreement"][0]
    assert entry["verdict"] in found["verdict"][FIGURES[0]]
    return entry


def test_the_same_order_at_another_scale_agrees() -> None:
    entry = entry_of(a=[[5, 4, 3, 2, 1], [6, 5, 4, 3, 1]], b=[[50, 40, 30, 20, 10], [90, 80, 7, 6, 5]])
    assert (entry["verdict"], entry["tau_b"], entry["same_order"]) == ("agree", 1.0, 10)


def test_a_pair_that_all_seeds_turn_round_is_opposite() -> None:
    entry = entry_of(a=[[5, 4, 3, 2, 1]] * 2, b=[[4, 5, 3, 2, 1]] * 2)
    assert entry["verdict"] == "opposite"
    assert entry["opposite"] == [NAMES[:2]]
    assert entry["tau_b"] == pytest.approx(0.8)


def test_seeds_that_contradict_each_other_tell_nothing() -> None:
    entry = entry_of(a=[[5, 4, 3, 2, 1]] * 2, b=[[5, 4, 3, 2, 1], [1, 2, 3, 4, 5]])
    assert entry["verdict"] == "too noisy to tell"
    assert entry["seeds_disagree"] == 10


def test_the_steps_cost_is_found_again_though_some_steps_are_slow() -> None:
    true = LinearCost(step_s=0.002, prefill_token_s=2e-5, decode_s=1e-4, context_token_s=1e-7)
    rng = np.random.default_rng(0)
    steps = []
    for i in range(800):
        decodes, prompt = int(rng.integers(0, 64)), int(rng.integers(0, 400)) * (i % 3 == 0)
        work = StepWork(prompt, decodes, prompt + decodes * int(rng.integers(20, 500)))
        steps.append((work, true.seconds(work) * (30 if i % 50 == 0 else 1) * float(rng.normal(1, 0.02))))
    cost, figures = fitted(steps)
    for name, value in true.model_dump().items():
        assert getattr(cost, name) == pytest.approx(value, rel=0.1), name
    assert figures["median_relative_error"] < 0.03
