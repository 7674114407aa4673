"""One file about the default predictor, from its checkpoints of several seeds.

    python benchmarks/studies/default_predictor.py alpaca.json.gz OUT.json default-seed0 default-seed1 ...

For each checkpoint: what its own training measured on ``dev`` and on held-out rows, how long training took, and the
time of one request at a time, by the wall clock and in CPU time of this process (an ensemble's members are asked at
the same time, so its CPU time may be more than its wall time on one thread). Then the mean over seeds and the
lowest and highest. ``--evaluate`` measures ``dev`` anew, with the evaluation of today. ``--together`` adds what the
mean of all their distributions says: an ensemble, which takes as many times as long as there are checkpoints.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch

from ecoserve.data import load_trace, split_trace
from ecoserve.lengths import LengthDistribution
from ecoserve.predictor import LengthPredictor, evaluate_predictor, load_predictor
from ecoserve.predictor.evaluation import score

FIELD = "vicuna_7b_tokens"
REQUESTS = 300
ORIGIN = ("served_model", "trace_name", "rows_trained")


def times(predictor: LengthPredictor, prompts: list[str]) -> dict[str, float]:
    """Milliseconds of one request at a time, on torch's threads."""
    wall, cpu = [], []
    for prompt in (*prompts[:20], *prompts):
        started = time.perf_counter(), time.process_time()
        predictor.predict([prompt])
        wall.append(1000 * (time.perf_counter() - started[0]))
        cpu.append(1000 * (time.process_time() - started[1]))
    measured = {"wall": wall[20:], "cpu": cpu[20:]}
    return {f"{k}_p{q}_ms": round(float(np.percentile(v, q)), 2) for k, v in measured.items() for q in (50, 99)}


def one(folder: Path, trace: Any, evaluate: bool) -> dict[str, Any]:
    predictor = load_predictor(folder)
    config = predictor.config
    dev = split_trace(trace)["dev"].records
    figures = evaluate_predictor(predictor, dev) if evaluate else config.metrics["dev"]
    prompts = [r.prompt or "" for r in dev][:: max(1, len(dev) // REQUESTS)][:REQUESTS]
    short = sorted(prompts, key=len)[: len(prompts) // 2]
    return {
        "seed": config.seed,
        "backend": config.backend,
        "rows_trained": config.rows_trained,
        "rows_held_out": config.rows_held_out,
        "training_wall_s": config.training_seconds,
        "hyperparameters": config.hyperparameters,
        "encoder_weight": config.model.get("encoder_weight"),
        "members": config.model.get("members", []),
        "weights": config.model.get("weights", []),
        "trained_in": config.model.get("trained_in"),
        "started_from": {k: config.model.get("started_from", {}).get(k) for k in ORIGIN},
        "dev": {k: round(v, 5) for k, v in figures.items()},
        "held_out": {k: round(v, 5) for k, v in config.metrics["held_out"].items()},
        "one_request": {"all": times(predictor, prompts), "shorter_half": times(predictor, short)},
    }


def together(folders: list[Path], trace: Any) -> dict[str, float]:
    """The mean of several predictors' CDFs at the first one's edges, evaluated on ``dev``."""
    dev = [r for r in split_trace(trace)["dev"].records if r.prompt and r.response_tokens]
    prompts = [r.prompt or "" for r in dev]
    first = load_predictor(folders[0]).config
    at = np.asarray(first.edges, dtype=np.float64)
    total = np.zeros((len(dev), len(at)))
    for folder in folders:
        for row, said in enumerate(load_predictor(folder).predict(prompts)):
            cdf = np.concatenate([[0.0], np.cumsum(said.probs)])
            total[row] += np.interp(at, said.edges, cdf / cdf[-1])
    total[:, -1] = len(folders)
    mixed = [LengthDistribution.from_weights(first.edges, np.diff(row), first.closed_by) for row in total]
    return {k: round(v, 5) for k, v in score(mixed, [r.response_tokens or 0 for r in dev]).items()}


def main() -> None:
    parser = common.arguments_of(__doc__)
    parser.add_argument("trace", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("checkpoints", type=Path, nargs="+")
    parser.add_argument("--evaluate", action="store_true", help="measure dev anew")
    parser.add_argument("--together", action="store_true", help="measure the mean of them all too")
    parser.add_argument("--commands", type=Path, help="text file with the commands that made the checkpoints")
    parser.add_argument("--threads", type=int, default=1, help="torch's threads while requests are timed")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    trace = load_trace(arguments.trace, length_field=f"{FIELD}[3]", sample_field=FIELD)
    runs = [one(folder, trace, arguments.evaluate) for folder in arguments.checkpoints]
    keys = [k for k in runs[0]["dev"] if k != "rows" and not k.startswith("latency")]
    over = {k: [r["dev"][k] for r in runs] for k in keys}
    result = {
        "commands": arguments.commands.read_text(encoding="utf-8").splitlines() if arguments.commands else [],
        "machine": f"{os.cpu_count()} CPU cores, no GPU, shared with other work: wall-clock times are upper bounds",
        "threads": arguments.threads,
        "mean": {k: round(float(np.mean(v)), 5) for k, v in over.items()},
        "lowest": {k: min(v) for k, v in over.items()},
        "highest": {k: max(v) for k, v in over.items()},
        "seeds": runs,
    }
    if arguments.together:
        result["together"] = together(arguments.checkpoints, trace)
    common.write(arguments.output, result)


if __name__ == "__main__":
    main()
