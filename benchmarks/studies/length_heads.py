"""Heads and losses of a length predictor, one beside the other: what a network's outputs mean and how they learn.

Rule: each head says how many outputs it needs, what its loss is on a batch, and which shares of the bins its outputs
stand for. Targets are shares of the bins (several answers to a prompt, cut-off ones as a boundary).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional as F  # noqa: N812

T = torch.Tensor
LEVELS = torch.linspace(0.025, 0.975, 20)


@dataclass(frozen=True)
class Batch:
    """``n`` rows: shares ``[n, K]``; lengths ``[n, S]`` of S answers; ``[n]`` bin at which the first was cut, or -1."""

    shares: T
    lengths: T
    cut: T


class Head:
    """Base: ``edges`` are the K + 1 bin edges in tokens."""

    def __init__(self, edges: T) -> None:
        self.edges = edges.to(torch.float32)
        self.k = len(edges) - 1
        middle = (self.edges[1:] + self.edges[:-1]) / 2
        self.log_middle = torch.log1p(middle)

    @property
    def outputs(self) -> int:
        return self.k

    def loss(self, out: T, batch: Batch) -> T:
        raise NotImplementedError

    def probabilities(self, out: T) -> T:
        """Shares of the bins, ``[n, K]``."""
        raise NotImplementedError

    def expectation(self, out: T) -> T:
        """Mean log length, ``[n]``: what a ranking loss compares."""
        return self.probabilities(out) @ self.log_middle


class Softmax(Head):
    """One logit a bin, cross-entropy."""

    def loss(self, out: T, batch: Batch) -> T:
        return F.cross_entropy(out, batch.shares)

    def probabilities(self, out: T) -> T:
        return out.softmax(-1)


class Ordinal(Head):
    """One logit an inner edge, P(length > edge), each its own binary task; made monotone when read."""

    @property
    def outputs(self) -> int:
        return self.k - 1

    def loss(self, out: T, batch: Batch) -> T:
        survival = 1.0 - batch.shares.cumsum(-1)[:, :-1]
        return F.binary_cross_entropy_with_logits(out, survival.clamp(0, 1), reduction="none").sum(-1).mean()

    def probabilities(self, out: T) -> T:
        survival = out.sigmoid().cummin(-1).values
        ends = torch.ones_like(survival[:, :1])
        return (torch.cat([ends, survival], -1) - torch.cat([survival, 0 * ends], -1)).clamp(min=1e-9)


class Hazard(Head):
    """One logit an inner edge, P(the answer ends in this bin | it came this far); a cut-off answer only survives."""

    @property
    def outputs(self) -> int:
        return self.k - 1

    def loss(self, out: T, batch: Batch) -> T:
        ends = batch.shares[:, :-1]
        survives = 1.0 - batch.shares.cumsum(-1)[:, :-1]
        before = torch.arange(self.k - 1) < batch.cut[:, None]
        # Of a row that was cut off, it is only known that it survived the bins before.
        cut = (batch.cut >= 0)[:, None]
        ends = torch.where(cut, torch.zeros_like(ends), ends)
        survives = torch.where(cut, before.to(ends.dtype), survives.clamp(0, 1))
        return -(ends * F.logsigmoid(out) + survives * F.logsigmoid(-out)).sum(-1).mean()

    def probabilities(self, out: T) -> T:
        alive = F.logsigmoid(-out).cumsum(-1)
        first = torch.zeros_like(alive[:, :1])
        log_p = torch.cat([F.logsigmoid(out), first], -1) + torch.cat([first, alive], -1)
        return log_p.exp()


class Quantile(Head):
    """Twenty quantiles of the log length, ascending, pinball loss over all answers."""

    @property
    def outputs(self) -> int:
        return len(LEVELS)

    def _quantiles(self, out: T) -> T:
        start = out[:, :1] + 4.5
        return torch.cat([start, start + F.softplus(out[:, 1:] - 2.0).cumsum(-1)], -1)

    def loss(self, out: T, batch: Batch) -> T:
        below = torch.log1p(batch.lengths)[:, :, None] - self._quantiles(out)[:, None, :]
        return torch.maximum(LEVELS * below, (LEVELS - 1) * below).sum(-1).mean()

    def probabilities(self, out: T) -> T:
        q = self._quantiles(out)
        at = torch.log1p(self.edges)[None, 1:-1].expand(len(q), -1).contiguous()
        i = torch.searchsorted(q.contiguous(), at).clamp(1, len(LEVELS) - 1)
        low, high = q.gather(1, i - 1), q.gather(1, i)
        cdf = LEVELS[i - 1] + (at - low) / (high - low).clamp(min=1e-6) * (LEVELS[i] - LEVELS[i - 1])
        cdf = cdf.clamp(1e-4, 1 - 1e-4).cummax(-1).values
        ends = torch.ones_like(cdf[:, :1])
        return (torch.cat([cdf, ends], -1) - torch.cat([0 * ends, cdf], -1)).clamp(min=1e-9)


class LogNormals(Head):
    """A mixture of three log-normals, likelihood of the bins."""

    @property
    def outputs(self) -> int:
        return 9

    def _log_p(self, out: T) -> T:
        weight, mean, spread = out.view(-1, 3, 3).unbind(1)
        mean = mean + torch.tensor([3.0, 4.5, 5.5])
        sd = F.softplus(spread) + 0.05
        z = (torch.log1p(self.edges)[None, None, 1:-1] - mean[..., None]) / sd[..., None]
        cdf = (weight.softmax(-1)[..., None] * torch.special.ndtr(z)).sum(1)
        ends = torch.ones_like(cdf[:, :1])
        return (torch.cat([cdf, ends], -1) - torch.cat([0 * ends, cdf], -1)).clamp(min=1e-6).log()

    def loss(self, out: T, batch: Batch) -> T:
        return -(batch.shares * self._log_p(out)).sum(-1).mean()

    def probabilities(self, out: T) -> T:
        return self._log_p(out).exp()


def ranking_loss(head: Head, out: T, batch: Batch) -> T:
    """Logistic loss over pairs of rows of the batch whose mean log lengths differ, by how much they do."""
    true = torch.log1p(batch.lengths).mean(-1)
    said = head.expectation(out)
    gap = true[:, None] - true[None, :]
    weight = gap.clamp(min=0)
    return (weight * F.softplus(-4.0 * (said[:, None] - said[None, :]))).sum() / weight.sum().clamp(min=1e-6)
