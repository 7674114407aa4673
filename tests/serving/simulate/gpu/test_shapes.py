"""Shapes: what a config.json says, what is refused, and how large published models are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ecoserve.errors import ConfigError
from ecoserve.serving.simulate.gpu.shapes import ModelShape, built_in_shapes, load_shape

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "torch_dtype": "bfloat16",
}
QWEN_MOE: dict[str, Any] = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "num_hidden_layers": 48,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "sliding_window": None,
    "use_sliding_window": False,
    "vocab_size": 151936,
    "max_position_embeddings": 262144,
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
}


def shape_of(folder: Path, config: object) -> ModelShape:
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return load_shape(str(folder))


def test_a_config_is_the_built_in_shape_of_the_same_model(tmp_path: Path) -> None:
    same = {"name": "same"}
    assert shape_of(tmp_path, LLAMA).model_copy(update=same) == load_shape("llama-3.1-8b").model_copy(update=same)
    built_in = load_shape("Qwen/Qwen3-30B-A3B-Instruct-2507")
    assert shape_of(tmp_path, QWEN_MOE).model_copy(update=same) == built_in.model_copy(update=same)


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("llama-13b", 13.02),
        ("llama-33b", 32.53),
        ("meta-llama/Llama-3.1-8B", 8.03),
        ("llama-3.1-70b", 70.55),
        ("llama-3.2-1b", 1.24),
        ("Qwen/Qwen3-32B", 32.76),
        ("qwen3-30b-a3b", 30.53),
        ("mixtral-8x7b", 46.70),
        ("Qwen/Qwen2.5-7B-Instruct", 7.62),
    ],
)
def test_built_in_shapes_have_the_published_number_of_parameters(name: str, billions: float) -> None:
    shape = load_shape(name)
    assert shape.parameters / 1e9 == pytest.approx(billions, abs=0.006)
    assert load_shape(name.upper()) == shape


def test_every_built_in_shape_is_found_by_its_name() -> None:
    assert len(built_in_shapes()) >= 20
    for shape in built_in_shapes():
        assert load_shape(shape.name) == shape


def test_kv_of_a_token_and_weights_by_hand() -> None:
    shape = load_shape("llama-3.1-8b")
    assert shape.kv_token_bytes == 2 * 32 * 8 * 128 * 2
    assert shape.weight_bytes == 2 * shape.parameters
    tied = load_shape("llama-3.2-1b")
    assert tied.parameters == tied.layers * tied.layer_parameters + tied.vocab * tied.hidden + tied.hidden


def test_what_a_config_may_leave_out(tmp_path: Path) -> None:
    old = {k: v for k, v in LLAMA.items() if k not in ("num_key_value_heads", "torch_dtype")}
    shape = shape_of(tmp_path, old)
    assert (shape.kv_heads, shape.head_dim, shape.weights) == (32, 128, "bfloat16")
    assert not shape.tied_embeddings
    wide = shape_of(tmp_path, {**LLAMA, "head_dim": 256, "tie_word_embeddings": True})
    assert (wide.head_dim, wide.tied_embeddings) == (256, True)
    fp8 = shape_of(tmp_path, {**LLAMA, "quantization_config": {"quant_method": "fp8"}})
    assert fp8.weights == "fp8"
    assert fp8.weight_bytes < 0.6 * shape.weight_bytes


def test_a_window_that_is_not_used_is_no_obstacle(tmp_path: Path) -> None:
    config = {**LLAMA, "sliding_window": 4096, "use_sliding_window": False}
    assert shape_of(tmp_path, config).layers == 32


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"architectures": ["DeepseekV3ForCausalLM"]}, "DeepseekV3ForCausalLM is not modelled"),
        ({"architectures": ["GptOssForCausalLM"]}, "GptOssForCausalLM is not modelled"),
        ({"architectures": []}, "none is not modelled"),
        ({"sliding_window": 4096}, "sliding window of 4096"),
        ({"sliding_window": 4096, "use_sliding_window": True}, "sliding window of 4096"),
        ({"n_shared_experts": 1}, "shared experts"),
        ({"mlp_only_layers": [0]}, "dense layers among sparse ones"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantised by awq"),
        ({"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}, "scale a block"),
        ({"torch_dtype": "float32"}, "float32"),
        ({"num_key_value_heads": 5}, "not a multiple"),
        ({"hidden_size": None}, "size is missing or no number"),
        ({"num_hidden_layers": 0}, "layers"),
        ({"vocab_size": "many"}, "vocab"),
    ],
)
def test_what_is_not_modelled_is_said_in_one_line(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as raised:
        shape_of(tmp_path, {**LLAMA, **change})
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)
    assert raised.value.exit_code == 2


@pytest.mark.parametrize("text", ["", "[1]", "{", '"llama"'])
def test_a_file_that_is_no_config(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"configuration|JSON"):
        load_shape(str(path))


def test_experts_must_make_sense(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="experts"):
        shape_of(tmp_path, {**QWEN_MOE, "num_experts_per_tok": 256})
    with pytest.raises(ConfigError, match="num_local_experts"):
        shape_of(tmp_path, {k: v for k, v in QWEN_MOE.items() if k != "num_experts"})
    with pytest.raises(ConfigError, match="experts quantised"):
        shape_of(tmp_path, {**QWEN_MOE, "quantization_config": {"quant_method": "fp8"}})


def test_an_unknown_name_is_answered_with_near_ones() -> None:
    with pytest.raises(ConfigError, match=r"llama-3\.1-8b") as raised:
        load_shape("llama3.1-8b")
    assert raised.value.exit_code == 2
