"""KV is what the memory leaves: by hand, by tensor parallelism, and not at all."""

from __future__ import annotations

import pytest

from ecoserve.errors import ConfigError
from ecoserve.serving.simulate.gpu.hardware import find_gpu
from ecoserve.serving.simulate.gpu.model import activation_bytes, gpu_weight_bytes, kv_blocks
from ecoserve.serving.simulate.gpu.shapes import load_shape

GIB = 1 << 30


def blocks(model: str, gpu: str, tp: int = 1, share: float = 0.9, seqs: int = 256, batched: int = 2048) -> int:
    return kv_blocks(
        load_shape(model),
        find_gpu(gpu),
        tp,
        block_size=16,
        max_num_seqs=seqs,
        max_num_batched_tokens=batched,
        gpu_memory_utilization=share,
    )


def test_llama_8b_on_an_h100_by_hand() -> None:
    # 80 GiB, 99 % of it visible, 90 % for vLLM; 16.06 GB of weights; activations; 0.6 GiB for CUDA; graphs.
    room = 80 * GIB * 0.99 * 0.9 - 2 * 8_030_261_248
    logits = 256 * 128256 * 14 + 2 * 2048 * 4096
    layer = 2 * 2048 * (3 * 4096 + 3 * 14336) + 2 * 2048 * 4096
    room -= max(logits, layer) + int(0.6 * GIB) + int(0.3 * GIB) + 256 * int(2.5 * 2**20)
    assert blocks("llama-3.1-8b", "h100_sxm") == int(room // (16 * 131072)) - 1


@pytest.mark.parametrize(
    ("model", "gpu", "tp"), [("llama-3.1-8b", "h100_sxm", 1), ("qwen3-32b", "rtx_pro_6000_server", 2)]
)
def test_never_more_than_the_weights_leave(model: str, gpu: str, tp: int) -> None:
    shape = load_shape(model)
    used = blocks(model, gpu, tp) * 16 * shape.kv_token_bytes
    left = tp * find_gpu(gpu).memory_bytes * 0.9 - shape.weight_bytes
    assert 0.8 * left < used < left


def test_more_gpus_hold_more_and_more_settings_leave_less() -> None:
    one, two, four = (blocks("llama-13b", "a100_sxm", tp) for tp in (1, 2, 4))
    assert two > 2 * one
    assert four > 2 * two
    assert blocks("llama-13b", "a100_sxm", share=0.8) < one
    assert blocks("llama-13b", "a100_sxm", seqs=512) < one
    assert blocks("llama-13b", "a100_sxm", batched=16384) < one


def test_kv_heads_that_cannot_be_divided_are_there_several_times() -> None:
    # Four KV heads on eight GPUs: each holds one whole head, so a block costs twice its share.
    shape = load_shape("qwen3-30b-a3b")
    gpu = find_gpu("h200_sxm")
    room = gpu.memory_bytes * 0.99 * 0.9 - gpu_weight_bytes(shape, 8) - activation_bytes(shape, 8, 256, 2048)
    assert blocks("qwen3-30b-a3b", "h200_sxm", 8) * 16 < room / (shape.kv_token_bytes / 4)


def test_shared_experts_are_divided_among_replicas() -> None:
    shape = load_shape("qwen3-30b-a3b")
    experts = shape.layers * shape.experts * shape.expert_parameters * 2
    assert gpu_weight_bytes(shape, 1) - gpu_weight_bytes(shape, 1, expert_ranks=2) == experts / 2


def test_a_model_that_does_not_fit_says_what_it_needs() -> None:
    with pytest.raises(ConfigError, match=r"llama-3\.1-70b does not fit: 131 GiB") as raised:
        blocks("llama-3.1-70b", "l40s")
    assert raised.value.exit_code == 2
