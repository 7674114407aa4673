"""Fitting what a server learns from its own responses: the linear model, and the adaptation of a predictor.

Rows are in the order in which their responses ended. Errors come from cross-fitting, models that had not learned from
the row, and from the newest rows only. The linear model's distributions are made of them and need no calibration
beside that; an adaptation is calibrated on the newest rows as :mod:`ecoserve.predictor.adaptation_fitting` does.

Two things bend the rows before the last fit. A response that was cut off is replaced by a longer one, drawn from the
errors above its own (Buckley and James, "Linear regression with censored data", Biometrika 1979). Where the level of
the errors changes (CUSUM, Page 1954), as when another model is served, older lengths are moved to the newest level:
what they say about the order of requests is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from ecoserve.errors import TraceError
from ecoserve.predictor.adaptation import Adaptation
from ecoserve.predictor.adaptation_fitting import adapted_bins, choose
from ecoserve.predictor.bins import Bins
from ecoserve.predictor.calibration import Calibration, cdf_of, softmax
from ecoserve.predictor.calibration_fitting import fit_calibration, pinball, quantiles
from ecoserve.predictor.linear import BUCKETS, LEVELS, MOST, Numbers, logits_of

Array = npt.NDArray[np.float64]
#: Rows from which anything is learned; the newest ones: whose errors count, that are compared with history, whose order
#: is; rows of history.
MIN_ROWS: Final = 50
CALIBRATING: Final = 1000
COMPARED: Final = 100
RANKED: Final = 500
HISTORY: Final = 1000
#: Penalty of the ridge, and the counts' scale beside words of norm 1.
RIDGE: Final = 3.0
COUNTS_SCALE: Final = 0.15
_FOLDS: Final = 5
#: Errors at each place along ``mu``: at least, at most, and as a share of the rows. Places at most.
_NEAR: Final = (40, 300, 0.25)
_PLACES: Final = 12
#: A change: standard errors, rows on each side, changes looked for.
CHANGE: Final = 5.0
_BESIDE: Final = 25
_CHANGES: Final = 3
#: Rounds in which what was cut off is replaced; how far errors reach beyond those seen; of the linear solver.
_ROUNDS: Final = 2
_BEYOND: Final = 0.5
_TOLERANCE: Final = 1e-3


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """``n`` answers, oldest first. Words are as in a CSR matrix; there are none where a predictor is adapted."""

    #: float32 ``[n, F]``, int64 ``[n + 1]``, uint16 and uint8
    dense: npt.NDArray[np.float32]
    starts: npt.NDArray[np.int64]
    places: npt.NDArray[np.uint16]
    times: npt.NDArray[np.uint8]
    #: tokens, int64 ``[n]``, and whether the response ended there by itself, bool ``[n]``
    lengths: npt.NDArray[np.int64]
    ended: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.lengths)


@dataclass(frozen=True, slots=True, eq=False)
class Fitted:
    """What was learned of ``n`` rows.

    Attributes:
        learned: of the kind that was asked for. bins, prior, calibration: of the predictor.
        gains: pinball loss (tokens) of history minus the predictor's, on the newest rows, each by a model that had not
            learned from it.
        order: :func:`order_share` of such predictions and the newest lengths.
        since: rows since the last change of level, ``n`` if there was none.
        factor: how much longer responses are than at the beginning of the rows.
    """

    learned: Numbers | Adaptation
    bins: Bins
    prior: Array
    calibration: Calibration
    gains: Array
    order: float
    since: int
    factor: float


#: Log lengths, bins and their shares of all lengths to what was learned, and each row's logits by a model without it.
_Fit = Callable[[Array, Bins, Array], "tuple[Numbers | Adaptation, Array]"]


def fit_linear(rows: Rows) -> Fitted | None:
    """Fit the linear model; None where there is nothing to learn yet."""
    design = _Design(rows)

    def fit(target: Array, bins: Bins, prior: Array) -> tuple[Numbers, Array]:
        mu = design.left_out(target)
        numbers = design.numbers(target, *_near(mu[-CALIBRATING:], (target - mu)[-CALIBRATING:]))
        return numbers, logits_of(numbers.cdf(mu, bins.edges), prior)

    return _fit(rows, fit)


def fit_adaptation_rows(rows: Rows, base_edges: tuple[int, ...], base_calibration: Calibration) -> Fitted | None:
    """Fit the adaptation of a predictor whose features (:func:`~.adaptation.base_features`) are the rows' numbers.

    None where there is nothing to learn yet.
    """
    features = rows.dense.astype(np.float64)
    cdf = base_calibration.cdf(features[:, 1 - len(base_edges) :])
    folds = np.arange(len(rows)) % (2 * _FOLDS)

    def fit(target: Array, bins: Bins, prior: Array) -> tuple[Adaptation, Array]:
        found, left_out = choose(features, cdf, base_edges, np.exp(target), bins, prior, folds)
        return found, np.log(left_out)

    return _fit(rows, fit, base_edges)


def _fit(rows: Rows, fit: _Fit, base_edges: tuple[int, ...] = (0, 1)) -> Fitted | None:
    if int(rows.ended.sum()) < MIN_ROWS:
        return None
    seen = np.log(rows.lengths)
    target, moved, start = seen, np.zeros(len(rows)), 0
    try:
        bins, prior = _bins(target, rows, base_edges)
        learned, logits = fit(target, bins, prior)
        for _ in range(1 if rows.ended.all() else _ROUNDS):
            middle = np.log(_medians(logits, bins))
            known = seen + moved + _missing(seen + moved - middle, rows.ended)
            more, since = level_changes(known - middle)
            if not since and rows.ended.all():
                break
            target, moved, start = known + more, moved + more, max(start, since)
            bins, prior = _bins(target, rows, base_edges)
            learned, logits = fit(target, bins, prior)
    except TraceError:
        # All lengths are equal.
        return None
    edges, calibration = np.asarray(bins.edges, dtype=np.float64), Calibration()
    if isinstance(learned, Adaptation):
        newest = np.exp(target[-CALIBRATING:])
        calibration = fit_calibration(logits[-CALIBRATING:], newest[:, None].tolist(), edges, None)
    compared = np.flatnonzero(rows.ended)[-COMPARED:]
    history = cdf_of(bins.shares(rows.lengths[-HISTORY:])[None])
    lengths = rows.lengths[compared].astype(np.float64)
    gains = pinball(np.repeat(history, len(lengths), axis=0), edges, lengths) - pinball(
        calibration.cdf(logits[compared]), edges, lengths
    )
    ranked = np.flatnonzero(rows.ended)[-RANKED:]
    means = calibration.probabilities(logits[ranked]) @ ((edges[:-1] + edges[1:] + 1.0) / 2.0)
    order = order_share(means, rows.lengths[ranked] * np.exp(moved[ranked]))
    return Fitted(learned, bins, prior, calibration, gains, order, len(rows) - start, float(np.exp(moved[0])))


def order_share(predicted: npt.ArrayLike, lengths: npt.ArrayLike) -> float:
    """What serving ``n`` requests in the order of ``predicted`` saves of all waiting, as a share of what the true order
    saves: 1 for the true order, 0 for a random one. One after the other, all there at the start (Gini correlation,
    Schechtman and Yitzhaki, 1987)."""
    from scipy.stats import rankdata

    x = np.asarray(lengths, dtype=np.float64)
    best = np.cov(x, rankdata(x))[0, 1] if len(x) > 1 else 0.0
    return float(np.cov(x, rankdata(predicted))[0, 1] / best) if best > 0.0 else 0.0


def _bins(target: Array, rows: Rows, base_edges: tuple[int, ...]) -> tuple[Bins, Array]:
    lengths = np.maximum(np.rint(np.exp(target)), 1.0)
    bins = adapted_bins(lengths, base_edges, tuple((~rows.ended).tolist()))
    return bins, bins.shares(lengths[-HISTORY:].astype(np.int64))


def _medians(logits: Array, bins: Bins) -> Array:
    edges = np.asarray(bins.edges, dtype=np.float64)
    return quantiles(cdf_of(softmax(logits)), edges, np.array([0.5]))[:, 0]


def _missing(errors: Array, ended: npt.NDArray[np.bool_]) -> Array:
    """How much longer each response would have been that was cut off, in logarithms; 0 for the others."""
    known = np.sort(errors[ended])
    first = np.searchsorted(known, errors, side="right")
    drawn = np.random.default_rng(0).integers(np.minimum(first, len(known) - 1), len(known))
    return np.where(ended | (first == len(known)), 0.0, known[drawn] - errors)


def level_changes(errors: Array) -> tuple[Array, int]:
    """How much to add to each of ``n`` errors so that all have the newest level, shape ``[n]``, and since when it is.

    The second is 0 where no change was found.
    """
    n, start = len(errors), 0
    moved = np.zeros(n)
    spread = float(np.median(np.abs(np.diff(errors)))) / 0.954
    if n < 3 * _BESIDE or spread <= 0.0:
        return moved, 0
    k = np.arange(_BESIDE, n - _BESIDE + 1)
    for _ in range(_CHANGES):
        now = errors + moved
        near = np.clip(now - np.median(now), -3.0 * spread, 3.0 * spread)
        sums = np.cumsum(near - near.mean())[k - 1]
        z = np.abs(sums) / (spread * np.sqrt(k * (n - k) / n))
        at = int(np.argmax(z))
        if z[at] < CHANGE:
            break
        cut = int(k[at])
        moved[:cut] += np.median(now[cut:]) - np.median(now[:cut])
        start = max(start, cut)
    return moved, start


def _near(mu: Array, errors: Array) -> tuple[Array, Array]:
    """Places along ``mu``, shape ``[J]``, and quantiles of the errors of the rows nearest to each, ``[J, L]``."""
    least, most, share = _NEAR
    count = min(len(mu), max(least, min(most, int(share * len(mu)))))
    places = np.unique(np.quantile(mu, np.linspace(0.005, 0.995, min(_PLACES, max(2, len(mu) // least)))))
    found = np.empty((len(places), len(LEVELS)))
    for row, place in zip(found, places, strict=True):
        near = np.sort(errors[np.argpartition(np.abs(mu - place), count - 1)[:count]])
        row[:] = np.interp(LEVELS, (np.arange(count) + 1.0) / (count + 1.0), near)
        # Beyond the errors that were seen; the quantiles have to ascend.
        row[0], row[-1] = near[0] - _BEYOND, near[-1] + _BEYOND
    return places, np.maximum.accumulate(found + 1e-6 * np.arange(len(LEVELS)), axis=1)


class _Design:
    """The regression's matrix: standardised counts beside TF-IDF of norm 1."""

    def __init__(self, rows: Rows) -> None:
        from scipy import sparse

        n = len(rows)
        self.means = rows.dense.mean(axis=0, dtype=np.float64)
        self.scales = np.maximum(rows.dense.std(axis=0, dtype=np.float64), 1e-6)
        counts = np.clip((rows.dense - self.means) / self.scales, -MOST, MOST) * COUNTS_SCALE
        seen = np.bincount(rows.places, minlength=BUCKETS)
        self.idf = np.log((1.0 + n) / (1.0 + seen)) + 1.0
        # A word of one request says nothing about another.
        self.idf[seen < 2] = 0.0
        values = (1.0 + np.log(rows.times)) * self.idf[rows.places]
        of_row = np.repeat(np.arange(n), np.diff(rows.starts))
        sizes = np.sqrt(np.bincount(of_row, values**2, minlength=n))
        values /= np.maximum(sizes, 1e-12)[of_row]
        words = sparse.csr_matrix((values, rows.places.astype(np.int32), rows.starts), shape=(n, BUCKETS))
        self._x = sparse.hstack([sparse.csr_matrix(counts), words]).tocsr()

    def numbers(self, target: Array, places: Array, errors: Array) -> Numbers:
        weights, intercept = self._fit(np.arange(len(target)), target)
        split = len(self.means)
        dense, words = weights[:split] * COUNTS_SCALE, weights[split:]
        return Numbers(self.means, self.scales, dense, self.idf, words, np.array([intercept]), places, errors)

    def left_out(self, target: Array) -> Array:
        """``mu`` of each row by a model of the other folds, shape ``[n]``."""
        fold = np.arange(len(target)) % _FOLDS
        mu = np.empty(len(target))
        for number in range(_FOLDS):
            held = fold == number
            weights, intercept = self._fit(np.flatnonzero(~held), target)
            mu[held] = self._x[held] @ weights + intercept
        return mu

    def _fit(self, chosen: npt.NDArray[np.intp], target: Array) -> tuple[Array, float]:
        from sklearn.linear_model import Ridge

        found = Ridge(alpha=RIDGE, solver="sparse_cg", tol=_TOLERANCE).fit(self._x[chosen], target[chosen])
        return np.asarray(found.coef_), float(found.intercept_)
