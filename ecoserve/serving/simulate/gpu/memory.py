"""KV capacity: the GPU's memory, less weights, less what a step needs while it runs.

Mirrors how vLLM sizes its cache: it runs the largest batch that the settings allow, looks at the peak, adds what CUDA
and the collectives hold, captures its graphs, and gives the rest of ``gpu_memory_utilization`` to KV blocks. The
constants are estimates, good to about one GiB a GPU; vLLM logs the real number when it starts.
"""

from __future__ import annotations

from ecoserve.errors import ConfigError
from ecoserve.serving.simulate.gpu.hardware import Gpu
from ecoserve.serving.simulate.gpu.shapes import ModelShape

_GIB = 1 << 30
#: Of the memory that the driver reports, what a process sees.
_VISIBLE = 0.99
#: CUDA's context and libraries; with several GPUs the collectives' buffers too.
_CONTEXT_BYTES = int(0.6 * _GIB)
_COLLECTIVE_BYTES = int(0.4 * _GIB)
#: Captured graphs keep their buffers: a base, and one more for every so many decoding requests.
_GRAPH_BYTES = int(0.3 * _GIB)
_GRAPH_REQUEST_BYTES = int(2.5 * (1 << 20))


def gpu_weight_bytes(shape: ModelShape, tp: int, expert_ranks: int = 1) -> float:
    """Weights on one GPU; small ones that every GPU of a replica keeps are left out."""
    experts = shape.layers * shape.experts * shape.expert_parameters * (2 if shape.weights == "bfloat16" else 1)
    return (shape.weight_bytes - experts) / tp + experts / (tp * expert_ranks)


def activation_bytes(shape: ModelShape, tp: int, max_num_seqs: int, max_num_batched_tokens: int) -> float:
    """Peak memory of the largest step on one GPU, beside weights and KV."""
    width = shape.intermediate * (shape.experts_per_token or 1) / tp
    qkv = (shape.heads + 2 * shape.kv_heads) * shape.head_dim / tp
    # Residual and normed stream, then either heads or the feed-forward's gate, up and their product; 16 bits each.
    layer = 2 * max_num_batched_tokens * (3 * shape.hidden + max(2 * qkv, 3 * width))
    # vLLM samples from logits in 32 bits, and keeps those of 16 bits and a sorted copy beside them.
    logits = max_num_seqs * shape.vocab * (2 + 4 + 4 + 4)
    return max(layer, logits) + 2 * max_num_batched_tokens * shape.hidden


def kv_blocks(
    shape: ModelShape,
    gpu: Gpu,
    tp: int,
    *,
    block_size: int,
    max_num_seqs: int,
    max_num_batched_tokens: int,
    gpu_memory_utilization: float,
    expert_ranks: int = 1,
) -> int:
    """Usable KV blocks of one replica.

    Raises:
        ConfigError: if the weights leave no room for even one request of 1,024 tokens.
    """
    weights = gpu_weight_bytes(shape, tp, expert_ranks)
    room = gpu.memory_bytes * _VISIBLE * gpu_memory_utilization - weights
    room -= activation_bytes(shape, tp, max_num_seqs, max_num_batched_tokens)
    room -= _CONTEXT_BYTES + (_COLLECTIVE_BYTES if tp * expert_ranks > 1 else 0)
    room -= _GRAPH_BYTES + _GRAPH_REQUEST_BYTES * min(max_num_seqs, 512)
    # KV heads that cannot be divided among the GPUs are kept on several of them.
    token = shape.kv_token_bytes / shape.kv_heads * -(-shape.kv_heads // tp)
    blocks = int(room // (token * block_size)) - 1  # one is vLLM's null block
    if blocks * block_size < 1024:
        raise ConfigError(
            f"{shape.name} does not fit: {weights / _GIB:.0f} GiB of weights on each of {tp} x {gpu.name} with "
            f"{gpu.memory_bytes / _GIB:.0f} GiB",
            where="tp",
            fix="raise tp, or take a smaller model or a larger GPU",
        )
    return blocks
