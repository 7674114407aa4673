"""Accuracy of predicted lengths against true ones: the one definition, for profiles, runs and evaluations."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt


def point_accuracy(predicted: npt.ArrayLike, true: npt.ArrayLike) -> dict[str, float]:
    """``mae_tokens``, ``within_50`` and ``within_100`` (shares) of ``n`` predictions (both shape ``[n]``, tokens)."""
    error = np.abs(np.asarray(predicted, dtype=np.float64) - np.asarray(true, dtype=np.float64))
    return {"mae_tokens": float(error.mean()), **{f"within_{n}": float((error <= n).mean()) for n in (50, 100)}}


def kendall_tau(a: npt.ArrayLike, b: npt.ArrayLike) -> float | None:
    """Kendall's tau-b of two arrays (shape ``[n]``); None where it is not defined: n < 2, or one is constant."""
    if np.size(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    from scipy.stats import kendalltau  # half a second of import

    tau = float(kendalltau(a, b).statistic)
    return None if math.isnan(tau) else tau
