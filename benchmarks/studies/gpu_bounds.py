"""Modelled GPUs beside what no GPU can beat.

    python benchmarks/studies/gpu_bounds.py --json benchmarks/results/gpu_bounds.json

For each of the machines below (model x GPU x tensor parallelism): KV beside the memory that the weights leave, and
steps (decodes of several batch sizes and contexts, pieces of prompts, both together) beside the time in which memory
and matrix units could do them at their published peaks. ``lifted`` is the share of kernel times that were measured
below that bound, from a cache that a model would not find them in, and are lifted to it (``gpu/tables.py``). Exit code
1 if a number beats physics. ``--only NAME`` takes machines whose text (``llama-3.1-8b h100_sxm tp1``) holds NAME.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Final

import common

from ecoserve.errors import EcoServeError
from ecoserve.serving.simulate.cost import StepWork
from ecoserve.serving.simulate.gpu.hardware import Gpu, find_gpu
from ecoserve.serving.simulate.gpu.kernels import kernels_version
from ecoserve.serving.simulate.gpu.model import GpuModel, HostTimes
from ecoserve.serving.simulate.gpu.shapes import ModelShape, load_shape
from ecoserve.serving.simulate.gpu.tables import Floors, lifted, make_tables

#: model, GPU, tensor parallelism.
MACHINES: Final = [
    ("llama-13b", "a100_sxm", 1),
    ("llama-33b", "a100_sxm", 2),
    ("llama-33b", "a100_sxm", 4),
    ("llama-3.1-8b", "a100_sxm", 1),
    ("llama-3.1-70b", "a100_sxm", 4),
    ("qwen3-30b-a3b", "a100_sxm", 1),
    ("llama-3.1-8b", "h100_sxm", 1),
    ("llama-3.1-8b", "h100_sxm", 4),
    ("llama-3.1-70b", "h100_sxm", 4),
    ("llama-3.1-70b", "h100_sxm", 8),
    ("qwen3-32b", "h100_sxm", 2),
    ("mixtral-8x7b", "h100_sxm", 2),
    ("llama-3.1-8b", "h200_sxm", 1),
    ("llama-3.1-70b", "h200_sxm", 2),
    ("qwen3-30b-a3b", "h200_sxm", 1),
    ("mixtral-8x22b", "h200_sxm", 8),
    ("llama-3.1-8b", "l40s", 1),
    ("llama-13b", "l40s", 2),
    ("qwen3-14b", "l40s", 2),
    ("qwen3-30b-a3b", "l40s", 2),
    ("llama-3.1-8b", "rtx_pro_6000_server", 1),
    ("qwen3-32b", "rtx_pro_6000_server", 1),
    ("qwen3-32b", "rtx_pro_6000_server", 2),
    ("qwen3-30b-a3b", "rtx_pro_6000_server", 1),
    ("llama-3.1-70b", "rtx_pro_6000_server", 4),
    ("qwen2.5-0.5b", "rtx_pro_6000_server", 1),
    ("llama-3.1-8b", "b200_sxm", 1),
    ("llama-3.1-70b", "b200_sxm", 1),
    ("qwen3-32b", "b200_sxm", 1),
    ("qwen3-235b-a22b", "b200_sxm", 4),
    ("llama-3.1-8b", "b300_sxm", 1),
    ("llama-3.1-70b", "gb200", 2),
    ("qwen3-32b", "gb300", 1),
    ("llama-3.1-8b", "a100_pcie", 1),
    ("llama-3.1-8b", "a30", 2),
    ("llama-13b", "h100_pcie", 2),
    ("llama-3.1-8b", "l4", 2),
    ("llama-3.1-8b", "rtx_4090", 1),
    ("qwen3-14b", "rtx_4090", 4),
    ("llama-3.1-70b", "rtx_pro_6000_workstation", 4),
]
#: How vLLM is set up where KV is counted.
BLOCK_SIZE, MAX_SEQS, MAX_BATCHED, MEMORY_SHARE = 16, 256, 2048, 0.9
_GIB: Final = 1 << 30


def memory_s(shape: ModelShape, gpu: Gpu, tp: int, work: StepWork) -> float:
    """Seconds to read weights and KV at the peak bandwidth of ``tp`` GPUs.

    All weights but the embedding table; of experts only as many as one token needs, since all tokens might need the
    same.
    """
    feed_forward = shape.expert_parameters * (shape.experts_per_token or 1)
    layer = (shape.attention_parameters + feed_forward) * (1.0 if shape.weights == "fp8" else 2.0)
    weights = shape.layers * (layer + 2 * shape.experts * shape.hidden) + 2 * shape.embedding_parameters
    kv = work.decode_context_tokens + sum(new + context for new, context in work.chunks)
    return (weights + kv * shape.kv_token_bytes) / (tp * gpu.bandwidth)


def compute_s(shape: ModelShape, gpu: Gpu, tp: int, work: StepWork) -> float:
    """Seconds to do the matrix work at the peak of ``tp`` GPUs; attention in 16 bits, the rest as the weights."""
    feed_forward = shape.expert_parameters * (shape.experts_per_token or 1)
    token = 2 * shape.layers * (shape.attention_parameters + feed_forward + shape.experts * shape.hidden)
    dense = (work.prefill_tokens + work.decodes) * token
    wide = 2.0 * (work.decodes + len(work.chunks)) * shape.embedding_parameters
    # Attention to the tokens before, and of new tokens to each other (causal); a multiply-add is two operations.
    pairs = work.decode_context_tokens + sum(new * (context + (new + 1) / 2) for new, context in work.chunks)
    wide += 4.0 * shape.layers * shape.heads * shape.head_dim * pairs
    peak = gpu.flops_fp8 if shape.weights == "fp8" else gpu.flops
    return (dense / peak + wide / gpu.flops) / tp


def least_step_s(shape: ModelShape, gpu: Gpu, tp: int, work: StepWork) -> float:
    """Seconds that a step takes at the very least, whatever the kernels are."""
    return max(memory_s(shape, gpu, tp, work), compute_s(shape, gpu, tp, work))


def decodes(requests: int, context: int) -> StepWork:
    """A batch of decodes with equal contexts."""
    total = requests * context
    return StepWork(0, requests, total, [], total, context)


def prompt(new: int, context: int = 0) -> StepWork:
    """A piece of a prompt."""
    return StepWork(new, 0, new + context, [(new, context)])


def mixed(new: int, requests: int, context: int) -> StepWork:
    """A prompt beside decodes."""
    return StepWork(new, requests, new + requests * context, [(new, 0)], requests * context, context)


#: The steps by name; those that would not fit a machine's KV are left out there.
STEPS: Final = {
    "1 decode at 1,000": decodes(1, 1000),
    "1 decode at 32,000": decodes(1, 32000),
    "8 decodes at 1,000": decodes(8, 1000),
    "64 decodes at 200": decodes(64, 200),
    "64 decodes at 4,000": decodes(64, 4000),
    "256 decodes at 1,000": decodes(256, 1000),
    "prompt of 16": prompt(16),
    "prompt of 512": prompt(512),
    "prompt of 2,048": prompt(2048),
    "prompt of 8,192": prompt(8192),
    "512 new after 16,000": prompt(512, 16000),
    "1,900 new beside 128 decodes at 1,000": mixed(1900, 128, 1000),
}


def check(name: str, gpu_name: str, tp: int) -> dict[str, Any]:
    """One machine: its KV and its steps, beside their bounds."""
    shape, gpu = load_shape(name), find_gpu(gpu_name)
    tables, shares = lifted(make_tables(shape, gpu, tp), Floors(shape, gpu, tp))
    # The gap between steps is no kernel's: without it the comparison is stricter.
    model = GpuModel(shape, gpu, tp, tables, host=HostTimes(gap_s=0, gap_request_s=0))
    kv = _kv(shape, gpu, tp, model)
    steps = {
        label: _step(shape, gpu, tp, model, work)
        for label, work in STEPS.items()
        if work.context_tokens <= kv["tokens"]
    }
    return {
        "machine": f"{shape.name} {gpu.name} tp{tp}",
        "kv": kv,
        "lifted": {k: round(v, 5) for k, v in shares.items() if v},
        "steps": steps,
        "beats_physics": [label for label, s in steps.items() if s["times_bound"] < 1.0]
        + (["kv"] if kv["gib"] > kv["left_gib"] else []),
    }


def _kv(shape: ModelShape, gpu: Gpu, tp: int, model: GpuModel) -> dict[str, Any]:
    blocks = model.kv_blocks(BLOCK_SIZE, MAX_SEQS, MAX_BATCHED, MEMORY_SHARE)
    # What all GPUs have, less one copy of the weights: whatever a step and CUDA need comes off it too.
    left = tp * gpu.memory_bytes * MEMORY_SHARE - shape.weight_bytes
    return {
        "blocks": blocks,
        "tokens": blocks * BLOCK_SIZE,
        "gib": round(blocks * BLOCK_SIZE * shape.kv_token_bytes / _GIB, 2),
        "weights_gib": round(shape.weight_bytes / _GIB, 2),
        "left_gib": round(left / _GIB, 2),
    }


def _step(shape: ModelShape, gpu: Gpu, tp: int, model: GpuModel, work: StepWork) -> dict[str, float]:
    modelled, least = model.seconds(work), least_step_s(shape, gpu, tp, work)
    return {
        "modelled_ms": round(modelled * 1e3, 3),
        "memory_ms": round(memory_s(shape, gpu, tp, work) * 1e3, 3),
        "compute_ms": round(compute_s(shape, gpu, tp, work) * 1e3, 3),
        # Rounded down, so that nothing just below the bound passes.
        "times_bound": int(modelled / least * 1000) / 1000,
    }


def table(result: dict[str, Any]) -> str:
    """A machine as lines of text."""
    kv = result["kv"]
    lines = [
        f"{result['machine']}: KV {kv['gib']} GiB ({kv['tokens']:,} tokens) of {kv['left_gib']} GiB "
        f"beside {kv['weights_gib']} GiB of weights"
        + "".join(f"; {share:.2%} of {name} lifted" for name, share in result["lifted"].items())
    ]
    for label, s in result["steps"].items():
        lines.append(
            f"  {label:38} {s['modelled_ms']:9.2f} ms   memory {s['memory_ms']:8.2f}   compute {s['compute_ms']:8.2f}"
            f"   x {s['times_bound']:.2f}"
        )
    lines += [f"  BEATS PHYSICS: {label}" for label in result["beats_physics"]]
    return "\n".join(lines)


def summary(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Over all machines: how near the bound steps come."""
    ratios = sorted((s["times_bound"], r["machine"], label) for r in results for label, s in r["steps"].items())
    return {
        "machines": len(results),
        "steps": len(ratios),
        "beat_physics": sum(len(r["beats_physics"]) for r in results),
        "nearest": {"machine": ratios[0][1], "step": ratios[0][2], "times_bound": ratios[0][0]},
        "median_times_bound": ratios[len(ratios) // 2][0],
    }


def main(argv: list[str] | None = None) -> int:
    """Run from the command line."""
    parser = common.arguments_of(__doc__)
    parser.add_argument("--only", default="", help="machines whose text holds this")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    args = parser.parse_args(argv)
    results = []
    try:
        for name, gpu, tp in MACHINES:
            if args.only in f"{name} {gpu} tp{tp}":
                results.append(check(name, gpu, tp))
                print(table(results[-1]), flush=True)
    except EcoServeError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    if not results:
        print(f"error: no machine's text holds {args.only!r}", file=sys.stderr)
        return 2
    found = summary(results)
    print(json.dumps(found))
    if args.json:
        report = {
            "command": "python benchmarks/studies/gpu_bounds.py --json FILE",
            "kernels": f"aiconfigurator-core {kernels_version()}",
            "summary": found,
            "machines": results,
        }
        common.write(args.json, report)
    return 1 if found["beat_physics"] else 0


if __name__ == "__main__":
    sys.exit(main())
