"""Layouts of KV under pressure: vLLM, and our scheduler's ways to admit, on the same load:

    python benchmarks/studies/kv_layouts.py benchmarks/results/kv_layouts.json --data DATA [--seeds 2] [--requests 400]

A modelled L40S with llama-13b's step times serves Alpaca's prompts at 40 requests a second, in virtual time; lengths
are predicted with tau 0.6. Every layout has the KV cache in which vLLM's demand has the same ratio to what there is as
with full attention alone, so that pressure is equal and only the layout differs. ``by_vllm``: victims that vLLM had to
choose itself. DATA holds the traces.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from default_against_vllm import ALPACA

LOAD: Final[dict[str, Any]] = {
    **ALPACA,
    "rate_rps": 40.0,
    "lengths": "tau:0.6",
    "depth": 2,
    "slo_scale": 5.0,
}
LAYOUTS: Final = {
    "full attention": "full",
    "full + sliding window": "full + 5 window 128",
    "full + states (Mamba, linear)": "full + 3 state",
}
ROWS: Final[dict[str, dict[str, Any]]] = {
    "vllm": {"policy": "vllm"},
    "ecoserve (ranked)": {"policy": "ecoserve"},
    "pooled": {"policy": "ecoserve", "scheduler": {"kv_policy": "pooled"}},
    "on-demand": {"policy": "ecoserve", "scheduler": {"kv_policy": "on-demand"}},
}


def blocks_of(data: Path, groups: str, requests: int) -> int:
    """Usable blocks that a layout gets."""
    from ecoserve.serving.simulate.run import demand_peak_blocks
    from ecoserve.serving.simulate.settings import SimulateSettings, machine_of

    def settings(groups: str) -> Any:
        return SimulateSettings(
            **{**LOAD, "trace": str(data / LOAD["trace"]), "requests": requests, "kv_groups": groups}
        )

    full = settings("full")
    share = machine_of(full).blocks / demand_peak_blocks(full)
    return round(share * demand_peak_blocks(settings(groups)))


def run(data: Path, groups: str, blocks: int, row: dict[str, Any], seed: int, requests: int) -> dict[str, float]:
    """Figures of one run."""
    from ecoserve.serving.simulate import run as simulation
    from ecoserve.serving.simulate.settings import SimulateSettings

    schedulers: list[Any] = []
    make = simulation.make_scheduler

    def kept(*args: Any, **more: Any) -> Any:
        schedulers.append(make(*args, **more))
        return schedulers[-1]

    chosen = {**LOAD, **row, "trace": str(data / LOAD["trace"]), "kv_groups": groups, "blocks": blocks}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(simulation, "make_scheduler", kept)
        result = simulation.simulate(SimulateSettings(**chosen, seed=seed, requests=requests))
    done = [r for r in result.rows if r.finish_s is not None]
    counters = schedulers[0].counters
    return {
        "in_slo": float(result.summary()["slo_attainment"] or 0.0),
        "normalized_ms": 1e3 * float(np.mean([r.normalized_latency_s for r in done])),
        "e2el_s": float(np.mean([r.e2el_s for r in done])),
        "tokens_per_s": sum(r.output_tokens for r in done) / max(r.finish_s or 0.0 for r in done),
        "preemptions": counters.preemptions,
        "by_vllm": counters.preemptions - counters.shortage_preemptions,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--requests", type=int, default=400)
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for layout, groups in LAYOUTS.items():
        blocks = blocks_of(options.data, groups, options.requests)
        for name, row in ROWS.items():
            runs = [run(options.data, groups, blocks, row, seed, options.requests) for seed in range(options.seeds)]
            mean = {key: round(float(np.mean([r[key] for r in runs])), 3) for key in runs[0]}
            rows.append({"layout": layout, "kv_groups": groups, "blocks": blocks, "row": name, **mean})
            print(rows[-1], flush=True)
            result = {"load": LOAD, "seeds": options.seeds, "requests": options.requests, "rows": rows}
            options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
