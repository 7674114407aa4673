"""How good the lengths were that a run's policy was told, measured on the requests it served.

Controlled noise, a trained predictor and true lengths land on the same axis this way, whatever made them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ecoserve.serving.runs import RequestRow


def prediction_accuracy(rows: Sequence[RequestRow]) -> dict[str, float | None]:
    """Error in tokens, shares within 50 and 100 tokens, and Kendall's tau-b, over the completed requests.

    Returns:
        The ``prediction_*`` keys of a run. All are None where no request had a prediction; tau is None where it is
        not defined (fewer than two requests, or all lengths equal).
    """
    pairs = [(r.predicted_tokens, r.output_tokens) for r in rows if r.status == "completed" and r.predicted_tokens]
    keys = ("mae_tokens", "within_50", "within_100", "kendall_tau")
    if not pairs:
        return dict.fromkeys((f"prediction_{key}" for key in keys), None)
    told, true = np.asarray(pairs, dtype=np.float64).T
    error = np.abs(told - true)
    return {
        "prediction_mae_tokens": float(error.mean()),
        "prediction_within_50": float((error <= 50).mean()),
        "prediction_within_100": float((error <= 100).mean()),
        "prediction_kendall_tau": _kendall_tau(told, true),
    }


def _kendall_tau(
    a: np.ndarray[tuple[int], np.dtype[np.float64]], b: np.ndarray[tuple[int], np.dtype[np.float64]]
) -> float | None:
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    from scipy.stats import kendalltau  # half a second of import, needed once a run

    tau = float(kendalltau(a, b).statistic)
    return None if math.isnan(tau) else tau
