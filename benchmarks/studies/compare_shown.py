"""Does `report --compare` call noise "no difference" and an effect a difference? Twenty trials of each.

    python benchmarks/studies/compare_shown.py benchmarks/results/compare.json

Two policies in virtual time under pressure, five seeds each (and the same with three). In every trial both folders get
noise of their own: the times of every run are multiplied by a log-normal factor of 0.5 %, and those of every request by
another. In half of the trials the second folder's times are besides 5 % longer. Then `ecoserve report --compare` itself
says what has become of the normalized latency, over all settings and in each.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import math
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from short_json import dumps
from typer.testing import CliRunner

from ecoserve.cli.main import build_app
from ecoserve.serving.runs import RunResult
from ecoserve.sweep.environment import hardware, versions
from ecoserve.sweep.identity import PlannedRun
from ecoserve.sweep.results import ResultFolder
from ecoserve.sweep.summary import Meta
from ecoserve.sweep.worker import perform

NOISE, EFFECT, TRIALS = 0.005, 1.05, 20
SEEDS = (5, 3)
METRIC = "normalized_latency_mean_ms"
LOAD: dict[str, Any] = {
    "trace": "synthetic:500", "rate_rps": 20.0, "requests": 100, "blocks": 250, "depth": 2,
    "max_tokens": 512, "max_model_len": 2048,
}  # fmt: skip
POLICIES = (("vllm", "none"), ("ecoserve", "noise:0.5"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    runs = [
        PlannedRun.of({**LOAD, "policy": policy, "lengths": lengths, "seed": seed}, {"engine": "virtual"})
        for policy, lengths in POLICIES
        for seed in range(max(SEEDS))
    ]
    results = []
    for run in runs:
        outcome = perform("ecoserve.serving.simulate.run:simulate", run.settings)
        assert outcome.result is not None, outcome.error
        results.append((run, outcome.result))
    verdicts: dict[str, Any] = {}
    for seeds in SEEDS:
        for effect in (1.0, EFFECT):
            name = f"{seeds} seeds, {'noise alone' if effect == 1.0 else 'noise and 5 %'}"
            verdicts[name] = trials(results, seeds, effect)
            print(name, dumps(verdicts[name]["over all settings"]), file=sys.stderr)
    result = {
        "command": "python benchmarks/studies/compare_shown.py benchmarks/results/compare.json",
        "metric": METRIC,
        "noise": NOISE,
        "effect": EFFECT - 1,
        "trials": TRIALS,
        "verdicts": verdicts,
        "versions": versions(),
        "hardware": hardware(),
    }
    arguments.output.write_text(dumps(result) + "\n", encoding="utf-8")
    print(dumps(verdicts))


def trials(results: list[tuple[PlannedRun, RunResult]], seeds: int, effect: float) -> dict[str, Any]:
    """Verdicts of all trials, counted, and the widest interval."""
    overall: Counter[str] = Counter()
    single: Counter[str] = Counter()
    widest = 0.0
    for trial in range(TRIALS):
        with tempfile.TemporaryDirectory() as folder:
            a, b = Path(folder) / "a", Path(folder) / "b"
            write(a, results, seeds, 1.0, np.random.default_rng([trial, 0]))
            write(b, results, seeds, effect, np.random.default_rng([trial, 1]))
            said = CliRunner().invoke(
                build_app("report"), ["report", "--compare", str(a), str(b), "--quiet", "--json", "-"]
            )
            assert said.exit_code == 0, said.output
            comparison = json.loads(said.stdout)
        found = next(d for d in comparison["overall"] if d["metric"] == METRIC)
        overall[found["verdict"]] += 1
        widest = max(widest, found["high"] - found["low"])
        for setting in comparison["settings"]:
            single[next(d["verdict"] for d in setting["metrics"] if d["metric"] == METRIC)] += 1
    return {
        "over all settings": dict(overall),
        "setting by setting": dict(single),
        "widest interval": round(widest, 5),
    }


def write(
    path: Path, results: list[tuple[PlannedRun, RunResult]], seeds: int, effect: float, rng: np.random.Generator
) -> None:
    """A result folder of these runs, their times disturbed."""
    folder = ResultFolder.create(path, Meta(title="compare"))
    for run, result in results:
        if int(run.settings["seed"]) < seeds:
            folder.add(run, disturbed(result, effect * math.exp(rng.normal(0.0, NOISE)), rng))


def disturbed(result: RunResult, factor: float, rng: np.random.Generator) -> RunResult:
    """The run with every request's times, from its arrival, multiplied."""
    rows = copy.deepcopy(result.rows)
    for row, own in zip(rows, np.exp(rng.normal(0.0, NOISE, len(rows))).tolist(), strict=True):
        for name in ("first_token_s", "finish_s"):
            value = getattr(row, name)
            if value is not None:
                setattr(row, name, row.arrival_s + factor * own * (value - row.arrival_s))
    return dataclasses.replace(result, rows=rows)


if __name__ == "__main__":
    main()
