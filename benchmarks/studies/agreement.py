"""Does virtual time say what a real engine says? The same loads on both, policy by policy.

    python benchmarks/studies/agreement.py alpaca.json.gz benchmarks/results/agreement.json \
        --length-field 'vicuna_7b_tokens[3]' --predictor CHECKPOINT

The same requests run on the virtual clock at depth 1 and at depth 2, with a linear step cost that was fitted to the
engine's own steps on other requests, and on vLLM's CPU engine with the tiny model, in this process. The engine runs
twice: by its CPU time, which other processes hardly stretch, and by the wall clock.

Arrivals come at the same multiple of each machine's own capacity (requests a second that vLLM's scheduler completes
when all come at once), so that the pressure is the same. Written down: the figures of every policy, Kendall's tau-b
between the machines' orders of policies, and each pair of policies that all seeds of one machine order one way and all
seeds of another the other way. Machines agree where there is no such pair and most pairs are ordered by all seeds. Runs
for a quarter of an hour on one core.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import common
import numpy as np
from scipy.optimize import least_squares
from scipy.stats import kendalltau

from ecoserve.serving.engine_run import EngineRunSettings, run_engine
from ecoserve.serving.simulate.cost import LinearCost, StepWork
from ecoserve.serving.simulate.run import SimulateSettings, simulate
from ecoserve.sweep.identity import hardware, versions

#: A small cache, so that requests must share it: 40 blocks of 32 tokens.
SHAPE: dict[str, Any] = {
    "requests": 200,
    "blocks": 40,
    "block_size": 32,
    "max_num_seqs": 64,
    "max_num_batched_tokens": 2048,
    "max_model_len": 1024,
    "max_tokens": 512,
    "prefix_caching": False,
}
POLICIES = (
    ("vllm", "none"),
    ("vllm-watermark", "none"),
    ("ecoserve", "predicted"),
    ("ecoserve", "true"),
    ("ecoserve-d", "true"),
)
SEEDS = (0, 1, 2)
#: Far above the capacity, so that a machine which is slower for some seconds is not another load.
TIMES_CAPACITY = 2.0
#: The requests that the step cost is fitted to; their seed is none of those compared.
FIT_SEED = 100
FIGURES = ("normalized_latency_mean_ms", "preemptions")
KEPT = (*FIGURES, "e2el_mean_ms", "output_tokens_per_s", "recomputed_tokens", "pauses", "steps", "duration_s")

#: What the probe has seen: work of a step, and seconds of CPU time until the next.
Steps = list[tuple[StepWork, float]]


def main() -> int:
    """Run the comparison; returns the exit code."""
    parser = common.arguments_of(__doc__)
    parser.add_argument("trace", help="a trace with prompts and recorded response lengths")
    parser.add_argument("out", type=Path, help="the JSON to write")
    parser.add_argument("--length-field")
    parser.add_argument("--predictor", required=True, help="checkpoint folder")
    parser.add_argument("--seeds", type=int, default=len(SEEDS))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="agreement-") as folder:
        found = compare(arguments, Path(folder))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    common.write(arguments.out, found)
    for figure, line in found["verdict"].items():
        print(f"{figure}: {line}")
    return 0


def compare(arguments: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """All runs, and what they say."""
    from tiny_model import make_tiny_model

    model = str(make_tiny_model(scratch / "tiny-llama"))
    load = {**SHAPE, "trace": arguments.trace, "length_field": arguments.length_field, "tokenizer": model}
    steps = engine_steps(load, model)
    cost, fit = fitted(steps)
    say(f"step cost: {cost}, {fit}")
    machines: dict[str, Any] = {
        "virtual, depth 1": lambda **s: virtual(load, cost, depth=1, **s),
        "virtual, depth 2": lambda **s: virtual(load, cost, depth=2, **s),
        "engine, CPU time": lambda **s: engine(load, model, clock="cpu", **s),
        "engine, wall clock": lambda **s: engine(load, model, clock="wall", **s),
    }
    seeds = SEEDS[: arguments.seeds]
    runs: dict[str, list[dict[str, Any]]] = {}
    capacities: dict[str, list[float]] = {name: [] for name in machines}
    # Seed by seed and policy by policy on all machines: a machine that slows down slows down for all policies.
    for seed, name in itertools.product(seeds, machines):
        run = machines[name]
        capacity = run(policy="vllm", lengths="none", rate_rps=math.inf, seed=seed)["throughput_rps"]
        capacities[name].append(capacity)
        for policy, lengths in POLICIES:
            source = f"predicted:{arguments.predictor}" if lengths == "predicted" else lengths
            begun = time.monotonic()
            row = run(policy=policy, lengths=source, rate_rps=TIMES_CAPACITY * capacity, seed=seed)
            kept = {key: row[key] for key in KEPT}
            runs.setdefault(name, []).append({"policy": f"{policy}, {lengths}", "seed": seed, **kept})
            say(
                f"seed {seed}, {name}: {policy} ({lengths}): {row['normalized_latency_mean_ms']:.1f} ms/token, "
                f"{row['preemptions']} preemptions, {time.monotonic() - begun:.0f} s"
            )
    return {
        "command": "python benchmarks/studies/agreement.py alpaca.json.gz benchmarks/results/agreement.json "
        "--length-field 'vicuna_7b_tokens[3]' --predictor CHECKPOINT",
        "trace": Path(arguments.trace).name,
        "shape": SHAPE,
        "seeds": list(seeds),
        "times_capacity": TIMES_CAPACITY,
        "capacity_rps": {name: [round(c, 2) for c in each] for name, each in capacities.items()},
        "step_cost": {**cost.model_dump(), **fit},
        **judged(runs),
        "runs": {name: [rounded(row) for row in rows] for name, rows in runs.items()},
        "versions": versions(),
        "hardware": hardware(),
    }


# -- the machines -------------------------------------------------------------------------------------------


def virtual(load: dict[str, Any], cost: LinearCost, **settings: Any) -> dict[str, Any]:
    """One run on the virtual clock."""
    return simulate(SimulateSettings(**load, cost=cost, **settings)).summary()


def engine(load: dict[str, Any], model: str, **settings: Any) -> dict[str, Any]:
    """One run on vLLM's CPU engine with the tiny model, by one thread."""
    return run_engine(EngineRunSettings(**load, model=model, threads=1, **settings)).summary()


