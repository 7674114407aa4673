"""How good a predictor is: the one definition of the evaluation's keys.

The point prediction is the distribution's median; ranking is Kendall's tau-b between it and the true length; a quantile
q covers a response whose length is at most quantile(q), so its coverage should be q.

``crps`` is the continuous ranked probability score over whole tokens: the sum over n of
(P(length <= n) - [true length <= n])^2 (Gneiting and Raftery, "Strictly Proper Scoring Rules, Prediction, and
Estimation", JASA 2007): the absolute error of a distribution, and of a single point exactly that.

``ece`` is the expected calibration error (Guo et al., "On Calibration of Modern Neural Networks", ICML 2017) of the
stated P(length <= n). Events are all pairs of a row and one of 19 lengths n, the quantiles 0.05, 0.10, ... 0.95 of the
rows' true lengths, so that predictors with other bins answer the same questions. They fall into 15 ranges of equal
width by the stated probability; ``ece`` is the mean over events of |mean stated probability - share that came true|.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from ecoserve.accuracy import kendall_tau, point_accuracy
from ecoserve.data import Record
from ecoserve.errors import TraceError
from ecoserve.lengths import LengthDistribution
from ecoserve.predictor.base import Predicts
from ecoserve.predictor.bins import Bins
from ecoserve.predictor.examples import usable
from ecoserve.predictor.text import Request, asked_of

#: Quantiles whose coverage is reported.
COVERED = (0.5, 0.8, 0.9, 0.95)
#: Quantiles over which the pinball loss is averaged.
PINBALL_LEVELS = tuple(round(0.05 * i, 2) for i in range(1, 20))
#: Requests that are asked one by one for the latency, at most.
LATENCY_REQUESTS = 200
#: Ranges of the stated probability within which ``ece`` compares it with what happened.
ECE_RANGES = 15
_BATCH = 512


def evaluate_predictor(predictor: Predicts, records: Iterable[Record]) -> dict[str, float]:
    """Measure a predictor on those of ``records`` that have a text and a length; none is a TraceError.

    Returns:
        ``rows``; ``mae_tokens``; ``within_50``, ``within_100`` (shares of rows whose median is that near to the
        length); ``kendall_tau`` (0 for a constant prediction, which ranks nothing); ``bin_accuracy`` (share of rows
        whose likeliest bin holds the length); ``pinball_loss`` (tokens, mean over the quantiles 0.05, 0.10, ... 0.95);
        ``crps`` (tokens); ``ece`` (0 to 1); ``coverage_50/80/90/95`` (shares); ``latency_p50_ms``, ``latency_p99_ms``
        (one request at a time).
    """
    rows = scored_records(records)
    requests = [asked_of(r) or "" for r in rows]
    return {**score(predict_all(predictor, requests), true_lengths(rows)), **measure_latency(predictor, requests)}


def scored_records(records: Iterable[Record]) -> list[Record]:
    """Those of ``records`` that have both a text and a length; none at all is a TraceError."""
    rows = usable(records)
    if not rows:
        what = "no record has both a prompt's text and a length to evaluate on"
        raise TraceError(what, fix="give a trace with texts, or name the lengths with --length-field")
    return rows


def true_lengths(records: Sequence[Record]) -> npt.NDArray[np.float64]:
    """Response lengths (tokens) of ``n`` records that all have one, shape ``[n]``."""
    return np.asarray([r.response_tokens for r in records], dtype=np.float64)


def predict_all(predictor: Predicts, requests: Sequence[Request]) -> list[LengthDistribution]:
    """The predictions of any number of requests, in their order, asked for in batches."""
    predicted: list[LengthDistribution] = []
    for start in range(0, len(requests), _BATCH):
        predicted += predictor.predict(requests[start : start + _BATCH])
    return predicted


def score(predicted: Sequence[LengthDistribution], lengths: npt.ArrayLike) -> dict[str, float]:
    """The keys of :func:`evaluate_predictor` about accuracy, for ``n`` predictions and true lengths (tokens)."""
    y = np.asarray(lengths, dtype=np.float64)
    quantiles = np.asarray([[d.quantile(q) for q in PINBALL_LEVELS] for d in predicted], dtype=np.float64)
    medians = np.asarray([d.quantile(0.5) for d in predicted], dtype=np.float64)
    levels = np.asarray(PINBALL_LEVELS)
    below = y[:, None] - quantiles
    pinball = np.where(below >= 0, levels * below, (levels - 1.0) * below)
    return {
        "rows": len(y),
        **point_accuracy(medians, y),
        "kendall_tau": kendall_tau(medians, y) or 0.0,
        "bin_accuracy": float(
            np.mean([Bins(d.edges).index(n) == np.argmax(d.probs) for d, n in zip(predicted, y, strict=True)])
        ),
        "pinball_loss": float(pinball.mean()),
        "crps": float(np.mean([crps(d, n) for d, n in zip(predicted, y, strict=True)])),
        "ece": expected_calibration_error(predicted, y),
        **{f"coverage_{round(100 * q)}": float(np.mean(y <= [d.quantile(q) for d in predicted])) for q in COVERED},
    }


def crps(distribution: LengthDistribution, length: float) -> float:
    """The continuous ranked probability score (tokens) of one distribution, in closed form over its bins."""
    edges, before = np.asarray(distribution.edges, dtype=np.float64), length - 1.0
    # Between two knots P(length <= n) is linear, and all n are either short of the true length or not.
    knots = np.union1d(edges, [before])
    cdf = np.interp(knots, edges, distribution.cdf)
    width = np.diff(knots)
    short = knots[1:] <= before
    first, last = np.where(short, cdf[:-1], 1.0 - cdf[:-1]), np.where(short, cdf[1:], 1.0 - cdf[1:])
    rise = last - first
    # Sum over j = 1 .. width of (first + rise * j / width)^2.
    squares = (
        width * first**2 + first * rise * (width + 1.0) + rise**2 * (width + 1.0) * (2.0 * width + 1.0) / (6.0 * width)
    )
    return float(squares.sum())


def expected_calibration_error(predicted: Sequence[LengthDistribution], lengths: npt.ArrayLike) -> float:
    """``ece`` of ``n`` predictions and true lengths (tokens), as the module defines it: 0 (best) to 1."""
    y = np.asarray(lengths, dtype=np.float64)
    asked = np.quantile(y, PINBALL_LEVELS, method="inverted_cdf")
    stated = 1.0 - np.stack([d.survival_at(asked) for d in predicted])
    happened = y[:, None] <= asked
    group = np.minimum((stated * ECE_RANGES).astype(np.int64), ECE_RANGES - 1).ravel()
    gap = np.bincount(group, (stated - happened).ravel(), minlength=ECE_RANGES)
    return float(np.abs(gap).sum() / stated.size)


def measure_latency(predictor: Predicts, requests: Sequence[Request]) -> dict[str, float]:
    """``latency_p50_ms`` and ``latency_p99_ms`` of one request at a time, over at most 200 requests spread evenly."""
    step = max(1, len(requests) // LATENCY_REQUESTS)
    chosen = list(requests)[::step][:LATENCY_REQUESTS]
    for request in chosen[:5]:
        predictor.predict([request])
    taken = []
    for request in chosen:
        start = time.perf_counter()
        predictor.predict([request])
        taken.append(1000.0 * (time.perf_counter() - start))
    p50, p99 = np.percentile(taken, [50, 99])
    return {"latency_p50_ms": float(p50), "latency_p99_ms": float(p99)}
