"""How fast does a predictor answer, and which way of running its network is the fastest that keeps its accuracy?

    python benchmarks/studies/predictor_speed.py CHECKPOINT --trace alpaca.json.gz \
        --length-field 'vicuna_7b_tokens[3]' -o OUT.json [--lightgbm CHECKPOINT] [--device cuda]

Every engine of ``predictor_engines.py`` runs in a process of its own, warm, through ``predict()`` itself: reading,
tokenizing and calibrating included. One request at a time, 20 different ones of each size: short (15 to 25 tokens),
medium (128), long (2,000 and more, of which head and tail are read). Then 500 rows in one call. Wall time and CPU time
of the whole process. On a busy machine the wall time is the neighbours', so the CPU time is the one to compare on one
thread. Accuracy: against the plain network in float32, on 500 rows of ``train`` that the checkpoint did not learn from.
With ``--work DIR``, a run that was stopped goes on with the engine that it was at.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import common
import numpy as np

from ecoserve.files import write_atomically

ROWS, DIFFERENT = 500, 20
CALLS = {"short": 100, "medium": 40, "long": 40}
#: Engines that are also measured on more threads than one.
ON_MORE_THREADS = ("torch", "the default", "ONNX Runtime float32", "OpenVINO bfloat16")
TOKENS = {"short": (15, 25), "medium": (128, 160), "long": (2000, 2400)}


def main() -> None:
    parser = common.arguments_of(__doc__)
    parser.add_argument("checkpoint")
    parser.add_argument("--trace", required=True)
    parser.add_argument("--length-field")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--lightgbm", help="checkpoint of a LightGBM predictor, measured beside")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", default="1,2", help="on a CPU: all engines on the first number, some on others")
    parser.add_argument("--engines", help="only these, separated by commas")
    parser.add_argument("--child", nargs=2, metavar=("ENGINE", "THREADS"), help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help="folder that keeps the requests and rows of a run, to go on with")
    options = parser.parse_args()
    if options.child:
        _child(options)
    else:
        _parent(options)


def _parent(options: argparse.Namespace) -> None:
    from predictor_engines import ENGINES

    device = options.device.partition(":")[0]
    jobs: list[tuple[str, int, str]] = []
    threads = [int(n) for n in options.threads.split(",")] if device == "cpu" else [1]
    skipped = {}
    for count in threads:
        for name, (_, needs, only) in ENGINES.items():
            missing = [n for n in needs if find_spec(n) is None]
            if only not in (None, device) or (options.engines and name not in options.engines.split(",")):
                continue
            if count != threads[0] and name not in ON_MORE_THREADS:
                continue
            if missing:
                skipped[name] = f"{', '.join(missing)} not installed"
            else:
                jobs.append((name, count, options.checkpoint))
    if options.lightgbm:
        jobs.append(("LightGBM", 1, options.lightgbm))
    with tempfile.TemporaryDirectory() as folder:
        work: Path = options.work or Path(folder)
        work.mkdir(parents=True, exist_ok=True)
        if not (work / "requests.json").exists():
            write_atomically(work / "requests.json", json.dumps(_requests(options)))
        rows: list[dict[str, Any]] = []
        # Those that go on first: the plain network's probabilities are what the others are compared with.
        for name, count, checkpoint in jobs:
            kept = work / f"row-{name}-{count}.json"
            if not kept.exists() and (reason := _measured(options, work, name, count, checkpoint, kept)):
                skipped[name] = reason
                continue
            rows.append(json.loads(kept.read_text()))
            print(table(rows[-1:], head=len(rows) == 1), flush=True)
            _write(options, rows, skipped)


def _measured(
    options: argparse.Namespace, work: Path, name: str, count: int, checkpoint: str, kept: Path
) -> str | None:
    """Measure in a process of its own, and keep the row; or why there is none."""
    arguments = [checkpoint, "--trace", options.trace, "--device", options.device]
    arguments += ["-o", str(kept), "--work", str(work), "--child", name, str(count)]
    sleeping = {"OMP_NUM_THREADS": str(count), "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(
        [sys.executable, __file__, *arguments],
        env={**os.environ, **sleeping},
        capture_output=True,
        text=True,
        check=False,
        timeout=2400,
    )
    if done.returncode == 0:
        return None
    reason = (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1][:160]
    print(f"{name}, {count} threads: {reason}", file=sys.stderr)
    return reason


def table(rows: list[dict[str, Any]], *, head: bool = True) -> str:
    """The rows in Markdown: CPU time, which is what can be compared on a machine that others use too."""
    lines = [
        "| engine | threads | short p50 / p99, ms | medium | long | prompts per CPU second | tau | MAE | difference |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        sizes = [f"{row[f'{s}_cpu_p50_ms']:.1f} / {row[f'{s}_cpu_p99_ms']:.1f}" for s in TOKENS]
        figures = [f"{row['prompts_per_cpu_s']:.0f}", f"{row['kendall_tau']:.4f}", f"{row['mae_tokens']:.2f}"]
        difference = row.get("largest_difference")
        figures.append("" if difference is None else f"{difference:.4f}")
        lines.append("| " + " | ".join([row["engine"], str(row["threads"]), *sizes, *figures]) + " |")
    return "\n".join(lines if head else lines[2:])


def _write(options: argparse.Namespace, rows: list[dict[str, Any]], left_out: dict[str, str]) -> None:
    """What is known so far: a run that is stopped leaves it."""
    from ecoserve.predictor.checkpoint import read
    from ecoserve.sweep.identity import hardware, versions

    config, _ = read(Path(options.checkpoint))
    stated = {
        "length-field": options.length_field and shlex.quote(options.length_field),
        "lightgbm": options.lightgbm and "LIGHTGBM_CHECKPOINT",
        "device": options.device,
        "threads": options.threads,
        "engines": options.engines and shlex.quote(options.engines),
    }
    result = {
        "command": " ".join(
            ["python benchmarks/studies/predictor_speed.py CHECKPOINT", f"--trace {Path(options.trace).name}"]
            + [f"--{name} {value}" for name, value in stated.items() if value]
        ),
        "checkpoint": {"encoder": config.hyperparameters.get("encoder"), "run": config.run, "bins": len(config.prior)},
        "hardware": hardware(),
        "versions": versions(),
        "load_average": [round(n, 1) for n in os.getloadavg()],
        "rows": rows,
        "left_out": left_out,
    }
    common.write(options.output, result)


def _requests(options: argparse.Namespace) -> dict[str, Any]:
    """Held-out rows of ``train``, and requests of each size made of their texts."""
    from ecoserve.data import load_trace
    from ecoserve.predictor import load_predictor
    from ecoserve.predictor.examples import training_parts

    predictor: Any = load_predictor(options.checkpoint)
    config = predictor.config
    trace = load_trace(options.trace, length_field=options.length_field)
    parts = training_parts(trace, seed=config.seed, held_out=config.hyperparameters.get("held_out", 0.1))
    records = parts.held_records[:ROWS]
    texts = [r.prompt or "" for r in records]
    count = [len(ids) for ids in predictor.tokenizer._tokenizer.encode_batch(texts)]
    made: dict[str, list[str]] = {}
    for size, (least, most) in TOKENS.items():
        found = [t for t, n in zip(texts, count, strict=True) if least <= n <= most]
        start = 0
        while len(found) < DIFFERENT:
            # Several prompts in a row: the texts are real, only their company is not.
            at, total = start, 0
            while total < least:
                total += count[at % len(texts)]
                at += 1
            found.append(" ".join(texts[i % len(texts)] for i in range(start, at)))
            start = at % len(texts) if size == "medium" else start + 7
        made[size] = found[:DIFFERENT]
    return {"texts": texts, "lengths": [r.response_tokens for r in records], "sizes": made}


def _child(options: argparse.Namespace) -> None:
    name, threads = options.child[0], int(options.child[1])
    import torch
    from predictor_engines import ENGINES

    from ecoserve.predictor import load_predictor
    from ecoserve.predictor.evaluation import score

    torch.set_num_threads(threads)
    predictor: Any = load_predictor(options.checkpoint)
    started = time.process_time()
    if name in ENGINES:
        predictor.to(options.device)
        # With gradients nowhere, as predict() itself has it.
        with torch.inference_mode(False):
            network = ENGINES[name][0](predictor, threads)
        predictor._network = lambda: network
    asked = json.loads((options.work / "requests.json").read_text())
    texts: list[str] = asked["texts"]
    predictor.predict(texts[:64])
    row: dict[str, Any] = {"engine": name, "threads": threads, "device": options.device}
    row["ready_cpu_s"] = round(time.process_time() - started, 1)
    for size, requests in asked["sizes"].items():
        for request in requests:
            predictor.predict([request])
        wall, cpu = [], []
        for i in range(CALLS[size]):
            w, c = time.perf_counter(), time.process_time()
            predictor.predict([requests[i % len(requests)]])
            wall.append(time.perf_counter() - w)
            cpu.append(time.process_time() - c)
        for kind, taken in (("wall", wall), ("cpu", cpu)):
            p50, p99 = np.percentile(taken, [50, 99])
            row |= {f"{size}_{kind}_p50_ms": round(1e3 * p50, 2), f"{size}_{kind}_p99_ms": round(1e3 * p99, 2)}
    w, c = time.perf_counter(), time.process_time()
    predicted = predictor.predict(texts)
    row["prompts_per_s"] = round(len(texts) / (time.perf_counter() - w), 1)
    row["prompts_per_cpu_s"] = round(len(texts) / (time.process_time() - c), 1)
    probabilities = np.asarray([d.probs for d in predicted])
    if name in ENGINES:
        reference = options.work / "plain.npy"
        if name == "torch" and not reference.exists():
            np.save(reference, probabilities)
        if reference.exists():
            row["largest_difference"] = round(float(np.abs(probabilities - np.load(reference)).max()), 6)
    figures = score(predicted, asked["lengths"])
    row |= {key: round(figures[key], 4) for key in ("kendall_tau", "mae_tokens")}
    common.write(options.output, row)


if __name__ == "__main__":
    main()
