"""How near the modelled GPU comes to what a real vLLM did.

    python scripts/fidelity.py ../shared/data/vllm_logs/* --json benchmarks/results/fidelity.json
    python scripts/fidelity.py LOG --calibrate

Each folder is a run of vLLM (layout: scripts/fidelity_logs.py). Its requests, with their arrivals, prompts and response
lengths, are given to vLLM's own scheduler, with the engine's settings, on the modelled GPU that the folder names; then
measured and modelled figures are put side by side. ``--calibrate`` fits the gap a request (gpu/host.py) to one log and
prints it.
A model without a built-in shape: ``--model-config FOLDER`` with its config.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from fidelity_logs import VllmLog, read_log

from ecoserve.errors import EcoServeError
from ecoserve.files import write_atomically
from ecoserve.serving.runs import RequestRow
from ecoserve.serving.simulate.cost import StepWork
from ecoserve.serving.simulate.engine import EngineShape, make_request, make_scheduler, quiet_vllm
from ecoserve.serving.simulate.gpu import GpuModel, HostTimes, Link, gpu_model, load_shape
from ecoserve.serving.simulate.gpu.expert_parallel import ExpertParallel
from ecoserve.serving.simulate.gpu.kernels import kernels_version
from ecoserve.serving.simulate.loop import Arrival, run_replicas
from ecoserve.serving.simulate.replica import Replica, Step

#: What the best published simulator's means are off by, on such logs, in percent.
TARGETS: Final = {"tpot": 1.0, "e2el": 2.0, "ttft": 4.0}
BLOCK_SIZE: Final = 16
#: The scheduler is made with a small model of its own, whose longest sequence this is.
LONGEST: Final = 131072


@dataclass(slots=True)
class Watcher:
    """Keeps what each step did: a recorder of the simulation."""

    steps: list[tuple[int, float, float, StepWork, int, int]] = field(default_factory=list)

    def arrived(self, replica: int, row: RequestRow) -> None:
        """Nothing to keep."""

    def stepped(self, replica: int, scheduler: Any, step: Step) -> None:
        """Replica, when the step was scheduled, when it ended, its work, and who runs and waits."""
        running, waiting = scheduler.get_request_counts()
        self.steps.append((replica, step.began_s, step.end_s, step.work, running, waiting))

    def ended(self, replica: int, row: RequestRow, at_s: float) -> None:
        """Nothing to keep."""


def model_of(log: VllmLog, config: str | None, gpu: str | None, host: HostTimes | None) -> GpuModel:
    """The modelled machine that a log names."""
    shape = load_shape(config or log.model)
    found = gpu or log.hardware
    model = gpu_model(found, shape, log.tp, host=host, expert_ranks=log.expert_ranks)
    # The stated link is that of cards without NVLink.
    link = Link(*log.link) if log.link is not None and model.gpu.pcie and log.tp * log.expert_ranks > 1 else None
    if link is None:
        return model
    return gpu_model(found, shape, log.tp, host=host, link=link, expert_ranks=log.expert_ranks)


def depth_of(log: VllmLog) -> int:
    """Steps in flight: vLLM schedules asynchronously since 0.14 unless told otherwise."""
    asked = log.engine.get("async_scheduling")
    if asked is None:
        major, minor = (int(p) for p in log.vllm.split(".")[:2])
        asked = (major, minor) >= (0, 14)
    return 2 if asked else 1


def simulate(log: VllmLog, model: GpuModel) -> tuple[list[RequestRow], Watcher]:
    """Run a log's requests on the modelled machine."""
    quiet_vllm()
    from ecoserve.serving.adapter.counting import CountingScheduler

    engine = log.engine
    seqs, batched = int(engine.get("max_num_seqs") or 256), int(engine.get("max_num_batched_tokens") or 2048)
    caching = engine.get("enable_prefix_caching", True) is not False
    depth = depth_of(log)
    shape = EngineShape(
        kv_blocks=model.kvc_blocks(BLOCK_SIZE, seqs, batched, log.memory_share),
        block_size=BLOCK_SIZE,
        max_num_seqs=seqs,
        max_num_batched_tokens=batched,
        max_model_len=min(LONGEST, engine.get("max_model_len") or model.shape.max_model_len),
        prefix_caching=caching,
        runner=depth,
    )
    arrivals = [
        Arrival(
            at_s=r.arrival_s,
            request=make_request(
                f"r{i}", r.prompt, r.output_tokens, r.arrival_s, block_size=BLOCK_SIZE if caching else None
            ),
            response_tokens=r.output_tokens,
        )
        for i, r in enumerate(log.requests)
    ]
    replicas = [
        Replica(make_scheduler(CountingScheduler, shape), _Cost(model), depth, index=i) for i in range(log.expert_ranks)
    ]
    watcher = Watcher()
    if log.expert_ranks > 1:
        return ExpertParallel(replicas, model, depth, watcher).run(arrivals), watcher
    return run_replicas(replicas, arrivals, recorder=watcher).rows, watcher


