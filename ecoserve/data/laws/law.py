"""Laws of lengths: a few named distributions over whole numbers of tokens.

Behind each law stands a continuous one of X > 0; the length is N = max(1, round(X)), so that
P(N > n) = P(X > n + 0.5). Parameters are all positive, and in units a person can check:

========== ===================== =============================================================================
law        parameters            what it is
========== ===================== =============================================================================
lognormal  median, sigma         log X is normal; sigma is its standard deviation
weibull    scale, shape          P(X > x) = exp(-(x / scale) ** shape); shape below 1 is heavier than exponential
pareto     scale, shape          Lomax (Pareto type II from 0 on): P(X > x) = (1 + x / scale) ** -shape
logt       median, sigma, df     log X is Student's t with df degrees of freedom, scaled by sigma
gamma      scale, shape          mean scale * shape
exponential scale                mean scale
constant   tokens                always this length
uniform    low, high             each whole number from low to high alike
========== ===================== =============================================================================

``pareto`` here describes all lengths. A generalised Pareto law of only the longest ones is a matter of its own:
:mod:`ecoserve.data.laws.tails`. No length is longer than :data:`LONGEST`: some of these laws have no mean otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ecoserve.errors import TraceError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

#: What is longer counts as this many tokens; loading drops longer answers as absurd.
LONGEST: Final = 2**20

#: Law -> its parameters; these can be fitted.
LAWS: Final[Mapping[str, tuple[str, ...]]] = {
    "lognormal": ("median", "sigma"),
    "weibull": ("scale", "shape"),
    "pareto": ("scale", "shape"),
    "logt": ("median", "sigma", "df"),
    "gamma": ("scale", "shape"),
    "exponential": ("scale",),
}
#: Laws that can only be given.
GIVEN_LAWS: Final[Mapping[str, tuple[str, ...]]] = {"constant": ("tokens",), "uniform": ("low", "high")}


_Of = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Continuous:
    """The continuous law of X: functions of arrays of x > 0 (``isf``, the inverse of ``sf``: of probabilities)."""

    sf: _Of
    cdf: _Of
    isf: _Of
    logpdf: _Of


def continuous(name: str, parameters: Mapping[str, float]) -> Continuous:
    """The continuous law of X for the fittable law ``name``; ``scipy.stats`` would take five times as long in a fit."""
    from scipy import special, stats

    p = parameters
    if name == "lognormal":
        return _of_log(special.ndtr, special.ndtri, stats.norm.logpdf, p["median"], p["sigma"])
    if name == "logt":
        df = p["df"]
        return _of_log(
            lambda z: special.stdtr(df, z),
            lambda q: special.stdtrit(df, q),
            lambda z: stats.t.logpdf(z, df),
            p["median"],
            p["sigma"],
        )
    scale, shape = p["scale"], p.get("shape", 1.0)
    if name == "gamma":
        return Continuous(
            sf=lambda x: special.gammaincc(shape, x / scale),
            cdf=lambda x: special.gammainc(shape, x / scale),
            isf=lambda q: scale * special.gammainccinv(shape, q),
            logpdf=lambda x: stats.gamma.logpdf(x, shape, scale=scale),
        )
    if name == "pareto":
        return Continuous(
            sf=lambda x: np.exp(-shape * np.log1p(x / scale)),
            cdf=lambda x: -np.expm1(-shape * np.log1p(x / scale)),
            isf=lambda q: scale * np.expm1(-np.log(q) / shape),
            logpdf=lambda x: stats.lomax.logpdf(x, shape, scale=scale),
        )
    return Continuous(  # weibull, and exponential as one of shape 1
        sf=lambda x: np.exp(-((x / scale) ** shape)),
        cdf=lambda x: -np.expm1(-((x / scale) ** shape)),
        isf=lambda q: scale * (-np.log(q)) ** (1.0 / shape),
        logpdf=lambda x: stats.weibull_min.logpdf(x, shape, scale=scale),
    )


def _of_log(cdf: _Of, ppf: _Of, logpdf: _Of, median: float, sigma: float) -> Continuous:
    """X such that (log X - log median) / sigma has the law of ``cdf``, which is symmetric around 0."""
    at = math.log(median)
    return Continuous(
        sf=lambda x: cdf((at - np.log(x)) / sigma),
        cdf=lambda x: cdf((np.log(x) - at) / sigma),
        isf=lambda q: np.exp(at - sigma * ppf(q)),
        logpdf=lambda x: logpdf((np.log(x) - at) / sigma) - np.log(x) - math.log(sigma),
    )


@dataclass(frozen=True)
class Law:
    """A distribution over lengths 1, 2, ..., :data:`LONGEST` tokens, with the parameters of the table above.

    With ``longest`` it is conditioned on N <= ``longest``: longer ones were left out, as where a context window decides
    what is in a data set. (Answers that were *cut off* at a limit are another matter.) Raises TraceError naming the
    law, or the parameter, that is not one.
    """

    name: str
    parameters: Mapping[str, float]
    longest: int | None = None

    def __post_init__(self) -> None:
        names = {**LAWS, **GIVEN_LAWS}.get(self.name)
        if names is None:
            raise TraceError(f"{self.name!r} is no law of lengths", fix=f"one of {', '.join([*LAWS, *GIVEN_LAWS])}")
        if set(self.parameters) != set(names):
            given = ", ".join(self.parameters) or "none"
            raise TraceError(f"law {self.name} has the parameters {', '.join(names)}, given are {given}")
        values = {}
        for key in names:
            value = self.parameters[key]
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
                raise TraceError(f"{key} of law {self.name} must be a number above 0, not {value!r}")
            if self.name in GIVEN_LAWS and (value != int(value) or value > LONGEST):
                raise TraceError(f"{key} of law {self.name} must be a whole number up to {LONGEST}, not {value!r}")
            values[key] = float(value)
        if self.name == "uniform" and values["low"] > values["high"]:
            raise TraceError(f"low {values['low']:g} of law uniform is above high {values['high']:g}")
        object.__setattr__(self, "parameters", values)
        if self.longest is not None:
            if isinstance(self.longest, bool) or not isinstance(self.longest, int) or not 1 <= self.longest <= LONGEST:
                raise TraceError(f"longest must be a whole number from 1 to {LONGEST}, not {self.longest!r}")
            if self._unbounded(np.asarray([float(self.longest)]))[0] >= 1.0:
                raise TraceError(f"law {self.name} with these parameters has no length up to longest ({self.longest})")

    def survival(self, length: float) -> float:
        """P(N > length)."""
        return float(self.survival_at(np.asarray([length]))[0])

    def survival_at(self, lengths: npt.ArrayLike) -> Floats:
        """P(N > n) for each n of ``lengths`` (any shape, tokens)."""
        n = np.floor(np.asarray(lengths, dtype=np.float64))
        above, most = self._unbounded(n), self.longest or LONGEST
        if self.longest is not None:
            beyond = self._beyond
            above = np.maximum(above - beyond, 0.0) / (1.0 - beyond)
        return np.where(n < 1, 1.0, np.where(n >= most, 0.0, above))

    @property
    def _beyond(self) -> float:
        """The share that ``longest`` leaves out."""
        return 0.0 if self.longest is None else float(self._unbounded(np.asarray([float(self.longest)]))[0])

    def _unbounded(self, n: Floats) -> Floats:
        """P(N > n) for whole n, before ``longest`` leaves anything out."""
        p = self.parameters
        if self.name == "constant":
            return (n < p["tokens"]).astype(np.float64)
        if self.name == "uniform":
            return np.clip((p["high"] - n) / (p["high"] - p["low"] + 1), 0.0, 1.0)
        return np.asarray(continuous(self.name, p).sf(np.maximum(n, 0.0) + 0.5), dtype=np.float64)

    def quantile(self, q: float) -> int:
        """The least n with P(N <= n) >= ``q``, 0 < q < 1."""
        return int(self.quantile_at(np.asarray([q]))[0])

    def quantile_at(self, q: npt.ArrayLike) -> Ints:
        """:meth:`quantile` of each of ``q`` (any shape)."""
        at = np.asarray(q, dtype=np.float64)
        if at.size and not (at.min() > 0.0 and at.max() < 1.0):
            raise TraceError("a quantile is asked for at a number between 0 and 1, both excluded")
        p, above = self.parameters, self._beyond + (1.0 - at) * (1.0 - self._beyond)
        if self.name == "constant":
            x: Floats = np.full(at.shape, p["tokens"])
        elif self.name == "uniform":
            x = p["low"] - 1 + np.ceil((1.0 - above) * (p["high"] - p["low"] + 1) - 1e-9)
        else:
            with np.errstate(over="ignore", divide="ignore"):  # a heavy tail may reach infinity, which is cut below
                x = np.ceil(np.asarray(continuous(self.name, p).isf(above), dtype=np.float64) - 0.5)
        return np.clip(x, 1, self.longest or LONGEST).astype(np.int64)

    def sample(self, rng: np.random.Generator, n: int) -> Ints:
        """``n`` lengths (shape ``[n]``, tokens); two laws given the same generator get lengths of the same ranks."""
        # random() may give 0, whose quantile no law has.
        return self.quantile_at(np.maximum(rng.random(n), 2.0**-54))

    def as_dict(self) -> dict[str, Any]:
        row: dict[str, Any] = {"law": self.name, **self.parameters}
        return row if self.longest is None else {**row, "longest": self.longest}
