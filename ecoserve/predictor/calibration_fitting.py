"""Choosing and fitting a predictor's calibration on held-out rows.

Rule: the held-out rows are cut in two by chance. On the smaller part the way to probabilities is chosen (the softmax as
it is, a temperature, isotonic regression) by cross-validated pinball loss; a less simple way must be better by more
than the standard error of the difference. The other part does nothing but bound: its scores make the conformal maps, so
that their guarantee holds as stated (:mod:`ecoserve.predictor.conformal`), whatever was chosen.

Bands of prompt length are cut at quantiles of the first part's prompts, as many as leave enough rows in each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from ecoserve.predictor.calibration import Calibration, GroupBounds, cdf_of, fit_temperature, softmax
from ecoserve.predictor.conformal import ConformalMap, scores_of
from ecoserve.predictor.text import RequestView

Array = npt.NDArray[np.float64]
#: Share of the held-out rows that choose; the others bound.
CHOOSING: Final = 0.2
#: Fewer rows than this bound nothing: the 0.9 quantile would cover 90 % give or take 3.
MIN_BOUNDING: Final = 100
#: Rows for each band of prompt length, and bands at most.
BAND_ROWS: Final = 300
MOST_BANDS: Final = 4
#: Rows of one band below which it goes by the map of all.
MIN_BAND_ROWS: Final = 200
#: Quantiles over which the pinball loss is averaged.
LOSS_LEVELS: Final = np.round(np.arange(0.05, 0.96, 0.05), 2)
_FOLDS: Final = 5
_POINTS: Final = 33
#: Weight of the straight line in the isotonic map: where regression is flat, no length may become impossible.
_STRAIGHT: Final = 0.02


def fit_calibration(
    logits: npt.ArrayLike,
    lengths: npt.ArrayLike,
    edges: npt.ArrayLike,
    views: Sequence[RequestView],
    *,
    seed: int = 0,
) -> Calibration:
    """Calibrate on rows that did not teach.

    Args:
        logits: shape ``[n, K]``, n >= 1.
        lengths: true RLs in tokens, shape ``[n]``; of a cut-off answer, where it was cut.
        edges: ``K + 1`` bin edges in tokens.
        views: the ``n`` requests.
        seed: decides which rows choose and which bound.

    Returns:
        the calibration; with bounds if there are rows enough for them.
    """
    z = np.asarray(logits, dtype=np.float64)
    e = np.asarray(edges, dtype=np.float64)
    y = np.asarray(lengths, dtype=np.float64)
    order = np.random.default_rng(seed).permutation(len(z))
    count = round(CHOOSING * len(z))
    if len(z) - count < MIN_BOUNDING:
        return choose(z, y, e)
    first, second = order[:count], order[count:]
    chosen = choose(z[first], y[first], e)
    scores = scores_of(chosen.before_bounds(z[second]), e, y[second])
    characters = np.asarray([len(v.prompt) for v in views])
    bounds = fit_bounds(scores, characters[second], cut_at=characters[first])
    return chosen.model_copy(update={"bounds": bounds})


def choose(logits: Array, lengths: Array, edges: Array) -> Calibration:
    """The best of the ways from logits to probabilities, without bounds; arguments as for :func:`fit_calibration`."""
    targets = _one_hot(lengths, edges)
    fitted = fit_temperature(logits, targets)
    folds = np.arange(len(logits)) % _FOLDS
    if len(logits) < 10 * _FOLDS:
        return fitted
    ways: dict[str, Callable[[Array, Array], Calibration]] = {
        "softmax": lambda z, y: Calibration(rows=len(z)),
        "temperature": lambda z, y: fit_temperature(z, _one_hot(y, edges)),
        "isotonic": lambda z, y: fit_isotonic(z, y, edges),
    }
    losses: dict[str, Array] = {}
    for name, fit in ways.items():
        loss = np.empty(len(logits))
        for fold in range(_FOLDS):
            held = folds == fold
            way = fit(logits[~held], lengths[~held])
            loss[held] = pinball(way.before_bounds(logits[held]), edges, lengths[held])
        losses[name] = loss
    best = "softmax"
    for name in ("temperature", "isotonic"):
        gain = losses[best] - losses[name]
        if gain.mean() > gain.std() / np.sqrt(len(gain)):
            best = name
    chosen = {"softmax": fitted.model_copy(update={"temperature": 1.0, "nll_after": fitted.nll_before})}
    chosen["temperature"] = fitted
    if best == "isotonic":
        chosen["isotonic"] = fit_isotonic(logits, lengths, edges)
    return chosen[best].model_copy(update={"pinball": {name: float(x.mean()) for name, x in losses.items()}})


def fit_isotonic(logits: Array, lengths: Array, edges: Array) -> Calibration:
    """Isotonic regression of "RL <= edge" on the softmax's CDF, over all rows and inner edges."""
    from sklearn.isotonic import IsotonicRegression

    before = cdf_of(softmax(logits))[:, 1:-1]
    within = lengths[:, None] <= edges[None, 1:-1]
    found = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip").fit(before.ravel(), within.ravel())
    x = np.linspace(0.0, 1.0, _POINTS)
    inner = (1.0 - _STRAIGHT) * found.predict(x[1:-1]) + _STRAIGHT * x[1:-1]
    y = np.concatenate([[0.0], inner, [1.0]])
    points = tuple((float(a), float(b)) for a, b in zip(x, y, strict=True))
    return Calibration(method="isotonic", isotonic=points, rows=len(logits))


