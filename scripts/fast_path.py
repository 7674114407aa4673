"""What does the decode-only fast path save, and does it change anything?

    python scripts/fast_path.py ../shared/data/alpaca.json.gz benchmarks/results/fast_path.json

*Steps*: 64, 128 and 256 requests that all decode, in vLLM's scheduler and in ours without and with the fast path. The
three take turns of a few steps in one process, and ``schedule()`` is timed in CPU time of the thread; the median over
the turns is kept. *Runs*: five loads of sweeps/ablation.yaml in virtual time, 200 requests each, without and with it in
turns: every row and every figure of the result must be the same. Takes half a minute of CPU time.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

from ecoserve.files import write_atomically
from ecoserve.lengths import LengthDistribution
from ecoserve.serving.adapter.counting import CountingScheduler
from ecoserve.serving.adapter.scheduler import EcoServeScheduler
from ecoserve.serving.core import keys
from ecoserve.serving.simulate import run as runs
from ecoserve.serving.simulate.engine import WORD, EngineShape, make_request, make_scheduler
from ecoserve.serving.simulate.run import SimulateSettings, simulate
from ecoserve.sweep.environment import hardware, versions

RUNNING = (64, 128, 256)
TURNS = 9
STEPS_A_TURN = 8
REPEATS = 2
#: (policy, lengths, requests per second, depth)
LOADS = (
    ("ecoserve", "noise:1.0", 8, 2),
    ("ecoserve", "noise:1.0", 20, 2),
    ("ecoserve", "none", 30, 2),
    ("ecoserve", "true", 30, 1),
    ("ecoserve-paper", "noise:1.0", 20, 2),
)


def _settings(on: bool) -> dict[str, Any]:
    return {"decode_fast_path": on}


class Decoding:
    """A scheduler with so many requests that do nothing but decode, at depth 1."""

    def __init__(self, cls: type[Any], running: int, settings: dict[str, Any] | None) -> None:
        shape = EngineShape(
            kv_blocks=running * 64, max_num_seqs=running, max_num_batched_tokens=8192, max_model_len=1024
        )
        self.scheduler = make_scheduler(cls, shape, {"ecoserve": settings} if settings is not None else None)
        told = {keys.LENGTHS: LengthDistribution.lognormal(600, 0.6, 900).to_wire()}
        for i in range(running):
            self.scheduler.add_request(make_request(f"r{i}", [5] * (40 + i % 61), 900, 0.0, dict(told)))
        for _ in range(running * 100 // 8192 + 2):
            self.step()

    def step(self) -> float:
        """One step; returns the CPU milliseconds of ``schedule()``."""
        from vllm.v1.outputs import ModelRunnerOutput

        began = time.thread_time()
        output = self.scheduler.schedule()
        spent = time.thread_time() - began
        names = list(output.num_scheduled_tokens)
        sampled = [[] if self.scheduler.requests[n].is_prefill_chunk else [WORD] for n in names]
        where = {n: i for i, n in enumerate(names)}
        self.scheduler.update_from_output(
            output, ModelRunnerOutput(req_ids=names, req_id_to_index=where, sampled_token_ids=sampled)
        )
        return 1e3 * spent


def steps(running: int) -> dict[str, Any]:
    """Milliseconds of ``schedule()`` a step, of the three schedulers in turns."""
    made = {
        "vllm": Decoding(CountingScheduler, running, None),
        "without": Decoding(EcoServeScheduler, running, _settings(False)),
        "with": Decoding(EcoServeScheduler, running, _settings(True)),
    }
    found: dict[str, list[float]] = {name: [] for name in made}
    gc.collect()
    gc.disable()
    for turn in range(TURNS):
        names = list(made)
        for name in names[turn % 3 :] + names[: turn % 3]:
            found[name].append(sum(made[name].step() for _ in range(STEPS_A_TURN)) / STEPS_A_TURN)
    gc.enable()
    assert all(len(d.scheduler.running) == running for d in made.values())
    counters = made["with"].scheduler.counters
    return {
        "running": running,
        "steps_timed": TURNS * STEPS_A_TURN,
        "fast_steps": counters.fast_steps,
        "steps": counters.steps,
        "schedule_cpu_ms": {name: round(median(ms), 3) for name, ms in found.items()},
    }


def load(trace: str, policy: str, lengths: str, rate: float, depth: int) -> dict[str, Any]:
    """One load without and with the fast path: CPU seconds, and whether the results are the same."""
    settings = SimulateSettings(
        trace=trace,
        gpu="l40s",
        model="llama-13b",
        length_field="vicuna_7b_tokens[3]",
        max_tokens=512,
        max_model_len=1024,
        requests=200,
        seed=0,
        policy=policy,
        lengths=lengths,
        rate_rps=rate,
        depth=depth,
    )
    simulate(settings.model_copy(update={"requests": 2}))
    cpu: dict[bool, list[float]] = {False: [], True: []}
    results: dict[bool, dict[str, Any]] = {}
    counters: Any = None
    duration = 0.0

    def watched(make: Callable[..., Any]) -> Callable[..., Any]:
        def replica(*args: Any) -> Any:
            nonlocal counters
            made = make(*args)
            counters = made.scheduler.counters
            return made

        return replica

    for turn in range(2 * REPEATS):
        on = bool(turn % 2)
        with patch.object(runs, "_replica", watched(runs._replica)):
            began = time.process_time()
            result = simulate(settings.model_copy(update={"scheduler": _settings(on)}))
            cpu[on].append(time.process_time() - began)
        summary = {k: v for k, v in result.summary().items() if "schedule" not in k and "update" not in k}
        counted = {k: v for k, v in counters.as_dict().items() if k != "fast_steps"}
        results[on] = {"rows": [repr(r) for r in result.rows], "summary": repr(summary), "counters": counted}
        duration = summary["duration_s"]
    return {
        "policy": policy,
        "lengths": lengths,
        "rate_rps": rate,
        "depth": depth,
        "steps": counters.steps,
        "fast_steps": counters.fast_steps,
        "cpu_s": {"without": round(min(cpu[False]), 2), "with": round(min(cpu[True]), 2)},
        "simulated_s_per_cpu_s": {
            "without": round(duration / min(cpu[False]), 1),
            "with": round(duration / min(cpu[True]), 1),
        },
        "same_results": results[False] == results[True],
    }


def main() -> int:
    """Measure everything and write it down; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("trace", help="the Alpaca trace")
    parser.add_argument("out", type=Path, help="the JSON to write")
    asked = parser.parse_args()
    found: dict[str, Any] = {
        "command": f"python scripts/fast_path.py {Path(asked.trace).name} {asked.out.name}",
        "hardware": hardware(),
        "versions": versions(),
        "steps": [steps(n) for n in RUNNING],
        "runs": [load(asked.trace, *one) for one in LOADS],
    }
    write_atomically(asked.out, json.dumps(found, indent=1) + "\n")
    print(json.dumps(found["steps"] + found["runs"], indent=None), file=sys.stderr)
    return 0 if all(r["same_results"] for r in found["runs"]) else 1


if __name__ == "__main__":
    sys.exit(main())
