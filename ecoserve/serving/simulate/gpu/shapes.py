"""Shapes of served models: the sizes that decide their time and memory on a GPU.

One model family is known, the decoder of Llama (grouped-query attention, gated feed-forward, dense or a mixture of
equal experts), which covers Llama, Vicuna, Mistral, Mixtral, Qwen2, Qwen2.5 and Qwen3. Any other configuration (latent
attention, sliding windows, shared experts, layers of two kinds) is refused. A built-in shape is one row of shapes.json.
"""

from __future__ import annotations

import difflib
import json
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ecoserve.errors import ConfigError

#: How weights are stored: bfloat16 (float16 costs the same), or fp8 with one scale a tensor.
Weights = Literal["bfloat16", "fp8"]

_BYTES: Final[dict[str, float]] = {"bfloat16": 2.0, "fp8": 1.0}
_DENSE: Final = {"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"}
_EXPERTS: Final = {"MixtralForCausalLM", "Qwen3MoeForCausalLM"}
_QK_NORM: Final = {"Qwen3ForCausalLM", "Qwen3MoeForCausalLM"}


class ModelShape(BaseModel):
    """The sizes of one decoder. Memory is in bytes, work in floating-point operations (a multiply-add is two)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    layers: int = Field(ge=1)
    hidden: int = Field(ge=1)
    heads: int = Field(ge=1)
    kv_heads: int = Field(ge=1)
    head_dim: int = Field(ge=1)
    intermediate: int = Field(ge=1, description="of the feed-forward layer; of one expert where there are experts")
    vocab: int = Field(ge=1)
    max_model_len: int = Field(ge=1)
    experts: int = Field(0, ge=0, description="0: dense")
    experts_per_token: int = Field(0, ge=0)
    tied_embeddings: bool = False
    qk_norm: bool = False
    qkv_bias: bool = False
    weights: Weights = "bfloat16"
    kv_cache: Literal["bfloat16", "fp8"] = "bfloat16"

    @model_validator(mode="after")
    def _fits(self) -> ModelShape:
        if self.heads % self.kv_heads:
            raise ValueError(f"{self.heads} heads are not a multiple of {self.kv_heads} KV heads")
        if bool(self.experts) != bool(self.experts_per_token) or self.experts_per_token > self.experts:
            raise ValueError(f"{self.experts_per_token} of {self.experts} experts a token make no sense")
        return self

    # -- parameters -------------------------------------------------------------------------------------------

    @property
    def attention_parameters(self) -> int:
        return self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)

    @property
    def expert_parameters(self) -> int:
        """Parameters of one feed-forward layer, or of one expert: gate, up and down."""
        return 3 * self.hidden * self.intermediate

    @property
    def embedding_parameters(self) -> int:
        """Parameters of the token embedding; the output layer has as many."""
        return self.vocab * self.hidden

    @property
    def layer_parameters(self) -> int:
        small = 2 * self.hidden + (2 * self.head_dim if self.qk_norm else 0)
        small += (self.heads + 2 * self.kv_heads) * self.head_dim if self.qkv_bias else 0
        experts = self.experts * (self.expert_parameters + self.hidden) if self.experts else self.expert_parameters
        return self.attention_parameters + experts + small

    @property
    def parameters(self) -> int:
        embeddings = self.embedding_parameters * (1 if self.tied_embeddings else 2)
        return self.layers * self.layer_parameters + embeddings + self.hidden

    # -- bytes and operations ---------------------------------------------------------------------------------

    @property
    def weight_bytes(self) -> int:
        """Memory of all weights; embeddings, output layer and router stay in 16 bits."""
        wide = self.parameters - self.layers * self._quantised_parameters
        return int(self.layers * self._quantised_parameters * _BYTES[self.weights] + 2 * wide)

    @property
    def _quantised_parameters(self) -> int:
        return self.attention_parameters + self.expert_parameters * max(1, self.experts)

    @property
    def kv_token_bytes(self) -> int:
        return int(2 * self.layers * self.kv_heads * self.head_dim * (2 if self.kv_cache == "bfloat16" else 1))


def as_config(shape: ModelShape) -> dict[str, Any]:
    """The shape as a ``config.json`` of the kind of model that has such sizes; Qwen2 is written as a Llama."""
    config: dict[str, Any] = {
        "model_type": "llama",
        "architectures": ["Qwen3ForCausalLM" if shape.qk_norm else "LlamaForCausalLM"],
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocab,
        "max_position_embeddings": shape.max_model_len,
        "tie_word_embeddings": shape.tied_embeddings,
        "torch_dtype": "bfloat16",
    }
    if shape.experts:
        config["architectures"] = ["Qwen3MoeForCausalLM" if shape.qk_norm else "MixtralForCausalLM"]
        config["num_experts_per_tok"] = shape.experts_per_token
        config["moe_intermediate_size"] = shape.intermediate
        config["num_experts" if shape.qk_norm else "num_local_experts"] = shape.experts
    return config


def load_shape(model: str) -> ModelShape:
    """The shape of a model: a folder with a ``config.json``, such a file, or a built-in shape's name (in any case).

    Raises ConfigError if it is neither, or of a kind that is not modelled.
    """
    path = Path(model)
    if path.is_file():
        return shape_from_config(path)
    if (path / "config.json").is_file():
        return shape_from_config(path / "config.json")
    found = _names().get(model.lower())
    if found is None:
        near = difflib.get_close_matches(model.lower(), list(_names()), n=5, cutoff=0.5)
        shown = list(dict.fromkeys(_names()[n].name for n in near)) or [s.name for s in built_in_shapes()]
        raise ConfigError(
            f"no built-in model is called {model!r}, and it is no folder with a config.json",
            where="model",
            fix=f"known names near it: {', '.join(shown)}" if near else f"known names: {', '.join(shown)}",
        )
    return found


def shape_from_config(path: Path) -> ModelShape:
    """The shape of a Hugging Face ``config.json``; ConfigError for an unreadable file or another kind of model."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot be read as JSON ({error})", where=str(path)) from None
    if not isinstance(config, dict):
        raise ConfigError("is not a model's configuration", where=str(path))
    return _from_config(config, path)


