"""The encoder's body as it runs on a CPU: packed weights, one product for query, key and value, bfloat16 where it pays.

Rule: the weights of every linear layer are laid out once in the order that oneDNN's matrix product reads them, and in
bfloat16 where the CPU multiplies bfloat16 by itself (half the memory traffic, twice the rate); sums, norms, residuals,
pooling and head stay in float32. It is checked against the plain network before it is used, and whatever is not a
BERT, or not a CPU, or a torch without these kernels, runs as transformers runs it. Measured beside ONNX Runtime and
OpenVINO in ``docs/predictor-speed.md``.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any, Final, Literal

import torch
from torch import nn
from torch.nn import functional

#: ``auto`` is bfloat16 on CPUs that have instructions for it, else float32.
Precision = Literal["auto", "float32", "bfloat16"]

#: transformers' names of activations that oneDNN adds to a product: (its name, its variant).
_ACTIVATIONS: Final = {
    "gelu": ("gelu", "none"),
    "gelu_new": ("gelu", "tanh"),
    "gelu_pytorch_tanh": ("gelu", "tanh"),
    "relu": ("relu", ""),
}
#: Rows for which weights are laid out. Any number of rows may be multiplied; layouts for 32 and 128 measured alike.
_ROWS: Final = 32
#: Tokens of the check, and how far its outcome may be from the plain network's, relative to the states' spread.
_PROBE_TOKENS: Final = 8
_TOLERANCE: Final = {torch.float32: 1e-3, torch.bfloat16: 5e-2}


def native_precision(precision: Precision = "auto") -> torch.dtype:
    """The number format in which this CPU multiplies."""
    if precision == "auto":
        has = torch.cpu.get_capabilities()
        return torch.bfloat16 if has.get("avx512_bf16") or has.get("amx_bf16") else torch.float32
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


def for_cpu(model: nn.Module, precision: Precision = "auto") -> nn.Module:
    """``model`` with its ``body`` replaced by a :class:`PackedBody`; ``model`` itself where that is not possible.

    Everything but the body is shared with ``model``, which is not changed.
    """
    body, dtype = model.body, native_precision(precision)
    if not isinstance(body, nn.Module) or not _is_plain_bert(body):
        return model
    try:
        packed = PackedBody(body, dtype)
        if not _agrees(packed, body):
            return model
    except (AttributeError, RuntimeError, NotImplementedError):
        # A torch without these kernels, or built for a CPU that has none.
        return model
    fast = copy.copy(model)
    fast._modules = {**model._modules, "body": packed}
    return fast


def state_of(weights: Iterable[torch.Tensor]) -> tuple[tuple[int, int], ...]:
    """Something that is another whenever one of ``weights`` has been written to, or moved."""
    return tuple((w.data_ptr(), w._version) for w in weights)


class PackedBody(nn.Module):
    """A BERT's embeddings and layers; takes and gives what the parts of ``transformers.BertModel`` used here do."""

    def __init__(self, body: Any, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.heads = int(body.config.num_attention_heads)
        self.activation, self.variant = _ACTIVATIONS[body.config.hidden_act]
        embeddings = body.embeddings
        self.words = embeddings.word_embeddings
        # A request is one segment: its mark can be added to the places once.
        self.places = (embeddings.position_embeddings.weight + embeddings.token_type_embeddings.weight[0]).detach()
        self.norm = embeddings.LayerNorm
        self.layers = [_Layer(layer, dtype) for layer in body.encoder.layer]

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> SimpleNamespace:
        """``last_hidden_state`` of shape ``[n, tokens, hidden]`` in float32, from ids and mask ``[n, tokens]``."""
        rows, tokens = input_ids.shape
        states = self.norm(self.words(input_ids) + self.places[:tokens])
        hidden = states.shape[-1]
        # Without padding there is nothing to mask, and attention is faster.
        mask = None if attention_mask.all() else attention_mask[:, None, None, :].bool()
        for layer in self.layers:
            three = _product(states.to(self.dtype), layer.into)
            query, key, value = three.view(rows, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
            read = functional.scaled_dot_product_attention(query, key, value, mask)
            states = layer.norm_read(states + _product(read.transpose(1, 2).reshape(rows, tokens, hidden), layer.out))
            wide = _product(states.to(self.dtype), layer.widen, self.activation, self.variant)
            states = layer.norm_wide(states + _product(wide, layer.narrow))
        return SimpleNamespace(last_hidden_state=states)


class _Layer:
    def __init__(self, layer: Any, dtype: torch.dtype) -> None:
        attention = layer.attention.self
        parts = (attention.query, attention.key, attention.value)
        self.into = _packed(torch.cat([p.weight for p in parts]), torch.cat([p.bias for p in parts]), dtype)
        self.out = _packed(layer.attention.output.dense.weight, layer.attention.output.dense.bias, dtype)
        self.norm_read = layer.attention.output.LayerNorm
        self.widen = _packed(layer.intermediate.dense.weight, layer.intermediate.dense.bias, dtype)
        self.narrow = _packed(layer.output.dense.weight, layer.output.dense.bias, dtype)
        self.norm_wide = layer.output.LayerNorm


_Weights = tuple[torch.Tensor, torch.Tensor]


def _packed(weight: torch.Tensor, bias: torch.Tensor, dtype: torch.dtype) -> _Weights:
    laid_out = torch.ops.mkldnn._reorder_linear_weight(weight.detach().to(dtype).contiguous(), _ROWS)
    return laid_out, bias.detach().to(dtype)


def _product(x: torch.Tensor, weights: _Weights, activation: str = "none", variant: str = "") -> torch.Tensor:
    found: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, *weights, activation, [], variant)
    return found


def _is_plain_bert(body: nn.Module) -> bool:
    config: Any = getattr(body, "config", None)
    return (
        getattr(config, "model_type", None) == "bert"
        and config.hidden_act in _ACTIVATIONS
        and getattr(config, "position_embedding_type", None) in (None, "absolute")
        and not getattr(config, "is_decoder", False)
        and next(body.parameters()).device.type == "cpu"
        and next(body.parameters()).dtype == torch.float32
        and bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
    )


def _agrees(packed: PackedBody, body: nn.Module) -> bool:
    """Whether both say the same of a few tokens, some of them padding."""
    last = int(packed.words.num_embeddings) - 1
    ids = torch.linspace(0, last, 2 * _PROBE_TOKENS).long().view(2, _PROBE_TOKENS)
    mask = torch.ones_like(ids)
    mask[1, _PROBE_TOKENS // 2 :] = 0
    with torch.inference_mode():
        plain = body(input_ids=ids, attention_mask=mask).last_hidden_state[mask.bool()]
        ours = packed(input_ids=ids, attention_mask=mask).last_hidden_state[mask.bool()]
    return bool((plain - ours).abs().max() <= _TOLERANCE[packed.dtype] * plain.std().clamp(min=1e-6))