class _Cost:
    """A model as a step cost."""

    def __init__(self, model: GpuModel) -> None:
        self.seconds, self.host_s, self.launch_s = model.step_s, model.host_s, model.launch_s


def compare(log: VllmLog, model: GpuModel, rows: Sequence[RequestRow], watcher: Watcher) -> dict[str, Any]:
    """Measured against modelled: figures, and the series of running and waiting requests."""
    measured: dict[str, list[float]] = {"ttft": [], "tpot": [], "e2el": []}
    modelled: dict[str, list[float]] = {"ttft": [], "tpot": [], "e2el": []}
    for real, row in zip(log.requests, rows, strict=True):
        if row.first_token_s is None or row.finish_s is None:
            raise EcoServeError("did not end in the simulation", where=row.request_id)
        pairs = ((measured, real.first_token_s, real.last_token_s), (modelled, row.first_token_s, row.finish_s))
        for figures, first, last in pairs:
            figures["ttft"].append(first - real.arrival_s)
            figures["e2el"].append(last - real.arrival_s)
            if real.output_tokens > 1:
                figures["tpot"].append((last - first) / (real.output_tokens - 1))
    figures_: dict[str, Any] = {}
    for name in measured:
        figures_[name] = {}
        for label, f in _STATISTICS.items():
            a, b = f(measured[name]), f(modelled[name])
            figures_[name][label] = {
                "measured_ms": round(a * 1e3, 3),
                "modelled_ms": round(b * 1e3, 3),
                "error_percent": round(100 * (b / a - 1), 2),
            }
    series = [(at, *_state(watcher, at)) for at, _, _ in log.ticks]
    return {
        "log": log.name,
        "model": log.model,
        "gpu": model.gpu.name,
        "tp": log.tp,
        "expert_ranks": log.expert_ranks,
        "vllm": log.vllm,
        "depth": depth_of(log),
        "requests": len(log.requests),
        "steps": len({(began, end) for _, began, end, *_ in watcher.steps}),
        "duration_s": {
            "measured": round(max(r.last_token_s for r in log.requests), 3),
            "modelled": round(max(r.finish_s or 0 for r in rows), 3),
        },
        "kv_blocks": model.kvc_blocks(
            BLOCK_SIZE,
            int(log.engine.get("max_num_seqs") or 256),
            int(log.engine.get("max_num_batched_tokens") or 2048),
            log.memory_share,
        ),
        **figures_,
        "running": _series_figures([r for _, r, _ in log.ticks], [r for _, r, _ in series]),
        "waiting": _series_figures([w for _, _, w in log.ticks], [w for _, _, w in series]),
        "within_targets": {
            name: abs(figures_[name]["mean"]["error_percent"]) <= bound for name, bound in TARGETS.items()
        },
        "plot": {
            "t_s": [round(t, 3) for t, _, _ in log.ticks],
            "running_measured": [r for _, r, _ in log.ticks],
            "running_modelled": [r for _, r, _ in series],
            "waiting_measured": [w for _, _, w in log.ticks],
            "waiting_modelled": [w for _, _, w in series],
        },
    }


_STATISTICS: Final = {
    "mean": lambda v: float(np.mean(v)),
    "p50": lambda v: float(np.percentile(v, 50)),
    "p90": lambda v: float(np.percentile(v, 90)),
    "p99": lambda v: float(np.percentile(v, 99)),
}


def _state(watcher: Watcher, at: float) -> tuple[int, int]:
    """Requests running and waiting at a time, over all replicas; nobody once the last step has ended."""
    last: dict[int, tuple[float, int, int]] = {}
    for replica, began, end, _, running, waiting in watcher.steps:
        if began > at:
            break
        last[replica] = (end, running, waiting)
    return (
        sum(r for end, r, _ in last.values() if end + 1.0 > at),
        sum(w for end, _, w in last.values() if end + 1.0 > at),
    )