def engine_steps(load: dict[str, Any], model: str) -> Steps:
    """Steps of the engine under vLLM's scheduler, as they come and all at once."""
    import agreement_probe

    steps: Steps = []
    for rate in (math.inf, 20.0):
        agreement_probe.begin()
        settings = {"policy": "vllm", "lengths": "none", "rate_rps": rate, "seed": FIT_SEED, "clock": "cpu"}
        probed = {"scheduler_cls": "agreement_probe.ProbedScheduler"}
        run_engine(EngineRunSettings(**load, model=model, threads=1, engine=probed, **settings))
        steps += agreement_probe.seen()
    return steps


def fitted(steps: Steps) -> tuple[LinearCost, dict[str, float]]:
    """The linear cost of those steps, no coefficient negative, and how well it fits.

    By a loss that grows only linearly far out: steps with a garbage collection are outliers.
    """
    seconds = np.array([s for _, s in steps])
    work = np.array([[1.0, w.prefill_tokens, w.decodes, w.context_tokens] for w, _ in steps])
    scale = work.max(axis=0)
    design = work / scale * np.median(seconds)
    found = least_squares(
        lambda x: design @ x - seconds, np.ones(4), bounds=(0, np.inf), loss="soft_l1", f_scale=0.1 * np.median(seconds)
    )
    coefficients = found.x * np.median(seconds) / scale
    off = np.abs(work @ coefficients - seconds) / seconds
    names = ("step_s", "prefill_token_s", "decode_s", "context_token_s")
    cost = LinearCost(**{name: float(f"{c:.4g}") for name, c in zip(names, coefficients, strict=True)})
    figures = {"steps": len(seconds), "median_step_s": np.median(seconds), "median_relative_error": np.median(off)}
    figures |= {"total_relative_error": float((work @ coefficients).sum() / seconds.sum() - 1)}
    return cost, {key: float(f"{value:.4g}") for key, value in figures.items()}


# -- what they say ------------------------------------------------------------------------------------------


def judged(runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Tables, rank agreement of every two machines, and the verdict."""
    policies = [f"{policy}, {lengths}" for policy, lengths in POLICIES]
    of = {
        (name, figure, policy): [row[figure] for row in rows if row["policy"] == policy]
        for name, rows in runs.items()
        for figure in FIGURES
        for policy in policies
    }
    tables = {
        figure: {policy: {name: _spread(of[name, figure, policy]) for name in runs} for policy in policies}
        for figure in FIGURES
    }
    agreement: list[dict[str, Any]] = []
    for figure, (a, b) in itertools.product(FIGURES, itertools.combinations(runs, 2)):
        middles = [[float(np.median(of[name, figure, policy])) for policy in policies] for name in (a, b)]
        pairs = list(itertools.combinations(policies, 2))
        signs = [(_sign(of, a, figure, p, q), _sign(of, b, figure, p, q)) for p, q in pairs]
        agreement.append(
            {
                "figure": figure,
                "machines": [a, b],
                "tau_b": round(float(kendalltau(*middles).statistic), 3),
                "pairs": len(pairs),
                "same_order": sum(x == y != 0 for x, y in signs),
                "seeds_disagree": sum(0 in xy for xy in signs),
                "opposite": [list(pq) for pq, (x, y) in zip(pairs, signs, strict=True) if x * y < 0],
            }
        )
    for entry in agreement:
        decided = 2 * entry["same_order"] > entry["pairs"]
        entry["verdict"] = "opposite" if entry["opposite"] else "agree" if decided else "too noisy to tell"
    verdict = {
        figure: "; ".join(
            f"{' / '.join(entry['machines'])}: {entry['verdict']} (tau-b {entry['tau_b']:.2f}, "
            f"{entry['same_order']} of {entry['pairs']} pairs in all seeds)"
            for entry in agreement
            if entry["figure"] == figure
        )
        for figure in FIGURES
    }
    return {"verdict": verdict, "tables_median_low_high": tables, "agreement": agreement}


def _spread(values: list[float]) -> list[float]:
    return [float(f"{v:.4g}") for v in (float(np.median(values)), min(values), max(values))]


def _sign(of: dict[tuple[str, str, str], list[float]], machine: str, figure: str, p: str, q: str) -> int:
    """1 or -1 if all seeds of a machine order two policies so; 0 if they do not agree or it is a tie."""
    signs = {int(np.sign(x - y)) for x, y in zip(of[machine, figure, p], of[machine, figure, q], strict=True)}
    return signs.pop() if len(signs) == 1 else 0


def rounded(row: dict[str, Any]) -> dict[str, Any]:
    """Floats with four significant digits."""
    return {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in row.items()}


def say(line: str) -> None:
    """Progress, on stderr."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
