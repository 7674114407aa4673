"""Calibration: make stated probabilities agree with how often things happen.

Rule: one temperature T divides the logits before the softmax; it is chosen on rows that were not trained on, as the
one with the smallest negative log-likelihood (Guo et al., "On Calibration of Modern Neural Networks", ICML 2017). It
changes no ranking of bins within a row, only how sharp the distributions are.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

Array = npt.NDArray[np.float64]
#: Temperatures outside of this say that something else is wrong.
BOUNDS = (0.2, 5.0)


class Calibration(BaseModel):
    """``calibration.json``: how logits become probabilities."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    method: Literal["temperature"] = "temperature"
    temperature: float = Field(default=1.0, ge=BOUNDS[0], le=BOUNDS[1])
    #: rows it was chosen on
    rows: int = Field(default=0, ge=0)
    #: mean negative log-likelihood per row, in nats, before and after
    nll_before: float | None = None
    nll_after: float | None = None

    def probabilities(self, logits: npt.ArrayLike) -> Array:
        """Probabilities of shape ``[n, K]`` from logits of shape ``[n, K]``."""
        return softmax(np.asarray(logits, dtype=np.float64) / self.temperature)


def fit_temperature(logits: npt.ArrayLike, targets: npt.ArrayLike) -> Calibration:
    """Choose the temperature on held-out rows.

    Args:
        logits: shape ``[n, K]``.
        targets: what really happened, as shares of the bins (one-hot where the length is known), shape ``[n, K]``.
    """
    from scipy.optimize import minimize_scalar

    z = np.asarray(logits, dtype=np.float64)
    t = np.asarray(targets, dtype=np.float64)

    def loss(log_temperature: float) -> float:
        return cross_entropy(z / np.exp(log_temperature), t)

    low, high = np.log(BOUNDS)
    found = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-4})
    temperature = float(np.clip(np.exp(found.x), *BOUNDS))
    before, after = loss(0.0), loss(np.log(temperature))
    if after >= before:
        temperature, after = 1.0, before
    return Calibration(temperature=temperature, rows=len(z), nll_before=before, nll_after=after)


def softmax(logits: Array) -> Array:
    """Softmax over the last axis."""
    e = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(e / e.sum(axis=-1, keepdims=True), dtype=np.float64)


def cross_entropy(logits: Array, targets: Array) -> float:
    """Mean of ``-sum(targets * log softmax(logits))`` over rows, in nats."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return float(-(targets * log_p).sum(axis=-1).mean())
