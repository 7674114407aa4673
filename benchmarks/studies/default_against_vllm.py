"""The default against vLLM's default and vLLM at its best with the same predictions, on loads of different kinds.

    python benchmarks/studies/default_against_vllm.py benchmarks/results/default_against_vllm.json \\
        --data DATA --predictor CHECKPOINT [--loads alpaca,sharegpt] [--seeds 3] [--requests 600]

Modelled GPUs, virtual time, two steps in flight. vLLM at its best: priority = the predicted length, and the best of
several ``max_num_batched_tokens``, chosen load by load by the share in SLO. ecoserve has one setting for all loads.
Runs that are in the file already are not run again. ``DATA`` holds the traces, CHECKPOINT predicts Alpaca's lengths.
"""

from __future__ import annotations

import shlex
import statistics
from pathlib import Path
from typing import Any, Final

import common
import numpy as np

ALPACA: Final = {
    "trace": "alpaca.json.gz",
    "length_field": "vicuna_7b_tokens[3]",
    "gpu": "l40s",
    "model": "llama-13b",
    "max_tokens": 512,
    "max_model_len": 1024,
}
_H100: Final = {"gpu": "h100_sxm", "model": "llama-3.1-8b", "max_tokens": 1024, "max_model_len": 8192}
#: Answers with their thinking, of 42 models; half of the blocks that vLLM would take for 200 requests.
_THINKING: Final = {
    **_H100,
    "trace": "thinking_lengths.jsonl.gz",
    "max_tokens": 16384,
    "max_model_len": 20480,
    "rate_rps": 40.0,
    "split": None,
}
#: Loads; rates at which vLLM's default meets a half to nine tenths of its SLOs.
LOADS: Final[dict[str, dict[str, Any]]] = {
    "alpaca": {**ALPACA, "rate_rps": 40.0, "lengths": "predicted"},
    "alpaca 64 seats": {**ALPACA, "rate_rps": 20.0, "lengths": "predicted", "max_num_seqs": 64},
    "sharegpt": {
        "trace": "traces/sharegpt_lengths_llama2.csv.gz",
        "gpu": "a100_sxm",
        "model": "llama-13b",
        "max_tokens": 2048,
        "max_model_len": 4096,
        "rate_rps": 3.5,
    },
    "azure conversations": {**_H100, "trace": "traces/azure_2023_conv.csv", "rate_rps": 24.0},
    "azure code": {**_H100, "trace": "traces/azure_2023_code.csv", "rate_rps": 16.0},
    "arxiv": {**_H100, "trace": "traces/arxiv_summarization_lengths_llama2.csv.gz", "rate_rps": 14.0},
    "mooncake": {
        **_H100,
        "trace": "traces/mooncake_synthetic.jsonl.gz",
        "max_tokens": 2048,
        "max_model_len": 131072,
        "rate_rps": 2.0,
        "prefix_caching": True,
    },
    "heavy tail": {
        **_H100,
        "trace": str(common.ROOT / "workloads" / "heavy_tail.yaml"),
        "max_tokens": 4000,
        "rate_rps": 45.0,
        "blocks": 3000,
        "split": "all",
    },
    "thinking": {**_THINKING, "blocks": 2000},
    "thinking and windows": {**_THINKING, "blocks": 9800, "kv_groups": "full + 5 window 1024"},
    # Closed loops: turn n + 1 comes a think time after answer n, with the prefix that they share.
    "coding agents": {
        **_H100,
        "trace": "traces/coding_agent_sessions.jsonl.gz",
        "max_tokens": 4096,
        "max_model_len": 32768,
        "rate_rps": 20.0,
        "split": None,
        "prefix_caching": True,
    },
}
#: Forwards among which vLLM's best is chosen, tokens.
FORWARDS: Final = (512, 1024, 2048)
#: Rows: policy, further settings, and the source of lengths if it is not the load's.
ROWS: Final[dict[str, dict[str, Any]]] = {
    "vllm": {"policy": "vllm", "lengths": "none"},
    **{f"vllm priority {n}": {"policy": "vllm-priority", "max_num_batched_tokens": n} for n in FORWARDS},
    "order": {"policy": "order"},
    "ecoserve": {"policy": "ecoserve"},
    "ecoserve, no lengths": {"policy": "ecoserve", "lengths": "none"},
    "ecoserve, true lengths": {"policy": "ecoserve", "lengths": "true"},
    "bound": {"policy": "bound", "lengths": "none"},
}
FIGURES: Final = {
    "in_slo": 3,
    "normalized_ms": 1,
    "normalized_p99_ms": 0,
    "e2el_s": 2,
    "e2el_p99_s": 1,
    "ttft_s": 2,
    "tpot_p99_ms": 1,
    "tokens_per_s": 0,
    "preemptions": 0,
}


