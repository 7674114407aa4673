"""Condense a result folder's summary.json to what documents quote: mean, lowest and highest over the seeds.

    python scripts/condense_results.py results/demo benchmarks/results/demo_alpaca.json --command "make demo"

Writes one small JSON: the command, versions and machine, predictor figures, and a row for every setting.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

KEYS = ("engine", "condition", "rate_rps", "policy", "lengths")
FIGURES = (
    "normalized_latency_mean_ms",
    "normalized_latency_p99_ms",
    "e2el_mean_ms",
    "e2el_p99_ms",
    "ttft_mean_ms",
    "tpot_p99_ms",
    "throughput_rps",
    "output_tokens_per_s",
    "slo_attainment",
    "goodput_rps",
    "preemptions",
    "recomputed_tokens",
    "pauses",
    "kvc_used_mean",
    "kvc_demand_peak",
    "steps",
)


def condense(summary: dict[str, Any], command: str) -> dict[str, Any]:
    """Rows of ``summary`` with equal :data:`KEYS` become one, seed by seed folded away."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    checkpoints = {str(run["lengths"]) for run in summary["runs"] if str(run["lengths"]).startswith("predicted:")}
    for run in summary["runs"]:
        lengths = str(run["lengths"])
        if lengths in checkpoints:
            lengths = f"predicted:{Path(lengths).name}" if len(checkpoints) > 1 else "predicted"
        groups[(run.get("engine"), run.get("condition"), run["rate_rps"], run["policy"], lengths)].append(run)
    rows = []
    for key, runs in groups.items():
        row: dict[str, Any] = {**dict(zip(KEYS, key, strict=True)), "seeds": len(runs), "requests": runs[0]["requests"]}
        for name in FIGURES:
            values = [r[name] for r in runs if r.get(name) is not None]
            if values:
                figures = (sum(values) / len(values), min(values), max(values))
                row[name] = dict(zip(("mean", "min", "max"), (round(v, 4) for v in figures), strict=True))
        rows.append(row)
    meta = summary["meta"]
    return {
        "command": command,
        "versions": meta["versions"],
        "hardware": meta["hardware"],
        "trace": meta.get("trace"),
        "synthetic": meta.get("synthetic", False),
        "predictor": summary.get("predictor", {}),
        "rows": rows,
    }


def written(condensed: dict[str, Any]) -> str:
    """JSON with one line a row: small, and a changed figure is one changed line."""
    head = json.dumps({k: v for k, v in condensed.items() if k != "rows"}, indent=1)[:-2]
    rows = ",\n  ".join(json.dumps(row) for row in condensed["rows"])
    return f'{head},\n "rows": [\n  {rows}\n ]\n}}\n'


def main() -> None:
    """Read the folder, write the file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--command", required=True, help="the command that made the folder")
    given = parser.parse_args()
    condensed = condense(json.loads((given.folder / "summary.json").read_text()), given.command)
    if condensed["trace"]:
        condensed["trace"]["source"] = Path(condensed["trace"]["source"]).name
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(written(condensed))


if __name__ == "__main__":
    main()