def _series_figures(measured: list[int], modelled: list[int]) -> dict[str, float | None]:
    a, b = np.asarray(measured, float), np.asarray(modelled, float)
    varies = a.std() > 0 and b.std() > 0
    return {
        "correlation": round(float(np.corrcoef(a, b)[0, 1]), 4) if varies else None,
        "mean_abs_difference": round(float(np.abs(a - b).mean()), 2),
        "mean_measured": round(float(a.mean()), 2),
        "mean_modelled": round(float(b.mean()), 2),
    }


def calibrate(log: VllmLog, config: str | None, gpu: str | None, rounds: int = 4) -> float:
    """The gap a request that makes requests' times from first to last token right, in the least squares sense.

    Every step between a request's first and last token adds ``gap_request_s`` for each request of its batch. The steps
    are those of the simulation with the constant of the round before.
    """
    found = 0.0
    for _ in range(rounds):
        host = HostTimes(gap_request_s=found)
        rows, watcher = simulate(log, model_of(log, config, gpu, host))
        ends = np.asarray(sorted({step[2] for step in watcher.steps}))
        requests = np.zeros(len(ends))
        for _, _, end, work, *_ in watcher.steps:
            # Of replicas in lockstep the one with the longer gap decides.
            at = int(np.searchsorted(ends, end))
            requests[at] = max(requests[at], work.requests)
        passed = np.concatenate([[0.0], np.cumsum(requests)])
        batch, missing = [], []
        for real, row in zip(log.requests, rows, strict=True):
            if real.output_tokens < 20 or row.first_token_s is None or row.finish_s is None:
                continue
            first, last = np.searchsorted(ends, (row.first_token_s - 1e-9, row.finish_s - 1e-9))
            tokens = real.output_tokens - 1
            batch.append((passed[last + 1] - passed[first + 1]) / tokens)
            span = (real.last_token_s - real.first_token_s) - (row.finish_s - row.first_token_s)
            missing.append(span / tokens)
        x, y = np.asarray(batch), np.asarray(missing)
        found = max(0.0, found + float(x @ y / (x @ x)))
        print(f"{log.name}: gap_request_s {found * 1e6:.2f} us", flush=True)
    return found


def table(result: dict[str, Any]) -> str:
    """A result as lines of text."""
    lines = [f"{result['log']}: {result['model']} on {result['gpu']}, tp {result['tp']}, vLLM {result['vllm']}"]
    for name in TARGETS:
        for label, f in result[name].items():
            measured, modelled = f["measured_ms"], f["modelled_ms"]
            lines.append(
                f"  {name:5} {label:5} {measured:11.2f} ms measured {modelled:11.2f} modelled"
                f" {f['error_percent']:+7.2f} %"
            )
    for name in ("running", "waiting"):
        f = result[name]
        lines.append(f"  {name} correlation {f['correlation']} mean |difference| {f['mean_abs_difference']}")
    return "\n".join(lines)


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("logs", nargs="+", type=Path)
    parser.add_argument(
        "--model-config", help="folder with a config.json, or built-in name, instead of the log's model"
    )
    parser.add_argument("--gpu", help="GPU instead of the log's")
    parser.add_argument("--host", help="JSON with other constants than the calibrated ones")
    parser.add_argument("--calibrate", action="store_true", help="fit the gap a request to each log and print it")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    args = parser.parse_args()
    try:
        host = HostTimes.model_validate_json(args.host) if args.host else None
        results = []
        for folder in args.logs:
            log = read_log(folder)
            if args.calibrate:
                calibrate(log, args.model_config, args.gpu)
                continue
            model = model_of(log, args.model_config, args.gpu, host)
            result = compare(log, model, *simulate(log, model))
            print(table(result), flush=True)
            results.append(result)
        if args.json and results:
            report = {
                "command": "python scripts/fidelity.py LOGS --json FILE",
                "kernels": f"aiconfigurator-core {kernels_version()}",
                "host": (host or HostTimes()).model_dump(),
                "targets_percent": TARGETS,
                "logs": results,
            }
            write_atomically(args.json, json.dumps(report, indent=1) + "\n")
    except EcoServeError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