def run(load: str, row: str, seed: int, requests: int, data: Path, predictor: Path, **changed: Any) -> dict[str, float]:
    """One run's figures; ``changed``: settings in place of the load's."""
    from ecoserve.serving.simulate.run import SimulateSettings, simulate

    settings = ROWS.get(row) or {"policy": "ecoserve", "lengths": row.removeprefix("ecoserve, ")}
    chosen = {"lengths": "tau:0.6", **LOADS[load], **settings, "seed": seed, "requests": requests, **changed}
    if chosen["lengths"] == "predicted":
        chosen["lengths"] = f"predicted:{predictor}"
    chosen["trace"] = str(data / chosen["trace"])
    result = simulate(SimulateSettings(**chosen, depth=2, slo_scale=5.0))
    done = [r for r in result.rows if r.finish_s is not None]
    e2el = np.array([r.e2el_s for r in done])
    normalized = np.array([r.normalized_latency_s for r in done])
    span = max(r.finish_s or 0.0 for r in done) - min(r.arrival_s for r in done)
    summary = result.summary()
    figures = {
        "in_slo": float(summary["slo_attainment"] or 0.0),
        "normalized_ms": 1e3 * float(normalized.mean()),
        "normalized_p99_ms": 1e3 * float(np.percentile(normalized, 99)),
        "e2el_s": float(e2el.mean()),
        "e2el_p99_s": float(np.percentile(e2el, 99)),
        "ttft_s": float(np.mean([r.ttft_s or 0.0 for r in done])),
        "tpot_p99_ms": 1e3 * float(np.percentile([r.tpot_s or 0.0 for r in done], 99)),
        "tokens_per_s": sum(r.output_tokens for r in done) / span,
        "preemptions": float(summary["preemptions"]),
    }
    return {name: round(figures[name], digits) for name, digits in FIGURES.items()}


def tables(runs: list[dict[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
    """Load -> row -> figure: mean over the seeds, and the range of the share in SLO; vLLM's best among its rows."""
    out: dict[str, dict[str, dict[str, Any]]] = {}
    for load in dict.fromkeys(r["load"] for r in runs):
        rows: dict[str, dict[str, Any]] = {}
        for row in dict.fromkeys([*ROWS, *(r["row"] for r in runs)]):
            found = [r["figures"] for r in runs if (r["load"], r["row"]) == (load, row)]
            if not found:
                continue
            rows[row] = {n: round(statistics.fmean(f[n] for f in found), d) for n, d in FIGURES.items()}
            rows[row]["in_slo_range"] = [min(f["in_slo"] for f in found), max(f["in_slo"] for f in found)]
            rows[row]["runs"] = len(found)
        stock = [row for row in rows if row.startswith("vllm priority")]
        if stock:
            best = max(stock, key=lambda row: (rows[row]["in_slo"], -rows[row]["normalized_ms"]))
            rows["vllm at its best"] = {"row": best, **rows[best]}
        if "bound" in rows:
            for figures in rows.values():
                figures["times_the_bound"] = round(figures["normalized_ms"] / rows["bound"]["normalized_ms"], 2)
        out[load] = rows
    return out


#: Rows of the table in docs/results/results.md.
SHOWN: Final = ("vllm", "vllm at its best", "ecoserve", "ecoserve, no lengths")
HEAD: Final = (
    *("load", "", "in SLO", "ms/token", "latency, s", "p99", "TTFT, s", "TPOT p99, ms", "tokens/s", "preemptions"),
)


def table(content: dict[str, Any]) -> str:
    lines = []
    for load, rows in content["tables"].items():
        for name in (n for n in SHOWN if n in rows):
            f = rows[name]
            low, high = f["in_slo_range"]
            best = f" ({f['row'].split()[-1]})" if name == "vllm at its best" else ""
            share = f"{100 * f['in_slo']:.1f} % [{100 * low:.0f}, {100 * high:.0f}]"
            figures = [
                f"{f['normalized_ms']:.0f}",
                f"{f['e2el_s']:.2f}",
                f"{f['e2el_p99_s']:.1f}",
                f"{f['ttft_s']:.2f}",
            ]
            figures += [f"{f['tpot_p99_ms']:.0f}", f"{f['tokens_per_s']:,.0f}", f"{f['preemptions']:.0f}"]
            lines.append(
                [f"{load}, {LOADS[load]['rate_rps']:g}/s" if name == "vllm" else "", name + best, share, *figures]
            )
    return common.markdown(HEAD, lines)


def main() -> int:
    parser = common.arguments_of(__doc__)
    parser.add_argument("--page", type=Path, help="document whose table is made anew from OUTPUT; nothing is run")
    parser.add_argument("output", type=Path, help="JSON file to write")
    parser.add_argument("--data", type=Path, help="folder of the traces")
    parser.add_argument("--predictor", type=Path, help="checkpoint for Alpaca's lengths")
    parser.add_argument("--loads", help="names of loads, separated by commas")
    parser.add_argument("--rows", help="names of rows, or 'ecoserve, LENGTHS', separated by semicolons")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=600)
    given = parser.parse_args()
    if given.page:
        content = common.read(given.output)
        common.renew(given.page, "default_against_vllm", {given.output.stem: lambda: table(content)})
        return 0
    if given.data is None or given.predictor is None:
        parser.error("--data and --predictor are needed for runs")
    runs = list(common.read(given.output).get("runs", []))
    known = {(r["load"], r["row"], r["seed"], r["requests"]) for r in runs}
    words = ["benchmarks/results/" + given.output.name, "--data", "DATA", "--predictor", "CHECKPOINT"]
    words += ["--seeds", given.seeds, "--requests", given.requests]
    for name in ("loads", "rows"):
        if chosen := getattr(given, name):
            words += [f"--{name}", shlex.quote(chosen)]
    for seed in range(given.seeds):
        for load in given.loads.split(",") if given.loads else LOADS:
            for row in given.rows.split(";") if given.rows else ROWS:
                if (load, row, seed, given.requests) in known:
                    continue
                figures = run(load, row, seed, given.requests, given.data, given.predictor)
                print(load, row, seed, figures, flush=True)
                runs.append({"load": load, "row": row, "seed": seed, "requests": given.requests, "figures": figures})
                content = {
                    "command": common.command("default_against_vllm", *words),
                    "tables": tables(runs),
                    "runs": runs,
                }
                common.write(given.output, content)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
