"""The longest lengths alone: a generalised Pareto law above a threshold.

What exceeds a high threshold is close to P(X - u > y | X > u) = (1 + xi y / scale) ** (-1 / xi) (Balkema and de Haan
1974, Pickands 1975). xi > 0 is a power-law tail, 0 an exponential one, below 0 it ends. It is fitted as laws are, above
several thresholds: an xi that keeps changing shows that none was high enough.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from ecoserve.data.laws.fitting import Histogram, KaplanMeier, comparison_grid
from ecoserve.data.laws.law import Floats

#: Quantiles of all lengths that serve as thresholds.
THRESHOLDS: Final = (0.8, 0.9, 0.95, 0.99)
#: Fewer answers that ended above a threshold are no tail to fit.
FEWEST_ABOVE: Final = 50
_XI: Final = (-1.0, 5.0)


@dataclass(frozen=True, slots=True)
class TailFit:
    """A generalised Pareto law (shape ``xi``, ``scale`` in tokens) of the ``n`` lengths above ``threshold`` tokens.

    ``q``: the quantile asked for as threshold; ``share``: P(N > threshold), Kaplan-Meier. ``xi_error``: standard error
    from the observed information; ``None`` where xi <= -0.5, where it has none. ``ks``: largest distance between the
    law of the exceedances and their Kaplan-Meier estimate.
    """

    q: float
    threshold: int
    share: float
    n: int
    censored: int
    xi: float
    scale: float
    xi_error: float | None
    ks: float


def fit_tails(counts: Histogram, thresholds: Sequence[float] = THRESHOLDS) -> list[TailFit]:
    """Fit the tail above each threshold (a quantile of all lengths) with at least 50 ended answers above it.

    Thresholds ascend; none where there are too few lengths, or all above are equal.
    """
    seen = KaplanMeier.of(counts)
    fits = []
    for q in sorted(thresholds):
        u = seen.quantile(q)
        if u is None:
            continue
        over = counts.lengths > u
        above = Histogram(counts.lengths[over] - u, counts.ended[over], counts.cut[over])
        if above.ended.sum() >= FEWEST_ABOVE and np.count_nonzero(above.ended) > 1:
            fits.append(_fit(q, u, float(seen.survival_at([u])[0]), above))
    return fits


def _fit(q: float, threshold: int, share: float, above: Histogram) -> TailFit:
    from scipy import optimize

    # N > u means X > u + 0.5, so an exceedance of y tokens is one of y - 1 to y.
    y = above.lengths.astype(np.float64)
    everything = above.ended + above.cut
    mean = float(np.average(y, weights=everything))

    def loss(at: Floats) -> float:
        xi, scale = float(at[0]), math.exp(float(at[1]))
        high = _survival(y, xi, scale)
        mass = np.maximum(_survival(y - 1.0, xi, scale) - high, 1e-300)
        total = float(above.ended @ np.log(mass)) + float(above.cut @ np.log(np.maximum(high, 1e-300)))
        return -total

    found = optimize.minimize(
        loss,
        [0.1, math.log(mean)],
        method="Nelder-Mead",
        bounds=[_XI, (math.log(1e-3), math.log(mean * 1e4))],
        options={"xatol": 1e-6, "fatol": 1e-7, "maxfev": 4000},
    )
    xi, scale = float(found.x[0]), math.exp(float(found.x[1]))
    seen = KaplanMeier.of(above)
    grid = comparison_grid(seen)
    distance = np.abs(_survival(grid.astype(np.float64), xi, scale) - seen.survival_at(grid))
    return TailFit(
        q=q,
        threshold=threshold,
        share=share,
        n=above.n,
        censored=int(above.cut.sum()),
        xi=xi,
        scale=scale,
        xi_error=_standard_error(loss, np.asarray(found.x)) if xi > -0.5 else None,
        ks=float(distance.max()),
    )


def _survival(y: Floats, xi: float, scale: float) -> Floats:
    if abs(xi) < 1e-9:
        return np.exp(-y / scale)
    inside = np.maximum(1.0 + xi * y / scale, 0.0)
    with np.errstate(divide="ignore"):
        return np.asarray(np.where(inside > 0.0, np.exp(-np.log(np.maximum(inside, 1e-300)) / xi), 0.0))


def _standard_error(loss: Any, at: Floats) -> float | None:
    """Standard error of the first coordinate, from second differences of ``loss`` around its minimum."""
    step = 1e-3
    x, y = np.eye(2) * step
    middle = loss(at)
    xx, yy = ((loss(at + unit) - 2.0 * middle + loss(at - unit)) / step**2 for unit in (x, y))
    xy = (loss(at + x + y) - loss(at + x - y) - loss(at - x + y) + loss(at - x - y)) / (4.0 * step**2)
    determinant = float(np.linalg.det([[xx, xy], [xy, yy]]))
    return math.sqrt(float(yy) / determinant) if determinant > 0.0 and yy > 0.0 else None
