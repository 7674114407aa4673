"""How fast does virtual time pass, and who takes the time of a step?

    python benchmarks/studies/simulate_speed.py benchmarks/results/simulate_speed.json

Loads that keep 64, 128 and 256 requests running, once with all the KV of the GPU and once with so little that it is
pressed, through vLLM's scheduler and ours. Every part of a step is timed in CPU time of the thread: the scheduler
(``schedule()`` and ``update_from_output()`` of the very classes that serve), the model of the GPU (seconds of the GPU
and of the host), the check of every output by a model runner's rules, making requests, and the loop: all the rest.
Each load is run three times and the fastest is kept, since caches are shared with other processes. Takes some minutes.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import common

from ecoserve.serving.simulate import run as runs
from ecoserve.serving.simulate.run import SimulateSettings, simulate
from ecoserve.sweep.identity import hardware, versions

RUNNING = (64, 128, 256)
POLICIES = (("vllm", "none"), ("ecoserve", "noise:0.6"))
#: Blocks for each running request: with the longest prompts and answers of the trace all of them fit; or they do not.
CONDITIONS: dict[str, int | None] = {"roomy": None, "pressed": 12}
LOAD: dict[str, Any] = {
    "trace": "synthetic:4000",
    "gpu": "h100_sxm",
    "model": "llama-3.1-8b",
    "rate_rps": math.inf,
    "max_num_batched_tokens": 2048,
    "max_model_len": 3072,
    "max_tokens": 1024,
    "depth": 2,
}
#: Requests of a run, in multiples of those that run at once.
WAVES = 6
REPEATS = 3


class Stopwatch:
    """CPU seconds of this thread, by part; a part within another does not count twice."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._inside: list[str] = []
        self._since = 0.0

    def on(self, part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """``call``, timed as ``part``."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            self._turn()
            self._inside.append(part)
            try:
                return call(*args, **kwargs)
            finally:
                self._turn()
                self._inside.pop()

        return timed

    def _turn(self) -> None:
        now = time.thread_time()
        if self._inside:
            self.seconds[self._inside[-1]] += now - self._since
        self._since = now


class _TimedCost:
    def __init__(self, cost: Any, watch: Stopwatch) -> None:
        self.seconds = watch.on("gpu_model", cost.seconds)
        self.host_s = watch.on("gpu_model", cost.host_s)
        self.launch_s = watch.on("gpu_model", cost.launch_s)


def measure(settings: SimulateSettings) -> dict[str, Any]:
    """One run: how long it took in both kinds of time, and who took how much of a step."""
    watch = Stopwatch()
    running: list[int] = []
    make_replica, make_request = runs._replica, runs.make_request

    def replica_of(*args: Any) -> Any:
        replica = make_replica(*args)
        scheduler = replica.scheduler
        scheduler.schedule = watch.on("schedule", scheduler.schedule)
        scheduler.update_from_output = watch.on("update", scheduler.update_from_output)
        scheduler.add_request = watch.on("schedule", scheduler.add_request)
        scheduler.gauges = watch.on("gauges", scheduler.gauges)
        replica.cost = _TimedCost(replica.cost, watch)
        replica.worker.execute = watch.on("runner_check", replica.worker.execute)
        replica.on_step = lambda output: running.append(len(output.num_scheduled_tokens))
        return replica

    simulate(settings.model_copy(update={"requests": 2}))  # what is loaded and tabulated once
    with (
        patch.object(runs, "_replica", replica_of),
        patch.object(runs, "make_request", watch.on("requests", make_request)),
        patch.object(runs, "run_replicas", watch.on("loop", runs.run_replicas)),
    ):
        result = simulate(settings)
    summary = result.summary()
    cpu_s, steps = sum(watch.seconds.values()), summary["steps"]
    return {
        "policy": settings.policy,
        "max_num_seqs": settings.max_num_seqs,
        "blocks": summary["blocks"],
        "in_batch_mean": round(sum(running) / len(running), 1),
        "steps": steps,
        "preemptions": summary["preemptions"],
        "pauses": summary["pauses"],
        "simulated_s": round(summary["duration_s"], 2),
        "cpu_s": round(cpu_s, 2),
        "simulated_s_per_cpu_s": round(summary["duration_s"] / cpu_s, 2),
        "step_simulated_ms": round(1e3 * summary["duration_s"] / steps, 2),
        "step_cpu_ms": round(1e3 * cpu_s / steps, 3),
        "step_cpu_ms_by_part": {part: round(1e3 * s / steps, 4) for part, s in sorted(watch.seconds.items())},
    }


def main() -> int:
    """Measure everything and write it down; returns the exit code."""
    parser = common.arguments_of(__doc__)
    parser.add_argument("out", type=Path, help="the JSON to write")
    out: Path = parser.parse_args().out
    rows = []
    for running in RUNNING:
        for condition, blocks_each in CONDITIONS.items():
            for policy, lengths in POLICIES:
                settings = SimulateSettings(
                    **LOAD,
                    policy=policy,
                    lengths=lengths,
                    max_num_seqs=running,
                    requests=WAVES * running,
                    blocks=None if blocks_each is None else blocks_each * running,
                )
                tried = [measure(settings) for _ in range(REPEATS)]
                row = {"condition": condition, **min(tried, key=lambda r: r["cpu_s"])}
                rows.append(row)
                print(json.dumps(row), file=sys.stderr, flush=True)
    found = {
        "command": "python benchmarks/studies/simulate_speed.py benchmarks/results/simulate_speed.json",
        "load": {key: value if value != math.inf else "inf" for key, value in LOAD.items()},
        "requests": f"{WAVES} times max_num_seqs, all at once",
        "repeats": f"{REPEATS}, the one with the least CPU time is shown",
        "rows": rows,
        "versions": versions(),
        "hardware": hardware(),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    common.write(out, found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