def fit_bounds(scores: Array, characters: npt.NDArray[np.int64], *, cut_at: npt.NDArray[np.int64]) -> GroupBounds:
    """Conformal maps of all rows and by band.

    Args:
        scores: of the ``n`` bounding rows (:func:`~ecoserve.predictor.conformal.scores_of`).
        characters: lengths of their prompts, shape ``[n]``.
        cut_at: lengths of other prompts, at whose quantiles the bands are cut.
    """
    bands = max(1, min(MOST_BANDS, len(scores) // BAND_ROWS))
    cuts = tuple(int(c) for c in np.unique(np.quantile(cut_at, np.arange(1, bands) / bands, method="inverted_cdf")))
    band = np.searchsorted(np.asarray(cuts), characters, side="left")
    parts = [scores[band == b] for b in range(len(cuts) + 1)]
    maps = tuple(ConformalMap.fit(part) if len(part) >= MIN_BAND_ROWS else None for part in parts)
    return GroupBounds(whole=ConformalMap.fit(scores), band_characters=cuts, bands=maps)


def quantiles(cdf: Array, edges: Array, levels: Array) -> Array:
    """Quantiles in tokens, shape ``[n, len(levels)]``, as :class:`~ecoserve.lengths.LengthDistribution` gives them."""
    last = len(edges) - 2
    k = np.minimum((cdf[:, 1:, None] < levels).sum(axis=1), last)
    rows = np.arange(len(cdf))[:, None]
    share = np.maximum(cdf[rows, k + 1] - cdf[rows, k], 1e-300)
    low, high = edges[k], edges[k + 1]
    found = low + np.ceil((levels - cdf[rows, k]) / share * (high - low) - 1e-9)
    return np.asarray(np.clip(found, low + 1, high), dtype=np.float64)


def pinball(cdf: Array, edges: Array, lengths: Array) -> Array:
    """Mean pinball loss of each row over :data:`LOSS_LEVELS`, in tokens, shape ``[n]``."""
    off = lengths[:, None] - quantiles(cdf, edges, LOSS_LEVELS)
    return np.asarray(np.maximum(LOSS_LEVELS * off, (LOSS_LEVELS - 1.0) * off).mean(axis=1), dtype=np.float64)


def _one_hot(lengths: Array, edges: Array) -> Array:
    k = np.clip(np.searchsorted(edges, lengths, side="left") - 1, 0, len(edges) - 2)
    return np.asarray(np.eye(len(edges) - 1)[k], dtype=np.float64)
