"""The stopwatch of benchmarks/studies/simulate_speed.py, and that its parts add up."""

from __future__ import annotations

import pytest
import simulate_speed
from simulate_speed import Stopwatch, measure

from ecoserve.serving.simulate.run import SimulateSettings


def test_a_part_within_another_is_not_counted_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(simulate_speed.time, "thread_time", lambda: now)
    watch = Stopwatch()

    def work(seconds: float) -> None:
        nonlocal now
        now += seconds

    inner = watch.on("inner", work)

    def outer() -> None:
        work(1.0)
        inner(5.0)
        work(2.0)

    watch.on("outer", outer)()
    work(100.0)
    inner(1.0)
    assert watch.seconds == {"outer": 3.0, "inner": 6.0}


def test_every_part_of_a_step_is_measured() -> None:
    row = measure(
        SimulateSettings(
            trace="synthetic:100",
            policy="ecoserve",
            rate_rps=50,
            requests=8,
            blocks=80,
            max_model_len=800,
            max_tokens=600,
        )
    )
    parts = row["step_cpu_ms_by_part"]
    assert set(parts) == {"gauges", "gpu_model", "loop", "requests", "runner_check", "schedule", "update"}
    assert min(parts.values()) > 0
    assert sum(parts.values()) == pytest.approx(row["step_cpu_ms"], rel=0.02)
    assert 1 <= row["in_batch_mean"] <= 8
