"""How well laws and synthetic workloads describe real traces, in figures.

    python benchmarks/studies/workload_fit.py ../shared/data benchmarks/results/workload_fit.json

Fits every law to the response and prompt lengths of each trace, says how far off each is, and makes a workload of laws
and arrivals fitted to the trace, to compare its quantiles, correlation and clumping with the trace's. Takes two minutes
on one core.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import common
import numpy as np
from arrival_statistics import ArrivalStatistics
from scipy import stats

from ecoserve.data import Trace, load_trace
from ecoserve.data.laws import FittedLaw, Histogram, TailFit, fit_laws, fit_tails
from ecoserve.data.workloads import Workload, make_workload

SEEDS = (0, 1, 2)
QUANTILES = (0.1, 0.5, 0.9, 0.99)
#: Seconds in which arrivals are counted.
WINDOWS_S = (1.0, 10.0, 60.0)


@dataclass(frozen=True)
class Source:
    """A trace: its file, how it is loaded, and the longest lengths in it, where its makers left out longer ones."""

    name: str
    file: str
    options: dict[str, str] = field(default_factory=dict)
    longest_response: int | None = None
    longest_prompt: int | None = None


SOURCES = (
    Source("ShareGPT (Llama 2 tokens)", "traces/sharegpt_lengths_llama2.csv.gz", {}, 1024, 8192),
    Source("arXiv summaries (Llama 2 tokens)", "traces/arxiv_summarization_lengths_llama2.csv.gz", {}, 4096, 4096),
    Source("Azure 2023 conversation", "traces/azure_2023_conv.csv"),
    Source("Azure 2023 code", "traces/azure_2023_code.csv"),
    Source("Alpaca (Vicuna 7B, T = 0.7)", "alpaca.json.gz", {"length_field": "vicuna_7b_tokens[3]"}),
    Source("LMSYS (Vicuna 13B)", "traces/lmsys_vicuna13b_bert_predictions.csv.gz", {}, 511),
    Source("Mooncake synthetic", "traces/mooncake_synthetic.jsonl.gz"),
)


def rounded(value: Any) -> Any:
    """Numbers with four significant digits, however deep."""
    if isinstance(value, dict):
        return {str(key): rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.4g}") if math.isfinite(value) else None
    return value


def lengths_of(trace: Trace, side: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Lengths of one side of a trace and which were cut off; ``None`` if it does not know them."""
    rows = [(getattr(r, f"{side}_tokens"), r.censored and side == "response") for r in trace.records]
    known = [(n, cut) for n, cut in rows if n]
    if not known:
        return None
    return np.array([n for n, _ in known]), np.array([cut for _, cut in known])


def law_row(fit: FittedLaw, best: float) -> dict[str, Any]:
    """What is kept of one fit."""
    return {
        **fit.law.as_dict(),
        "aic_above_best": fit.aic - best,
        "ks": fit.ks,
        "anderson_darling": fit.anderson_darling,
        "quantiles_seen": {q.q: q.seen for q in fit.quantiles},
        "quantiles_fitted": {q.q: q.fitted for q in fit.quantiles},
    }


def tail_row(tail: TailFit) -> dict[str, Any]:
    """One tail, with its end: the longest length (tokens) that it allows, if xi is below 0."""
    return {**asdict(tail), "end": tail.threshold + 0.5 - tail.scale / tail.xi if tail.xi < 0 else None}


def fits(lengths: np.ndarray, cut: np.ndarray, longest: int | None) -> dict[str, Any]:
    """All laws, best first, unbounded and (where ``longest`` is known) conditioned on it; and the tail."""
    free = fit_laws(Histogram.of(lengths, cut))
    row: dict[str, Any] = {
        "n": len(lengths),
        "cut_off": int(cut.sum()),
        "ks_of_chance": free[0].chance_ks,
        "laws": [law_row(fit, free[0].aic) for fit in free],
        "tails": [tail_row(tail) for tail in fit_tails(Histogram.of(lengths, cut))],
    }
    if longest is not None:
        inside = lengths <= longest
        bounded = fit_laws(Histogram.of(lengths[inside], cut[inside]), longest=longest)
        row["left_out_by_longest"] = int((~inside).sum())
        row["laws_with_longest"] = [law_row(fit, bounded[0].aic) for fit in bounded]
    return row


