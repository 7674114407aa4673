"""Several predictors of the same bins read together: a weighted geometric mean of their distributions.

Rule: a convex mix of log-probabilities. The weights are those with the smallest cross-entropy on held-out rows once
the mix is as sharp as suits them; how sharp it ends up is the calibration's.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ecoserve.predictor.calibration import cross_entropy

Array = npt.NDArray[np.float64]


def mixed(parts: Sequence[Array], weights: Sequence[float]) -> Array:
    """The sum of each part's log-probabilities times its weight, from logits of shape ``[n, K]`` each."""
    return np.asarray(sum(w * _log_softmax(p) for p, w in zip(parts, weights, strict=True)), dtype=np.float64)


def fit_weights(parts: Sequence[Array], targets: npt.ArrayLike) -> tuple[float, ...]:
    """Each part's weight, to three digits; together they make 1.

    Args:
        parts: logits of at least two predictors for the same held-out rows, shape ``[n, K]`` each.
        targets: what really happened, as shares of the bins, shape ``[n, K]``.
    """
    from scipy.optimize import minimize
    from scipy.special import softmax

    truth = np.asarray(targets, dtype=np.float64)
    logs = [_log_softmax(p) for p in parts]

    def weights(x: Array) -> Array:
        return np.asarray(softmax([*x, 0.0]), dtype=np.float64)

    def loss(x: Array) -> float:
        # The sharpness is free too: calibration sets it afterwards, and it must not decide who is believed.
        mix = sum(w * p for w, p in zip(weights(x[:-1]), logs, strict=True))
        return cross_entropy(np.asarray(mix) * np.exp(np.clip(x[-1], -3.0, 3.0)), truth)

    start = np.zeros(len(parts))
    start[0] = 1.0
    found = minimize(loss, start, method="Nelder-Mead", options={"xatol": 1e-3, "fatol": 1e-6})
    return _rounded(weights(found.x[:-1]))


def _rounded(weights: Array) -> tuple[float, ...]:
    """Shares to three digits; the largest makes up for what rounding does to their sum, so that none is below 0."""
    shares = [round(float(w), 3) for w in weights]
    largest = int(np.argmax(weights))
    shares[largest] = round(1.0 - sum(s for i, s in enumerate(shares) if i != largest), 3)
    return tuple(shares)


def _log_softmax(logits: Array) -> Array:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)), dtype=np.float64)
