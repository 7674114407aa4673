"""The network: transformer, mean over tokens, one linear layer to the length bins; its batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

#: A predictor's weights in its checkpoint, and how the names of the body's begin.
WEIGHTS: Final = "model.safetensors"
_BODY: Final = "body."
#: Padded tokens in one forward pass, and rows.
_BATCH_TOKENS: Final = 4096
_BATCH_ROWS: Final = 64


class LengthEncoder(nn.Module):
    """Token ids to logits over K length bins."""

    def __init__(self, body: nn.Module, hidden: int, bins: int) -> None:
        super().__init__()
        # Pooled by the mean over tokens; a pooler of its own would only carry unused weights.
        if getattr(body, "pooler", None) is not None:
            body.pooler = None  # type: ignore[assignment]
        self.body = body
        self.head = nn.Linear(hidden, bins)

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """``logits`` of shape ``[n, K]`` and, with soft ``labels`` of that shape, the mean cross-entropy ``loss``.

        ``input_ids`` and ``attention_mask`` (1 where there is a token) have shape ``[n, tokens]``.
        """
        logits = self.head(self.pooled(input_ids, attention_mask))
        if labels is None:
            return {"logits": logits}
        return {"loss": functional.cross_entropy(logits, labels), "logits": logits}

    def pooled(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """The mean of the body's states over the tokens, ``[n, hidden]``."""
        states = self.body(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(states.dtype)
        pooled: torch.Tensor = (states * mask).sum(1) / mask.sum(1).clamp(min=1.0)
        return pooled


def pretrained(folder: Path, prior: torch.Tensor) -> tuple[LengthEncoder, dict[str, Any]]:
    """A pretrained body with a fresh head that says ``prior`` (shape ``[K]``), and the body's config as plain JSON.

    Raises ValueError, OSError or a safetensors error if the folder holds no such body.

    Dropout is off: the body is fine-tuned for a few epochs only, and without it training is twice as fast on a CPU.
    """
    from transformers import AutoConfig, AutoModel

    config = AutoConfig.from_pretrained(str(folder))
    for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "attention_dropout", "dropout"):
        if isinstance(getattr(config, name, None), float):
            setattr(config, name, 0.0)
    with quiet_transformers():
        body, found = AutoModel.from_pretrained(
            str(folder), config=config, dtype=torch.float32, use_safetensors=True, output_loading_info=True
        )
    missing = sorted(name for name in found["missing_keys"] if not name.startswith("pooler."))
    if missing:
        # transformers would go on with random numbers in their place.
        raise ValueError(f"its weights lack {missing[0]} and {len(missing) - 1} more")
    model = LengthEncoder(body, config.hidden_size, len(prior))
    _fresh_head(model, prior)
    return model, plain_config(config)


def started(folder: Path, config: dict[str, Any], prior: torch.Tensor) -> LengthEncoder:
    """The body of a saved predictor, with this ``config``, and a fresh head that says ``prior`` (shape ``[K]``)."""
    from safetensors.torch import load_file

    state = load_file(folder / WEIGHTS)
    model = from_config(config, len(prior))
    model.body.load_state_dict({n.removeprefix(_BODY): v for n, v in state.items() if n.startswith(_BODY)}, strict=True)
    _fresh_head(model, prior)
    return model


def _fresh_head(model: LengthEncoder, prior: torch.Tensor) -> None:
    nn.init.normal_(model.head.weight, std=0.02)
    with torch.no_grad():
        model.head.bias.copy_(prior.log())


def from_config(content: dict[str, Any], bins: int) -> LengthEncoder:
    """The network of a saved body's config, its weights not yet filled in."""
    from transformers import AutoConfig, AutoModel

    rest = {k: v for k, v in content.items() if k != "model_type"}
    config = AutoConfig.for_model(content["model_type"], **rest)
    # Fresh weights are drawn and thrown away; the caller's random state stays as it was.
    with quiet_transformers(), torch.random.fork_rng(devices=[]):
        body = AutoModel.from_config(config)
    return LengthEncoder(body, config.hidden_size, bins)


def plain_config(config: Any) -> dict[str, Any]:
    """A transformers config as JSON, without what names files or versions of this machine."""
    content: dict[str, Any] = config.to_diff_dict()
    for name in ("_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype"):
        content.pop(name, None)
    return {**content, "model_type": config.model_type}


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars and notes of transformers inside, which would be drawn over ours; as before afterwards."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def pad(ids: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask of ``n`` token lists, both ``[n, longest]``. Padding is masked, so any id will do for it: 0."""
    longest = max(map(len, ids))
    inputs = torch.zeros((len(ids), longest), dtype=torch.long)
    mask = torch.zeros((len(ids), longest), dtype=torch.long)
    for row, tokens in enumerate(ids):
        inputs[row, : len(tokens)] = torch.tensor(tokens, dtype=torch.long)
        mask[row, : len(tokens)] = 1
    return inputs, mask


def in_batches(
    ids: Sequence[Sequence[int]],
    compute: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    width: int,
    most_tokens: float = _BATCH_TOKENS,
) -> npt.NDArray[np.float64]:
    """``compute`` of ids and mask, shape ``[n, width]``, in batches of like length and bounded rows and tokens."""
    out = np.empty((len(ids), width), dtype=np.float64)
    batches: list[list[int]] = [[]]
    for i in sorted(range(len(ids)), key=lambda i: len(ids[i])):
        if batches[-1] and (len(batches[-1]) >= _BATCH_ROWS or (len(batches[-1]) + 1) * len(ids[i]) > most_tokens):
            batches.append([])
        batches[-1].append(i)
    with torch.inference_mode():
        for rows in batches:
            out[rows] = compute(*pad([ids[i] for i in rows])).float().cpu().numpy()
    return out
