"""The encoder's body on a CPU: packed weights, one product for query, key and value, bfloat16 where it pays.

The weights of every linear layer are laid out once in the order that oneDNN's matrix product reads them, in bfloat16
where the CPU multiplies it; sums, norms, residuals, pooling and head stay in float32. It is checked against the plain
network before it is used. Anything but a BERT or an MPNet (whose attention also reads the distance of two tokens), a
GPU, or a torch without these kernels, runs as transformers runs it. ``docs/results/predictor-speed.md`` has
measurements.
"""

from __future__ import annotations

import copy
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
    if not isinstance(body, nn.Module) or not _can_be_packed(body):
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


class PackedBody(nn.Module):
    """An encoder's embeddings and layers; takes and gives what the parts of its transformers class used here do."""

    def __init__(self, body: Any, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.heads = int(body.config.num_attention_heads)
        self.activation, self.variant = _ACTIVATIONS[body.config.hidden_act]
        embeddings = body.embeddings
        self.words = embeddings.word_embeddings
        self.norm = embeddings.LayerNorm
        self.apart: torch.Tensor | None = None
        if body.config.model_type == "mpnet":
            # Places are counted from behind the padding's own.
            self.places = embeddings.position_embeddings.weight[embeddings.padding_idx + 1 :].detach()
            self.apart = _apart(body.encoder, len(self.places))
        else:
            # A request is one segment: its mark can be added to the places once.
            self.places = (embeddings.position_embeddings.weight + embeddings.token_type_embeddings.weight[0]).detach()
        self.layers = [_Layer(layer, dtype) for layer in body.encoder.layer]

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> SimpleNamespace:
        """``last_hidden_state`` of shape ``[n, tokens, hidden]`` in float32, from ids and mask ``[n, tokens]``."""
        rows, tokens = input_ids.shape
        states = self.norm(self.words(input_ids) + self.places[:tokens])
        hidden = states.shape[-1]
        added = self._added(attention_mask)
        for layer in self.layers:
            three = _product(states.to(self.dtype), layer.into)
            query, key, value = three.view(rows, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
            read = functional.scaled_dot_product_attention(query, key, value, added)
            states = layer.norm_read(states + _product(read.transpose(1, 2).reshape(rows, tokens, hidden), layer.out))
            wide = _product(states.to(self.dtype), layer.widen, self.activation, self.variant)
            states = layer.norm_wide(states + _product(wide, layer.narrow))
        return SimpleNamespace(last_hidden_state=states)

    def _added(self, attention_mask: torch.Tensor) -> torch.Tensor | None:
        """What attention adds to its scores, or the mask of what it may read; None: nothing, which is faster."""
        tokens = attention_mask.shape[1]
        whole = bool(attention_mask.all())
        mask = attention_mask[:, None, None, :].bool()
        if self.apart is None:
            return None if whole else mask
        # One number per head and distance, laid out as a matrix: the entry at (i, j) is that of j - i.
        middle = (self.apart.shape[1] - 1) // 2
        place = torch.arange(tokens)
        bias = self.apart[:, place[None, :] - place[:, None] + middle][None]
        return (bias if whole else bias.masked_fill(~mask, float("-inf"))).to(self.dtype)


class _Layer:
    def __init__(self, layer: Any, dtype: torch.dtype) -> None:
        attention = layer.attention
        if hasattr(attention, "attn"):
            parts = (attention.attn.q, attention.attn.k, attention.attn.v)
            out, norm = attention.attn.o, attention.LayerNorm
        else:
            parts = (attention.self.query, attention.self.key, attention.self.value)
            out, norm = attention.output.dense, attention.output.LayerNorm
        self.into = _packed(torch.cat([p.weight for p in parts]), torch.cat([p.bias for p in parts]), dtype)
        self.out = _packed(out.weight, out.bias, dtype)
        self.norm_read = norm
        self.widen = _packed(layer.intermediate.dense.weight, layer.intermediate.dense.bias, dtype)
        self.narrow = _packed(layer.output.dense.weight, layer.output.dense.bias, dtype)
        self.norm_wide = layer.output.LayerNorm


def _apart(encoder: Any, places: int) -> torch.Tensor:
    """MPNet's number for each head and each distance from ``1 - places`` to ``places - 1``, ``[heads, distances]``."""
    with torch.inference_mode():
        whole = encoder.compute_position_bias(torch.empty(1, places, 1))[0]
    # Row 0 has the distances ahead, column 0 those behind.
    return torch.cat([whole[:, 1:, 0].flip(1), whole[:, 0, :]], dim=1).clone()


_Weights = tuple[torch.Tensor, torch.Tensor]


def _packed(weight: torch.Tensor, bias: torch.Tensor, dtype: torch.dtype) -> _Weights:
    laid_out = torch.ops.mkldnn._reorder_linear_weight(weight.detach().to(dtype).contiguous(), _ROWS)
    return laid_out, bias.detach().to(dtype)


def _product(x: torch.Tensor, weights: _Weights, activation: str = "none", variant: str = "") -> torch.Tensor:
    found: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, *weights, activation, [], variant)
    return found


def _can_be_packed(body: nn.Module) -> bool:
    config: Any = getattr(body, "config", None)
    return (
        getattr(config, "model_type", None) in ("bert", "mpnet")
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
