"""Condense a result folder's summary.json to what documents quote: mean, lowest and highest over the seeds.

    python benchmarks/studies/condense_results.py results/demo benchmarks/results/demo_alpaca.json --command "make demo"

A large sweep stays small with ``--figures KEY,KEY,...``, which names the keys of a run that are kept. Writes one small
JSON: the command, versions and machine, predictor figures, and a row for every setting.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import common

KEYS = ("engine", "condition", "rate_rps", "policy", "lengths")
FIGURES = (
    "normalized_latency_mean_ms",
    "normalized_latency_p99_ms",
    "e2el_mean_ms",
    "e2el_p99_ms",
    "ttft_mean_ms",
    "tpot_p99_ms",
    "throughput_rps",
    "goodput_rps",
    "slo_attainment",
    "prediction_kendall_tau",
    "prediction_mae_tokens",
    "output_tokens_per_s",
    "slo_attainment",
    "goodput_rps",
    "preemptions",
    "recomputed_tokens",
    "pauses",
    "kv_used_mean",
    "kv_demand_peak",
    "steps",
)


def condense(summary: dict[str, Any], command: str, figures: Sequence[str] = FIGURES) -> dict[str, Any]:
    """Rows of ``summary`` with equal :data:`KEYS` (and knobs) become one, seed by seed folded away."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    checkpoints = {str(run["lengths"]) for run in summary["runs"] if str(run["lengths"]).startswith("predicted:")}
    for run in summary["runs"]:
        lengths = str(run["lengths"])
        if lengths in checkpoints:
            lengths = f"predicted:{Path(lengths).name}" if len(checkpoints) > 1 else "predicted"
        knobs = tuple((k, str(v)) for k, v in run.items() if k.startswith("knob_"))
        groups[(run.get("engine"), run.get("condition"), run["rate_rps"], run["policy"], lengths, knobs)].append(run)
    rows = []
    for key, runs in groups.items():
        row: dict[str, Any] = {
            **dict(zip(KEYS, key[:-1], strict=True)),
            **dict(key[-1]),
            "seeds": len(runs),
            "requests": runs[0]["requests"],
        }
        for name in figures:
            values = [r[name] for r in runs if r.get(name) is not None]
            if values:
                spread = (sum(values) / len(values), min(values), max(values))
                row[name] = dict(zip(("mean", "min", "max"), (round(v, 4) for v in spread), strict=True))
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
    parser = common.arguments_of(__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--command", required=True, help="the command that made the folder")
    parser.add_argument("--figures", default=",".join(FIGURES), help="keys of a run that are kept, with commas")
    given = parser.parse_args()
    summary = json.loads((given.folder / "summary.json").read_text())
    condensed = condense(summary, given.command, given.figures.split(","))
    if condensed["trace"]:
        condensed["trace"]["source"] = Path(condensed["trace"]["source"]).name
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(written(condensed))


if __name__ == "__main__":
    main()
