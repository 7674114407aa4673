"""Predictors and baselines side by side: one table, the same rows, the same bins, the same keys.

Rule: every baseline learns from the training rows that a trained predictor learned from (what needs choosing is chosen
on the rows that were held out of them) and is scored on rows that neither has seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from ecoserve.data import Record
from ecoserve.lengths import LengthDistribution
from ecoserve.predictor.base import Predicts
from ecoserve.predictor.baselines import WINDOW, ConstantMedian, HistoryWindow, PromptLength
from ecoserve.predictor.baselines_nearest import Embed, NearestPrompts
from ecoserve.predictor.baselines_oracle import OtherSample
from ecoserve.predictor.bins import Bins
from ecoserve.predictor.evaluation import (
    measure_latency,
    predict_all,
    request_of,
    score,
    scored_records,
    true_lengths,
)
from ecoserve.predictor.examples import Parts
from ecoserve.predictor.progress import Progress, silent
from ecoserve.predictor.text import Request

#: Keys that mean something of a single number instead of a distribution.
POINT_KEYS: Final = ("rows", "mae_tokens", "within_50", "within_100", "kendall_tau")
#: Rows of the table that are not predictors: they are told another answer to the very same prompt.
UPPER_BOUNDS: Final = ("one_other_sample", "other_samples_mean")


def side_by_side(
    parts: Parts,
    records: Sequence[Record],
    bins: Bins,
    *,
    trained: Mapping[str, Predicts],
    embed: Embed | None = None,
    latency: bool = True,
    progress: Progress = silent,
) -> dict[str, dict[str, float]]:
    """Evaluate baselines and ``trained`` predictors on ``records``.

    Args:
        parts: the training rows: ``fit`` to learn from, ``held`` to choose on.
        records: what to evaluate on; those without a text or a length are left out.
        bins: the bins over which baselines answer.
        trained: predictors by name.
        embed: encoder for the nearest neighbours; without one they are left out.
        latency: whether to measure it, one request after the other.
        progress: told how far it is.

    Returns:
        Name -> the keys of :func:`~ecoserve.predictor.evaluation.evaluate_predictor`: ``constant_median``,
        ``prompt_length``, ``history_window``, ``nearest_prompts``, the names of ``trained``, and where every row has
        another answer to the same prompt :data:`UPPER_BOUNDS` (the latter is a point, so it has :data:`POINT_KEYS`).

    Raises:
        TraceError: if no record has both a text and a length.
    """
    rows = scored_records(records)
    requests = [request_of(r) for r in rows]
    y = true_lengths(rows)
    history = HistoryWindow(bins, parts.fit.lengths[-WINDOW:])
    predictors: dict[str, Predicts] = {
        "constant_median": ConstantMedian.fit(parts.fit, bins),
        "prompt_length": PromptLength.fit(parts.fit, bins=bins),
        "history_window": history,
    }
    if embed is not None:
        progress("embedding prompts", 0, 1)
        predictors["nearest_prompts"] = NearestPrompts.fit(parts.fit, parts.held, bins, embed)
    predictors |= trained
    found: dict[str, dict[str, float]] = {}
    for i, (name, predictor) in enumerate(predictors.items()):
        progress(f"evaluating {name}", i, len(predictors))
        found[name] = score(_asked(predictor, requests, y.astype(int).tolist()), y)
        if latency:
            found[name] |= measure_latency(predictor, requests)
    return found | upper_bounds(parts, rows, bins)


def upper_bounds(parts: Parts, rows: Sequence[Record], bins: Bins) -> dict[str, dict[str, float]]:
    """:data:`UPPER_BOUNDS` on ``rows``; nothing where not every row, here and in training, has another answer."""
    if not all(r.sample_tokens for r in rows) or not (all(parts.fit.samples) and all(parts.held.samples)):
        return {}
    y = true_lengths(rows)
    one = OtherSample.fit(parts.fit, parts.held, bins).given(rows)
    mean = score([LengthDistribution.point(max(1, round(float(np.mean(r.sample_tokens))))) for r in rows], y)
    return {"one_other_sample": score(one, y), "other_samples_mean": {k: mean[k] for k in POINT_KEYS}}


def _asked(predictor: Predicts, requests: Sequence[Request], lengths: Sequence[int]) -> list[LengthDistribution]:
    # Its window moves on from row to row, as it would while serving them.
    if isinstance(predictor, HistoryWindow):
        return predictor.follow(lengths)
    return predict_all(predictor, requests)
