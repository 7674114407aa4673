"""Weighted geometric means of predicted distributions: a convex mix of log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ecoserve.predictor.calibration import cross_entropy, log_softmax

Array = npt.NDArray[np.float64]


def mixed(parts: Sequence[Array], weights: Sequence[float]) -> Array:
    """The weighted sum of each part's log-probabilities, from logits of shape ``[n, K]`` each."""
    return np.asarray(sum(w * log_softmax(p) for p, w in zip(parts, weights, strict=True)), dtype=np.float64)


def fit_weights(parts: Sequence[Array], targets: npt.ArrayLike) -> tuple[float, ...]:
    """The weights with the smallest cross-entropy at the mix's best temperature, to three digits, adding up to 1.

    Args:
        parts: logits of at least two predictors for the same held-out rows, shape ``[n, K]`` each.
        targets: the lengths as distributions over the bins, shape ``[n, K]``.
    """
    from scipy.optimize import minimize
    from scipy.special import softmax

    truth = np.asarray(targets, dtype=np.float64)
    logs = [log_softmax(p) for p in parts]

    def weights(x: Array) -> Array:
        return np.asarray(softmax([*x, 0.0]), dtype=np.float64)

    def loss(x: Array) -> float:
        # The last number is a temperature, which calibration sets afterwards; it must not influence the weights.
        mix = sum(w * p for w, p in zip(weights(x[:-1]), logs, strict=True))
        return cross_entropy(np.asarray(mix) * np.exp(np.clip(x[-1], -3.0, 3.0)), truth)

    start = np.zeros(len(parts))
    start[0] = 1.0
    found = minimize(loss, start, method="Nelder-Mead", options={"xatol": 1e-3, "fatol": 1e-6})
    return _rounded(weights(found.x[:-1]))


def _rounded(weights: Array) -> tuple[float, ...]:
    """Shares to three digits that add up to 1, none below 0: the largest takes the rounding errors."""
    shares = [round(float(w), 3) for w in weights]
    largest = int(np.argmax(weights))
    shares[largest] = round(1.0 - sum(s for i, s in enumerate(shares) if i != largest), 3)
    return tuple(shares)