def described(trace: Trace) -> dict[str, Any]:
    """The figures in which a trace and its workload are compared."""
    row: dict[str, Any] = {}
    for side in ("prompt", "response"):
        known = lengths_of(trace, side)
        if known is not None:
            row[f"{side}_tokens_mean"] = float(known[0].mean())
            row.update({f"{side}_tokens_p{q * 100:g}": float(np.quantile(known[0], q)) for q in QUANTILES})
    pairs = [(r.prompt_tokens, r.response_tokens) for r in trace.records if r.prompt_tokens and r.response_tokens]
    if len(set(pairs)) > 1 and len({p for p, _ in pairs}) > 1:
        row["rank_correlation"] = float(stats.spearmanr(np.array(pairs)).statistic)
    times = [r.arrival_s for r in trace.records if r.arrival_s is not None]
    if times:
        arrivals = ArrivalStatistics.of(times, WINDOWS_S).as_dict()
        row.update({key: arrivals[key] for key in arrivals if key not in ("n", "duration_s")})
    return row


def reproduced(source: Source, trace: Trace, base: Path) -> dict[str, Any]:
    """Trace and workload side by side: mean over seeds, and how far the seeds are apart."""
    named = {"trace": source.file, **source.options}
    content: dict[str, Any] = {
        "requests": len(trace),
        "prompt": {"tokens": {"fitted": {**named, "longest": source.longest_prompt}}},
        "response": {"tokens": {"fitted": {**named, "longest": source.longest_response}}},
        "correlation": {"fitted": named},
    }
    if lengths_of(trace, "prompt") is None:
        content |= {"prompt": {"tokens": 1}, "correlation": 0.0}
    limits = {r.response_tokens for r in trace.records if r.censored}
    if limits:
        content["response"]["max_tokens"] = min(n for n in limits if n)
    empirical = dict(content, response={**content["response"], "tokens": {"empirical": named}})
    if content["prompt"]["tokens"] != 1:
        empirical["prompt"] = {"tokens": {"empirical": named}}
    timed = all(r.arrival_s is not None for r in trace.records)
    seen = described(trace)
    kinds = {"fitted": content, "empirical": empirical}
    if timed:
        rate = seen["rate_rps"]
        kinds["fitted"] = {**content, "arrivals": {"process": "fitted", **named}}
        kinds["empirical"] = {**empirical, "arrivals": {"process": "gamma", "rate": rate, "cv": seen["gap_cv"]}}
        kinds["poisson"] = {**content, "arrivals": {"process": "poisson", "rate": rate}}
    rows: dict[str, Any] = {"trace": seen}
    for kind, each in kinds.items():
        runs = [
            described(trace.with_records(make_workload(workload, base=base, where="-").records))
            for workload in (Workload.model_validate({**each, "seed": seed}) for seed in SEEDS)
        ]
        rows[kind] = {key: float(np.mean([run[key] for run in runs])) for key in runs[0] if key in seen}
        rows[f"{kind}_spread"] = {key: float(np.ptp([run[key] for run in runs])) for key in runs[0] if key in seen}
    return rows


def one(source: Source, data: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Everything about one trace."""
    say(source.name)
    trace = load_trace(data / source.file, **source.options)  # type: ignore[arg-type]
    row: dict[str, Any] = {
        "trace": source.name,
        "file": source.file,
        "records": len(trace),
        "length_source": trace.length_source,
        "prompt_length_source": trace.prompt_length_source,
    }
    for side, longest in (("response", source.longest_response), ("prompt", source.longest_prompt)):
        known = lengths_of(trace, side)
        if known is not None:
            row[side] = fits(*known, longest)
    row["workload"] = reproduced(source, trace, data)
    return row


def main() -> int:
    """Run for every trace that is there; returns the exit code."""
    parser = common.arguments_of(__doc__)
    parser.add_argument("data", type=Path, help="folder with the traces")
    parser.add_argument("output", type=Path, help="JSON file to write")
    asked = parser.parse_args()
    there = [source for source in SOURCES if (asked.data / source.file).exists()]
    if not there:
        print(f"error: none of the traces is in {asked.data}", file=sys.stderr)
        return 2
    rows = [one(source, asked.data, lambda name: print(name, file=sys.stderr)) for source in there]
    result = {
        "command": f"python benchmarks/studies/workload_fit.py {asked.data} {asked.output}",
        "seeds": SEEDS,
        "traces": rows,
    }
    asked.output.parent.mkdir(parents=True, exist_ok=True)
    common.write(asked.output, rounded(result))
    print(json.dumps({"traces": len(rows), "output": str(asked.output)}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
