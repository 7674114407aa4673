"""Lengths as they were seen (some cut off), fitting laws to them, and saying how well they fit.

A length n that is marked as cut off means only that the answer would have been longer than n. Everything is computed
from counts of distinct lengths, so that a million rows cost what a few thousand do. Fits are of
maximum likelihood on whole numbers: an answer of n tokens counts with P(N = n), one cut off at n with P(N > n). The fit
is described by distances; with thousands of lengths a test rejects every law.

* ``ks``: the largest difference between the law's and the Kaplan-Meier distribution function.
* ``anderson_darling``: the squared difference weighted by 1 / (F (1 - F)), which counts the tails, averaged over the
  law: the discrete statistic of Choulakian, Lockhart and Stephens (1994) divided by n.
  Both are taken as far as enough answers were not cut off (:attr:`KaplanMeier.reach`).
* ``quantiles``: of the law and of the lengths, where a cache is concerned.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from ecoserve.data.laws.law import LAWS, LONGEST, Continuous, Floats, Ints, Law, continuous
from ecoserve.errors import TraceError

#: Fewer lengths say nothing about a law.
FEWEST: Final = 10
#: Quantiles at which law and lengths are compared.
QUANTILES: Final = (0.1, 0.5, 0.9, 0.99)
_DENSE: Final = 4096
#: Shape parameters are looked for between these; a law that runs into one has become a simpler law.
_SHAPES: Final = (0.02, 500.0)
#: How many answers one answer may stand for in an estimate that a law is compared with.
_MOST_FOR: Final = 10


@dataclass(frozen=True, slots=True)
class Histogram:
    """Distinct lengths (ascending, tokens >= 1), and how many answers ended and were cut off at each; shape ``[k]``."""

    lengths: Ints
    ended: Ints
    cut: Ints

    @property
    def n(self) -> int:
        return int(self.ended.sum() + self.cut.sum())

    @classmethod
    def of(cls, lengths: npt.ArrayLike, censored: npt.ArrayLike | None = None) -> Histogram:
        """Count ``lengths`` (shape ``[n]``, whole, >= 1); ``censored`` (shape ``[n]``) marks those cut off."""
        given = np.asarray(lengths)
        if given.ndim != 1 or given.dtype.kind not in "iuf":
            raise TraceError("lengths must be a flat list of whole numbers")
        if given.size and not (np.all(given == np.floor(given)) and given.min() >= 1 and given.max() <= LONGEST):
            raise TraceError(f"lengths must be whole numbers from 1 to {LONGEST}")
        x = given.astype(np.int64)
        cut = np.zeros(len(x), dtype=bool) if censored is None else np.asarray(censored, dtype=bool)
        if cut.shape != x.shape:
            raise TraceError(f"{len(x)} lengths and {cut.size} marks of being cut off do not belong together")
        size = int(x.max()) + 1 if len(x) else 1
        ended_at, cut_at = np.bincount(x[~cut], minlength=size), np.bincount(x[cut], minlength=size)
        seen = np.flatnonzero(ended_at + cut_at)
        return cls(seen.astype(np.int64), ended_at[seen].astype(np.int64), cut_at[seen].astype(np.int64))


@dataclass(frozen=True, slots=True)
class KaplanMeier:
    """The share of answers longer than n, from lengths of which some were cut off (Kaplan and Meier, 1958).

    ``survival``: P(N > length), constant up to the next of the ``lengths`` at which answers ended (ascending; shape
    ``[k]`` both). Up to ``reach`` one answer stands for at most :data:`_MOST_FOR`, enough to compare a law with.
    """

    lengths: Ints
    survival: Floats
    reach: int

    @classmethod
    def of(cls, counts: Histogram) -> KaplanMeier:
        everything = counts.ended + counts.cut
        # Answers at least as long as each of the lengths, as far as is known.
        at_risk = counts.n - np.cumsum(everything) + everything
        survival = np.cumprod(1.0 - counts.ended / np.maximum(at_risk, 1))
        ends = counts.ended > 0
        would_be = counts.n * np.concatenate(([1.0], survival[:-1]))
        known = np.flatnonzero(_MOST_FOR * at_risk >= would_be - 1e-6)
        return cls(counts.lengths[ends], survival[ends], int(counts.lengths[known[-1]]) if len(known) else 0)

    def survival_at(self, lengths: npt.ArrayLike) -> Floats:
        """P(N > n) for each n of ``lengths``; beyond the last as at it."""
        index = np.searchsorted(self.lengths, np.asarray(lengths), side="right")
        return np.concatenate(([1.0], self.survival))[index]

    def quantile(self, q: float) -> int | None:
        """The least length that at least a share ``q`` does not exceed, or ``None``: too many were cut off before."""
        # The product of many factors may miss a share by rounding.
        reached = np.flatnonzero(self.survival <= 1.0 - q + 1e-12)
        return int(self.lengths[reached[0]]) if len(reached) else None


@dataclass(frozen=True, slots=True)
class QuantileFit:
    """One quantile (``q``), in tokens: as seen (``None``: too many answers were cut off to see it) and fitted."""

    q: float
    seen: int | None
    fitted: int


@dataclass(frozen=True, slots=True)
class FittedLaw:
    """A law fitted to ``n`` lengths, of which ``censored`` were cut off, and how well it fits.

    ``aic``, ``bic``: Akaike's and Schwarz's criterion, smaller is better; ``ks``: largest distance of the distribution
    functions, 0 to 1; ``anderson_darling``: distance that emphasises the tails, per length; ``quantiles``: seen and
    fitted.
    """

    law: Law
    n: int
    censored: int
    log_likelihood: float
    aic: float
    bic: float
    ks: float
    anderson_darling: float
    quantiles: tuple[QuantileFit, ...]

    @property
    def chance_ks(self) -> float:
        """The ``ks`` that 5 % of samples of this size exceed when the law was known beforehand (Kolmogorov)."""
        return 1.358 / math.sqrt(self.n)


def fit_laws(counts: Histogram, names: Iterable[str] = tuple(LAWS), *, longest: int | None = None) -> list[FittedLaw]:
    """Each law of ``names`` fitted as by :func:`fit_law`; the best (smallest AIC) first."""
    return sorted((fit_law(name, counts, longest=longest) for name in names), key=lambda fit: fit.aic)


def fit_law(name: str, counts: Histogram, *, longest: int | None = None) -> FittedLaw:
    """Fit one law of :data:`~ecoserve.data.laws.LAWS` by maximum likelihood.

    ``longest``: longer answers were left out of the lengths, and the law is fitted and returned as conditioned on that.
    Raises TraceError if there is no such law, or the lengths do not allow a fit: fewer than 10, all cut off, all that
    ended equally long, one above ``longest``.
    """
    from scipy import optimize

    if name not in LAWS:
        raise TraceError(f"{name!r} is no law that can be fitted", fix=f"one of {', '.join(LAWS)}")
    _check(counts, longest)
    start, bounds = _start(name, counts)

    def loss(at: Floats) -> float:
        parameters = dict(zip(LAWS[name], np.exp(at).tolist(), strict=True))
        return -_log_likelihood(continuous(name, parameters), counts, longest)

    found = optimize.minimize(
        loss, start, method="Nelder-Mead", bounds=bounds, options={"xatol": 1e-6, "fatol": 1e-7, "maxfev": 4000}
    )
    law = Law(name, dict(zip(LAWS[name], np.exp(found.x).tolist(), strict=True)), longest)
    return judge(law, counts, fitted_parameters=len(start))


def judge(law: Law, counts: Histogram, *, fitted_parameters: int = 0) -> FittedLaw:
    """How well ``law``, of which ``fitted_parameters`` were fitted to ``counts``, describes them."""
    likelihood = _log_likelihood(continuous(law.name, law.parameters), counts, law.longest)
    seen = KaplanMeier.of(counts)
    grid = comparison_grid(seen)
    above = law.survival_at(grid)
    difference = above - seen.survival_at(grid)
    probability = -np.diff(above, prepend=1.0)
    spread = above * (1.0 - above)
    weighted = np.divide(difference**2 * probability, spread, out=np.zeros_like(spread), where=spread > 0.0)
    return FittedLaw(
        law=law,
        n=counts.n,
        censored=int(counts.cut.sum()),
        log_likelihood=likelihood,
        aic=2 * fitted_parameters - 2 * likelihood,
        bic=fitted_parameters * math.log(counts.n) - 2 * likelihood,
        ks=float(np.abs(difference).max()),
        anderson_darling=float(weighted.sum()),
        quantiles=tuple(QuantileFit(q, seen.quantile(q), law.quantile(q)) for q in QUANTILES),
    )


def comparison_grid(seen: KaplanMeier) -> Ints:
    """The lengths at which a law is compared with ``seen``, ascending, shape ``[k]``.

    Before and at each step of ``seen``, where the largest difference must be; between them others for the integral.
    """
    steps = seen.lengths[seen.lengths <= seen.reach]
    dense = np.arange(1, min(seen.reach, _DENSE) + 1)
    sparse = np.geomspace(_DENSE, max(seen.reach, _DENSE), 6000).astype(np.int64)
    grid = np.unique(np.concatenate((dense, sparse[sparse <= seen.reach], steps, steps - 1, [seen.reach])))
    return np.asarray(grid[grid >= 1], dtype=np.int64)


def _check(counts: Histogram, longest: int | None) -> None:
    if counts.n < FEWEST:
        raise TraceError(f"{counts.n} lengths are too few to fit a law", fix=f"give {FEWEST} or more")
    if longest is not None and counts.lengths[-1] > longest:
        raise TraceError(f"a length of {counts.lengths[-1]} is above the longest, {longest}", fix="raise longest")
    ended = np.flatnonzero(counts.ended)
    if not len(ended):
        raise TraceError(f"all {counts.n:,} answers were cut off: how long they would have been is not known")
    if len(ended) == 1:
        where = int(counts.lengths[ended[0]])
        what = "all lengths" if not counts.cut.any() else "all answers that were not cut off"
        raise TraceError(
            f"{what} are {where}: there is no law to fit", fix=f"describe them as constant, {where} tokens"
        )


def _start(name: str, counts: Histogram) -> tuple[Floats, list[tuple[float, float]]]:
    """Where the search begins, and between what it looks: logarithms of the parameters."""
    weights = counts.ended + counts.cut
    logs = np.log(counts.lengths)
    centre = float(np.average(logs, weights=weights))
    sigma = max(0.05, math.sqrt(float(np.average((logs - centre) ** 2, weights=weights))))
    mean = float(np.average(counts.lengths, weights=weights))
    top = float(counts.lengths[-1])
    size = (math.log(0.1), math.log(top * 1000.0))
    wide = (math.log(_SHAPES[0] / 10), math.log(_SHAPES[1]))
    shape = (math.log(_SHAPES[0]), math.log(_SHAPES[1]))
    begin = {
        "lognormal": [centre, math.log(sigma)],
        "logt": [centre, math.log(sigma * 0.8), math.log(8.0)],
        # The log of a Weibull variable has standard deviation pi / sqrt(6) / shape.
        "weibull": [math.log(mean), math.log(min(50.0, 1.28 / sigma))],
        "pareto": [math.log(2.0 * mean), math.log(3.0)],
        "gamma": [math.log(mean * sigma**2), -2.0 * math.log(sigma)],
        "exponential": [math.log(mean)],
    }[name]
    of = {"median": size, "scale": size, "sigma": wide, "shape": shape, "df": shape}
    bounds = [of[parameter] for parameter in LAWS[name]]
    if name in ("pareto", "gamma"):
        # A Pareto law with a large shape is an exponential one, and its scale grows with the shape.
        bounds[0] = (math.log(1e-3), math.log(top * _SHAPES[1] * 10))
    clipped = [min(max(b, low), high) for b, (low, high) in zip(begin, bounds, strict=True)]
    return np.asarray(clipped), bounds


def _log_likelihood(law: Continuous, counts: Histogram, longest: int | None) -> float:
    n = counts.lengths.astype(np.float64)
    with np.errstate(divide="ignore", over="ignore", under="ignore", invalid="ignore"):
        total = float(counts.ended @ log_probability(law, n))
        beyond = 0.0 if longest is None else float(law.sf(longest + 0.5))
        if counts.cut.any():
            cut = counts.cut > 0
            total += float(counts.cut[cut] @ np.maximum(np.log(law.sf(n[cut] + 0.5) - beyond), -1e4))
        if longest is not None:
            total -= counts.n * float(np.log(law.cdf(longest + 0.5)))
    return total if math.isfinite(total) else -1e300


def log_probability(law: Continuous, n: Floats) -> Floats:
    """log P(N = n): the law's mass from n - 0.5 (from 0, for n = 1) to n + 0.5."""
    low = np.where(n <= 1.0, 0.0, n - 0.5)
    # Differences of the smaller tail keep their digits; where both ends are 0, the density stands for the mass.
    below, above = law.cdf(n + 0.5), law.sf(np.maximum(low, 1e-9))
    by_sf = above - law.sf(n + 0.5)
    by_cdf = below - np.where(low > 0.0, law.cdf(np.maximum(low, 1e-9)), 0.0)
    mass = np.where(below < 0.5, by_cdf, by_sf)
    logs = np.log(np.maximum(mass, 1e-300))
    lost = ~(mass > 1e-290)
    if lost.any():
        logs[lost] = np.maximum(law.logpdf(n[lost]), -1e4)
    return np.asarray(logs)
