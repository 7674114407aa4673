"""What fine-tuning minimises besides the cross-entropy.

Rule: schedulers order requests by predicted length, so pairs in the wrong order cost something too: a logistic loss
over all pairs of a batch (Burges et al., "Learning to Rank using Gradient Descent", ICML 2005), a pair counting by how
far apart the mean log lengths of its targets are.
"""

from __future__ import annotations

import torch
from torch.nn import functional

#: How steeply the loss of a pair falls, per unit of log length.
_STEEPNESS = 4.0


def log_middles(edges: tuple[int, ...]) -> torch.Tensor:
    """Log length in the middle of each bin, shape ``[K]``, from ``K + 1`` edges in tokens."""
    at = torch.tensor(edges, dtype=torch.float32)
    return torch.log1p((at[1:] + at[:-1]) / 2)


def ranking_loss(logits: torch.Tensor, targets: torch.Tensor, middles: torch.Tensor) -> torch.Tensor:
    """The pairwise loss of a batch, a scalar.

    Args:
        logits: shape ``[n, K]``.
        targets: shares of the bins, shape ``[n, K]``.
        middles: log length of each bin, shape ``[K]``.
    """
    said, true = logits.float().softmax(-1) @ middles, targets.float() @ middles
    weight = (true[:, None] - true[None, :]).clamp(min=0)
    each = functional.softplus(-_STEEPNESS * (said[:, None] - said[None, :]))
    return (weight * each).sum() / weight.sum().clamp(min=1e-6)
