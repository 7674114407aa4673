"""How near the modelled GPU comes to what a real vLLM did.

    python benchmarks/studies/fidelity.py ../shared/data/vllm_logs/* --json benchmarks/results/fidelity.json
    python benchmarks/studies/fidelity.py LOG --calibrate

Each folder is a run of vLLM (layout: fidelity_logs.py). Its requests, with their arrivals, prompts and response
lengths, are given to vLLM's own scheduler, with the engine's settings, on the modelled GPU that the folder names; then
measured and modelled figures are put side by side. ``--calibrate`` fits the gap a request (gpu/host.py) to each log and
prints it; ``--host '{"gap_request_s": 1e-6}'`` uses another than ours.
A model without a built-in shape: ``--model FOLDER`` with its config.json.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import common
import numpy as np
from fidelity_logs import VllmLog, read_log
from fidelity_runs import Other, Watcher, calibrate, engine_of, model_of, simulate
from pydantic import ValidationError

from ecoserve.errors import ConfigError, EcoServeError
from ecoserve.serving.runs import RequestRow
from ecoserve.serving.simulate.gpu.kernels import kernels_version
from ecoserve.serving.simulate.gpu.model import GpuModel, HostTimes

#: What the best published simulator's means are off by, on such logs, in percent.
TARGETS: Final = {"tpot": 1.0, "e2el": 2.0, "ttft": 4.0}


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
    result = {
        "log": log.name,
        "model": model.shape.name,
        "gpu": model.gpu.name,
        "tp": log.settings.tp,
        "expert_ranks": log.settings.expert_ranks,
        "link": None if model.link is None else {"latency_s": model.link.latency_s, "bandwidth": model.link.bandwidth},
        "vllm": log.settings.vllm,
        "depth": log.settings.depth,
        "kv_blocks": engine_of(log, model).kv_blocks,
        "notes": [*log.notes, *log.settings.notes],
        "requests": len(log.requests),
        "steps": len({(began, end) for _, began, end, *_ in watcher.steps}),
        "duration_s": {
            "measured": round(max(r.last_token_s for r in log.requests), 3),
            "modelled": round(max(r.finish_s or 0 for r in rows), 3),
        },
        "within_targets": {
            name: abs(figures_[name]["mean"]["error_percent"]) <= bound for name, bound in TARGETS.items()
        },
        **figures_,
    }
    if not log.ticks:
        return result
    times, running, waiting = (list(column) for column in zip(*log.ticks, strict=True))
    ours = [_state(watcher, at) for at in times]
    our_running, our_waiting = [r for r, _ in ours], [w for _, w in ours]
    return result | {
        "running": _series_figures(running, our_running),
        "waiting": _series_figures(waiting, our_waiting),
        "series": {
            "t_s": [round(t, 1) for t in times],
            "running_measured": running,
            "running_modelled": our_running,
            "waiting_measured": waiting,
            "waiting_modelled": our_waiting,
        },
    }


_STATISTICS: Final = {
    "mean": lambda v: float(np.mean(v)),
    "p50": lambda v: float(np.percentile(v, 50)),
    "p90": lambda v: float(np.percentile(v, 90)),
    "p99": lambda v: float(np.percentile(v, 99)),
}


def _state(watcher: Watcher, at: float) -> tuple[int, int]:
    """Requests running and waiting at a time, over all replicas; none once the last step has ended."""
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


def table(result: dict[str, Any]) -> str:
    """A result as lines of text."""
    lines = [f"{result['log']}: {result['model']} on {result['gpu']}, tp {result['tp']}, vLLM {result['vllm']}"]
    lines += [f"  note: {note}" for note in result["notes"]]
    for name in TARGETS:
        for label, f in result[name].items():
            measured, modelled = f["measured_ms"], f["modelled_ms"]
            lines.append(
                f"  {name:5} {label:5} {measured:11.2f} ms measured {modelled:11.2f} modelled"
                f" {f['error_percent']:+7.2f} %"
            )
    for name in ("running", "waiting"):
        if name not in result:
            continue
        f = result[name]
        lines.append(f"  {name} correlation {f['correlation']} mean |difference| {f['mean_abs_difference']}")
    missed = [name for name, within in result["within_targets"].items() if not within]
    lines.append(f"  mean of {', '.join(missed)} off by more than the target" if missed else "  means within targets")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Run from the command line."""
    parser = common.arguments_of(__doc__)
    parser.add_argument("logs", nargs="+", type=Path)
    parser.add_argument("--model", help="folder with a config.json, or built-in name, instead of the log's model")
    parser.add_argument("--gpu", help="GPU instead of the log's")
    parser.add_argument("--host", help="JSON with other constants around the kernels than ours (gpu/host.py)")
    parser.add_argument("--calibrate", action="store_true", help="fit the gap a request to each log and print it")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    args = parser.parse_args(argv)
    try:
        other = Other(args.model, args.gpu, _host(args.host))
        logs = [read_log(folder) for folder in args.logs]
        if args.calibrate:
            for log in logs:
                calibrate(log, other)
            return 0
        results = []
        for log in logs:
            model = model_of(log, other)
            result = compare(log, model, *simulate(log, model))
            print(table(result), flush=True)
            results.append(result)
        if args.json:
            report = {
                "command": "python benchmarks/studies/fidelity.py LOGS --json FILE",
                "kernels": f"aiconfigurator-core {kernels_version()}",
                "host": (other.host or HostTimes()).model_dump(),
                "targets_percent": TARGETS,
                "logs": results,
            }
            common.write(args.json, report)
    except EcoServeError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _host(text: str | None) -> HostTimes | None:
    if text is None:
        return None
    try:
        return HostTimes.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(p) for p in first["loc"]) or "JSON"
        raise ConfigError(f"{where}: {first['msg']}", where="--host") from None


if __name__ == "__main__":
    sys.exit(main())