def _from_config(config: dict[str, Any], path: Path) -> ModelShape:
    architecture = next(iter(config.get("architectures") or []), "none")
    if architecture not in _DENSE | _EXPERTS:
        known = ", ".join(sorted(_DENSE | _EXPERTS))
        raise ConfigError(f"architecture {architecture} is not modelled", where=str(path), fix=f"modelled: {known}")
    _refuse_other_kinds(config, path)
    sizes: dict[str, Any] = {"name": str(config.get("_name_or_path") or path.parent.name or path.stem)}
    experts = architecture in _EXPERTS
    try:
        heads, hidden = int(config["num_attention_heads"]), int(config["hidden_size"])
        sizes |= {
            "layers": config["num_hidden_layers"],
            "hidden": hidden,
            "heads": heads,
            "kv_heads": config.get("num_key_value_heads") or heads,
            "head_dim": config.get("head_dim") or hidden // heads,
            "intermediate": config.get("moe_intermediate_size") or config["intermediate_size"],
            "vocab": config["vocab_size"],
            "max_model_len": config.get("max_position_embeddings", 4096),
        }
        if experts:
            sizes["experts"] = config.get("num_experts") or config["num_local_experts"]
            sizes["experts_per_token"] = config["num_experts_per_tok"]
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise ConfigError(f"a size is missing or no number: {error}", where=str(path)) from None
    sizes["tied_embeddings"] = bool(config.get("tie_word_embeddings", False))
    sizes["qk_norm"] = architecture in _QK_NORM
    sizes["qkv_bias"] = architecture == "Qwen2ForCausalLM" or bool(config.get("attention_bias", False))
    sizes["weights"], sizes["kv_cache"] = _precision(config, path)
    try:
        return ModelShape.model_validate(sizes)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(p) for p in first["loc"]) or "sizes"
        raise ConfigError(f"{field}: {first['msg']}", where=str(path)) from None


def _refuse_other_kinds(config: dict[str, Any], path: Path) -> None:
    problem = None
    if config.get("use_sliding_window", True) and config.get("sliding_window"):
        # Qwen writes a window down and does not use it; early Mistral uses it.
        window, longest = config["sliding_window"], config.get("max_position_embeddings", 0)
        if window < longest or "use_sliding_window" in config:
            problem = f"a sliding window of {window} tokens"
    if config.get("shared_expert_intermediate_size") or config.get("n_shared_experts"):
        problem = "shared experts"
    if config.get("mlp_only_layers") or config.get("decoder_sparse_step", 1) != 1:
        problem = "dense layers among sparse ones"
    if problem:
        raise ConfigError(f"{problem} is not modelled", where=str(path))


def _precision(config: dict[str, Any], path: Path) -> tuple[Weights, Literal["bfloat16", "fp8"]]:
    quantisation = config.get("quantization_config") or {}
    kv: Literal["bfloat16", "fp8"] = "bfloat16"
    if "fp8" in str(quantisation.get("kv_cache_quant_algo", "")).lower():
        kv = "fp8"
    if quantisation:
        method = str(quantisation.get("quant_method", "")).lower() or "an unnamed method"
        if quantisation.get("weight_block_size"):
            method += " with a scale a block"
        if method != "fp8" or config.get("num_experts") or config.get("num_local_experts"):
            experts = "experts" if method == "fp8" else "weights"
            raise ConfigError(
                f"{experts} quantised by {method} are not modelled",
                where=str(path),
                fix="bfloat16 and float16 are, and fp8 with a scale a tensor for dense models",
            )
        return "fp8", kv
    dtype = config.get("dtype") or config.get("torch_dtype") or "bfloat16"
    if dtype not in ("bfloat16", "float16"):
        raise ConfigError(f"weights of type {dtype} are not modelled", where=str(path), fix="bfloat16 and float16 are")
    return "bfloat16", kv


@lru_cache(maxsize=1)
def built_in_shapes() -> tuple[ModelShape, ...]:
    """The shapes that need no files, in order of family and size."""
    return tuple(ModelShape.model_validate({k: v for k, v in r.items() if k != "aliases"}) for r in _rows())


def _rows() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(Path(__file__).with_name("shapes.json").read_text("utf-8"))["shapes"]
    return rows


@lru_cache(maxsize=1)
def _names() -> dict[str, ModelShape]:
    """Every name and alias in lower case, with and without its organisation."""
    names: dict[str, ModelShape] = {}
    for shape, row in zip(built_in_shapes(), _rows(), strict=True):
        for name in (shape.name, *row["aliases"]):
            names.setdefault(name.lower(), shape)
        for alias in row["aliases"]:
            names.setdefault(alias.rpartition("/")[2].lower(), shape)
    return names
