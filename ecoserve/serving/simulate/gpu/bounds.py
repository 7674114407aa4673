"""What no GPU can beat: the time in which its memory and its matrix units could do a step at their peaks.

A step must read the weights that its tokens need and the KV that its attention looks at, and must do their matrix
work. Whichever takes longer at the published peak is a bound on the step, whatever the kernels are.
"""

from __future__ import annotations

from ecoserve.serving.simulate.cost import StepWork
from ecoserve.serving.simulate.gpu.hardware import Gpu
from ecoserve.serving.simulate.gpu.shapes import ModelShape


def memory_s(shape: ModelShape, gpu: Gpu, tp: int, work: StepWork) -> float:
    """Seconds to read weights and KV at the peak bandwidth of ``tp`` GPUs.

    Of experts only as many as one token needs are counted, since all tokens might need the same.
    """
    kv = work.decode_context_tokens + sum(new + context for new, context in work.chunks)
    size = shape.touched_bytes(shape.experts_per_token) + kv * shape.kv_token_bytes
    return size / (tp * gpu.bandwidth)


def compute_s(shape: ModelShape, gpu: Gpu, tp: int, work: StepWork) -> float:
    """Seconds to do the matrix work at the peak of ``tp`` GPUs; attention in 16 bits, the rest as the weights."""
    tokens = work.prefill_tokens + work.decodes
    dense = tokens * shape.token_flops()
    samples = work.decodes + len(work.chunks)
    wide = 2.0 * samples * shape.embedding_parameters
    wide += 4.0 * shape.layers * shape.heads * shape.head_dim * work.decode_context_tokens
    wide += sum(shape.attention_flops(new, context) for new, context in work.chunks)
    peak = gpu.flops_fp8 if shape.weights == "fp8" else gpu.flops
    return (dense / peak + wide / gpu.flops) / tp


def least_step_s(shape: ModelShape, gpu: Gpu, tp: int, work: StepWork) -> float:
    """Seconds that a step takes at the very least."""
    return max(memory_s(shape, gpu, tp, work), compute_s(shape, gpu, tp, work))
