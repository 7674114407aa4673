"""Length bins: where the edges lie, and what a training example says about them.

Inner edges are quantiles of the training lengths, so every bin holds about the same number of responses; the upper tail
is cut once more. The last bin ends at the cap where responses pile up at the largest length seen (generation was
stopped there), else at that length with head-room.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from ecoserve.errors import TraceError
from ecoserve.lengths import MAX_BINS, MAX_LENGTH, ClosedBy, LengthDistribution

#: Share of responses at the largest length from which that length is taken for a cap.
PILE_UP_SHARE = 0.004
#: Quantiles at which the upper tail is cut besides the even ones.
TAIL_LEVELS = (0.99,)


class BinSettings(BaseModel):
    """How length bins are laid."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    bins: int = Field(
        default=40, ge=2, le=MAX_BINS - 8, description="number of quantile bins (fewer where lengths tie)"
    )
    upper: int | None = Field(
        default=None,
        ge=1,
        le=MAX_LENGTH,
        description="largest length in tokens; default: the cap, or the largest seen + 10 %",
    )
    headroom: float = Field(
        default=0.1, ge=0.0, le=10.0, description="head-room above the largest length seen, as a share"
    )


@dataclass(frozen=True, slots=True)
class Bins:
    """Bins ``(edges[k], edges[k + 1]]`` in tokens; ``closed_by`` says what the last edge is."""

    edges: tuple[int, ...]
    closed_by: ClosedBy = "support"

    def __len__(self) -> int:
        return len(self.edges) - 1

    @classmethod
    def fit(cls, lengths: npt.ArrayLike, settings: BinSettings | None = None) -> Bins:
        """Lay bins over training ``lengths`` (tokens, all >= 1); too few different ones are a TraceError."""
        settings = settings or BinSettings()
        x = np.asarray(lengths, dtype=np.int64).ravel()
        if x.size == 0:
            raise TraceError("no lengths to lay bins over")
        top = int(x.max())
        capped = float(np.mean(x == top)) >= PILE_UP_SHARE and x.size >= 100
        upper = settings.upper or (top if capped else min(MAX_LENGTH, math.ceil(top * (1.0 + settings.headroom))))
        levels = [*np.linspace(0.0, 1.0, settings.bins + 1)[1:-1], *TAIL_LEVELS]
        inner = {int(c) for c in np.quantile(x, levels, method="inverted_cdf")}
        # The cap is one length that many answers share: it gets a bin of its own.
        inner.add(top - 1 if capped else top)
        edges = [0, *sorted(c for c in inner if 0 < c < upper), upper]
        if int(x.min()) == top or len(edges) < 3:
            raise TraceError(
                f"every answer is {top} tokens long: there is nothing to predict",
                fix="check the length field and the trace",
            )
        return cls(tuple(edges))

    def index(self, lengths: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """The bin of each length, same shape; what lies above the upper length counts to the last bin."""
        x = np.asarray(lengths)
        found = np.searchsorted(np.asarray(self.edges), x, side="left") - 1
        return np.clip(found, 0, len(self) - 1).astype(np.int64)

    def distribution(self, weights: npt.ArrayLike) -> LengthDistribution:
        """A distribution over the bins in proportion to ``weights``, shape ``[K]``."""
        return LengthDistribution.from_weights(self.edges, np.asarray(weights), self.closed_by)

    def shares(self, lengths: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Share of ``lengths`` in each bin, with half a pseudo-count each, shape ``[K]``."""
        counts = np.bincount(self.index(lengths).ravel(), minlength=len(self)).astype(float) + 0.5
        return np.asarray(counts / counts.sum(), dtype=np.float64)


def soft_targets(
    bins: Bins,
    lengths: Sequence[int],
    samples: Sequence[Sequence[int]],
    censored: Sequence[bool],
    *,
    smoothing: float = 0.0,
) -> npt.NDArray[np.float32]:
    """Each training example's distribution over the bins, shape ``[n, K]``.

    The row's own length and those of other sampled responses count alike. A censored response is longer than its
    length: its share is spread over the bins from its own on as all responses are spread there.

    Args:
        lengths: response length of each example in tokens, shape ``[n]``.
        samples: lengths of other responses to each prompt, ``n`` lists that may be empty.
        censored: whether each answer was cut off, shape ``[n]``.
        smoothing: standard deviation, in bins, of a Gaussian that spreads each length over its neighbours.
    """
    k = len(bins)
    overall = bins.shares([*lengths, *(s for more in samples for s in more)])
    kernel = _kernel(k, smoothing)
    out = np.zeros((len(lengths), k), dtype=np.float64)
    for i, (length, more, cut) in enumerate(zip(lengths, samples, censored, strict=True)):
        share = 1.0 / (1 + len(more))
        own = int(bins.index([length])[0])
        if cut:
            out[i, own:] += share * overall[own:] / overall[own:].sum()
        else:
            out[i] += share * kernel[own]
        if more:
            np.add.at(out[i], np.arange(k), share * kernel[bins.index(list(more))].sum(axis=0))
    return out.astype(np.float32)


def _kernel(k: int, smoothing: float) -> npt.NDArray[np.float64]:
    """Row ``j``: how a length of bin ``j`` is spread over all K bins."""
    if smoothing <= 0.0:
        return np.eye(k)
    away = np.subtract.outer(np.arange(k), np.arange(k)) / smoothing
    weights = np.exp(-0.5 * away**2)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), dtype=np.float64)
