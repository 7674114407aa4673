"""Routing rules between replicas in virtual time: 8 and 64 replicas, three loads, views of several ages.

    python benchmarks/studies/routing.py DATA [RESULT.json]

DATA: a folder with ``traces/azure_2023_conv.csv``, ``traces/coding_agent_sessions.jsonl.gz`` and
``thinking_lengths.jsonl.gz``. Replicas are vLLM's own scheduler on a modelled H100 with Llama 3.1 8B: routing is
all that differs. Runs that the result file has already are not run again. CPU times of decisions are the process's own.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from common import RESULTS, arguments_of, command, read, write

from ecoserve.data import load_trace
from ecoserve.lengths import LengthDistribution
from ecoserve.serving.routing import HORIZONS, ROUTERS, Offer, Report, Router
from ecoserve.serving.simulate import run as runs
from ecoserve.serving.simulate.run import SimulateSettings, simulate

#: Sources of lengths of the rule that uses them.
LENGTHS: Final = ("none", "tau:0.6", "true")
KEPT: Final = (
    "requests", "completed", "ttft_p50_ms", "ttft_p99_ms", "e2el_mean_ms", "e2el_p50_ms", "e2el_p99_ms",
    "slo_attainment", "prefix_hits", "preemptions", "kv_used_mean", "duration_s", "output_tokens_per_s",
)  # fmt: skip
ENGINE: Final = {
    "gpu": "h100_sxm", "model": "llama-3.1-8b", "depth": 2, "prefix_caching": True, "split": None,
}  # fmt: skip


@dataclass(frozen=True)
class Load:
    """A load of one replica; of N replicas it has N times the requests and the rate."""

    trace: str
    requests: int
    settings: dict[str, Any]
    rate_rps: float | None = None
    #: recorded arrivals are this many times as fast for one replica
    faster: float = 0.0


LOADS: Final = {
    "azure": Load("traces/azure_2023_conv.csv", 300, {"max_tokens": 1000, "max_model_len": 16384}, faster=6.0),
    "thinking": Load(
        "thinking_lengths.jsonl.gz", 120, {"max_tokens": 12000, "max_model_len": 16384, "blocks": 2000}, 2.75
    ),
    "agents": Load("traces/coding_agent_sessions.jsonl.gz", 125, {"max_tokens": 8000, "max_model_len": 72000}, 6.0),
}
#: SLO of each load: seconds to the first token, ms a token after it.
SLOS: Final = {"azure": (1000.0, 50.0), "thinking": (1000.0, 30.0), "agents": (3000.0, 50.0)}


def planned() -> Iterator[dict[str, Any]]:
    """The runs."""
    work = [("least-work", kind) for kind in LENGTHS]
    rules = {
        "azure": [("least-requests", "none"), ("vllm-dp", "none"), *work, ("power-of-two", "none")],
        "agents": [("least-requests", "none"), ("prefix-affinity", "none"), *work[:2], ("vllm-dp", "none")],
        "thinking": [("least-requests", "none"), *work, ("vllm-dp", "none"), ("round-robin", "none")],
    }
    common = {"replicas": 8, "stale_ms": 100.0, "policy": "vllm", "seed": 0}
    for load, several in rules.items():
        for router, lengths in several:
            yield {**common, "load": load, "router": router, "lengths": lengths}
    for seed in (1, 2):
        for router, lengths in (("least-requests", "none"), *work[:2]):
            yield {**common, "load": "thinking", "router": router, "lengths": lengths, "seed": seed}
    # Our scheduler in the replicas: what it holds back counts as waiting.
    for router, lengths in (("vllm-dp", "none"), ("least-requests", "none"), work[0]):
        yield {**common, "load": "thinking", "router": router, "lengths": lengths, "policy": "ecoserve"}
    for router, lengths in (work[1], ("vllm-dp", "none")):
        for stale_ms in (50.0, 200.0, 1000.0):
            yield {**common, "load": "azure", "router": router, "lengths": lengths, "stale_ms": stale_ms}
    for router, lengths in (work[1], ("vllm-dp", "none"), ("least-work-of-two", "tau:0.6")):
        yield {**common, "load": "azure", "router": router, "lengths": lengths, "replicas": 64}


def run(data: Path, folder: Path, at: dict[str, Any]) -> dict[str, Any]:
    load, n = LOADS[at["load"]], at["replicas"]
    requests = load.requests * n // (4 if n > 8 else 1)
    trace = str(data / load.trace)
    if load.faster:
        trace = str(_faster(data / load.trace, folder, load.faster * n))
    ttft_ms, tpot_ms = SLOS[at["load"]]
    settings = SimulateSettings(
        **ENGINE, **load.settings, trace=trace, policy=at["policy"], seed=at["seed"], requests=requests,
        rate_rps=load.rate_rps and load.rate_rps * n, time_unit="s" if load.faster else None,
        replicas=n, router=at["router"], router_stale_ms=at["stale_ms"], lengths=at["lengths"],
        slo_ttft_ms=ttft_ms, slo_tpot_ms=tpot_ms,
    )  # fmt: skip
    began = time.process_time()
    summary = simulate(settings).summary()
    return {**at, **{k: _short(summary[k]) for k in KEPT}, "cpu_s": round(time.process_time() - began)}


def _faster(source: Path, folder: Path, factor: float) -> Path:
    """Recorded arrivals ``factor`` times as fast: their bursts stay."""
    file = folder / f"{factor:g}.csv"
    if not file.exists():
        rows = load_trace(str(source)).records
        first = rows[0].arrival_s or 0.0
        lines = [f"{((r.arrival_s or 0.0) - first) / factor:.6f},{r.prompt_tokens},{r.response_tokens}" for r in rows]
        file.write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *lines]) + "\n")
    return file


def _short(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) else value


def decision_cost() -> list[dict[str, Any]]:
    """CPU time of one decision and of noting it, ms, for prompts of 60,000 tokens of which much is known."""
    lengths = LengthDistribution.lognormal(300, 1.0, 8000)
    rows = []
    for name in ROUTERS:
        for n in (8, 64, 512):
            router = Router[int](name, range(n))
            took = []
            for i in range(400):
                if i % 8 == 0:
                    for replica in range(n):
                        router.report(replica, Report(float(i), work=(1000.0 * (replica % 7),) * len(HORIZONS)))
                offer = Offer(str(i), 60_000, lengths, tuple((i % 100, k) for k in range(234)))
                began = time.thread_time_ns()
                router.sent(offer, router.choose(offer), float(i))
                took.append((time.thread_time_ns() - began) / 1e6)
            rows.append(
                {"router": name, "replicas": n} | {f"p{q}_ms": _short(np.percentile(took, q)) for q in (50, 99)}
            )
    return rows


def main() -> None:
    parser = arguments_of(__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("result", type=Path, nargs="?", default=RESULTS / "routing.json")
    parser.add_argument("--only", metavar="LOAD", help="runs of this load only")
    given = parser.parse_args()
    # The peak demand of a load with no waiting is another run, which this study does not need.
    runs.demand_peak_blocks = lambda settings: 0  # type: ignore[assignment]
    result: dict[str, Any] = {
        "command": command("routing", "DATA", f"benchmarks/results/{given.result.name}"), "decision": [], "runs": [],
    } | read(given.result)  # fmt: skip
    result["decision"] = decision_cost()
    with tempfile.TemporaryDirectory() as folder:
        for at in planned():
            if given.only in (None, at["load"]) and not any(at.items() <= row.items() for row in result["runs"]):
                result["runs"].append(run(given.data, Path(folder), at))
                write(given.result, result)
                print(result["runs"][-1], flush=True)


if __name__ == "__main__":
    main()
