"""The length distribution: P(length = n | request), the one thing that predictor and serving share.

A length is counted in generated tokens of the served model, EOS included, so it is at least 1. Bin ``k`` covers the
integers ``edges[k] + 1 .. edges[k + 1]`` with probability ``probs[k]``, spread evenly over them; ``closed_by`` says
what the last edge is. NumPy only: the scheduler's hot path, the HTTP middleware and training import this module.
"""

from __future__ import annotations

import itertools
import math
import operator
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from ecoserve.errors import PredictionError

ClosedBy = Literal["support", "max_tokens", "max_model_len"]

#: What closes the last bin; the flat list holds the index.
CLOSERS: Final[tuple[ClosedBy, ...]] = ("support", "max_tokens", "max_model_len")
#: Bins at most: the flat list travels with every request.
MAX_BINS: Final = 256
#: Tokens of a response at most.
MAX_LENGTH: Final = 2**24
#: First number of the flat list: its layout.
WIRE_VERSION: Final = 1
_SUM_TOLERANCE: Final = 1e-6
_NUMBERS: Final = (int, float, np.integer, np.floating)


class LengthDistribution:
    """An immutable distribution over response lengths in tokens.

    Args:
        edges: ``K + 1`` strictly ascending integers, ``edges[0] >= 0``; bin ``k`` is ``(edges[k], edges[k + 1]]``.
        probs: ``K`` probabilities, not negative, adding up to 1 within 1e-6; :meth:`from_weights` normalises.
        closed_by: what the last edge is: the largest length seen or set (``"support"``), the request's
            ``max_tokens``, or the model's ``max_model_len``.

    Raises PredictionError if it is not a distribution (NaN, negative, unnormalised, edges not ascending, too long).
    """

    __slots__ = ("_cdf", "_mean", "closed_by", "edges", "probs")

    edges: tuple[int, ...]
    probs: tuple[float, ...]
    closed_by: ClosedBy
    _cdf: tuple[float, ...]
    _mean: float | None

    def __init__(self, edges: Sequence[float], probs: Sequence[float], closed_by: ClosedBy = "support") -> None:
        if closed_by not in CLOSERS:
            raise PredictionError(f"closed_by {closed_by!r} is none of {', '.join(CLOSERS)}")
        if not 1 <= len(probs) <= MAX_BINS:
            raise PredictionError(f"{len(probs)} bins, must be 1 to {MAX_BINS}")
        if len(edges) != len(probs) + 1:
            raise PredictionError(f"{len(probs)} bins need {len(probs) + 1} edges, got {len(edges)}")
        if not (_are_numbers(edges) and _are_numbers(probs)):
            raise PredictionError("bin edges and probabilities must be numbers")
        self._check(edges, probs, closed_by)

    def _check(self, edges: Sequence[float], probs: Sequence[float], closed_by: ClosedBy) -> None:
        """Take numbers, or raise; loops are C's, for this is done for every request that arrives."""
        try:
            whole = tuple(map(int, edges))
            fractions = math.fsum(edges) - sum(whole)
        except (OverflowError, ValueError):
            raise PredictionError("bin edges must be whole numbers of tokens") from None
        if fractions:
            raise PredictionError("bin edges must be whole numbers of tokens")
        if edges[0] < 0 or whole[-1] > MAX_LENGTH:
            raise PredictionError(f"bin edges must lie within 0 and {MAX_LENGTH} tokens")
        if not all(map(operator.lt, edges, edges[1:])):
            raise PredictionError("bin edges must ascend")
        try:
            values = tuple(map(float, probs))
            total = math.fsum(values)
        except (OverflowError, ValueError):
            total = math.inf
        if not math.isfinite(total) or min(values) < 0.0:
            raise PredictionError("probabilities must be finite and not negative")
        if abs(total - 1.0) > _SUM_TOLERANCE:
            raise PredictionError(f"probabilities add up to {total:.6g}, must be 1")
        self._settle(whole, values, closed_by)

    def _settle(self, whole: tuple[int, ...], values: tuple[float, ...], closed_by: ClosedBy) -> None:
        """Take edges and probabilities that have been checked."""
        cdf = list(itertools.accumulate(values, initial=0.0))
        if cdf[-1] > 1.0:
            cdf = [min(c, 1.0) for c in cdf]
        # The sum may be off by rounding, which must not fall into empty bins at the end.
        certain = len(values)
        while values[certain - 1] <= 0.0:
            certain -= 1
        cdf[certain:] = [1.0] * (len(cdf) - certain)
        put = object.__setattr__
        put(self, "edges", whole)
        put(self, "probs", values)
        put(self, "closed_by", closed_by)
        put(self, "_cdf", tuple(cdf))
        put(self, "_mean", None)

    @classmethod
    def _of(cls, whole: tuple[int, ...], weights: npt.NDArray[np.float64], closed_by: ClosedBy) -> LengthDistribution:
        """Of edges and weights that need no check: the scheduler makes some of every request's distribution."""
        made = object.__new__(cls)
        made._settle(whole, tuple((weights / float(weights.sum())).tolist()), closed_by)
        return made

    def with_weights(self, weights: npt.NDArray[np.float64]) -> LengthDistribution:
        """The same bins with other ``weights`` (shape ``[K]``; finite, not negative, not all 0), normalised here."""
        return LengthDistribution._of(self.edges, weights, self.closed_by)

    @classmethod
    def from_weights(
        cls, edges: Sequence[int], weights: Iterable[float], closed_by: ClosedBy = "support"
    ) -> LengthDistribution:
        """Normalise non-negative ``weights`` (shape ``[K]``) over the bins of ``edges`` (shape ``[K + 1]``)."""
        try:
            w = np.asarray(list(weights) if not isinstance(weights, np.ndarray) else weights, dtype=np.float64)
        except (TypeError, ValueError):
            raise PredictionError("weights must be a flat list of numbers") from None
        if w.ndim != 1 or not np.all(np.isfinite(w) & (w >= 0.0)):
            raise PredictionError("weights must be a flat list of finite numbers that are not negative")
        total = float(w.sum())
        if total <= 0.0:
            raise PredictionError("weights add up to nothing")
        return cls(edges, (w / total).tolist(), closed_by)

    @classmethod
    def point(cls, length: int, closed_by: ClosedBy = "support") -> LengthDistribution:
        """All probability on one length (>= 1 token): what an oracle says."""
        if length < 1:
            raise PredictionError(f"a response has at least 1 token, got {length}")
        return cls((length - 1, length), (1.0,), closed_by)

    @classmethod
    def lognormal(
        cls, median: float, sigma: float, upper: int, bins: int = 40, closed_by: ClosedBy = "max_model_len"
    ) -> LengthDistribution:
        """Log-normal with the given ``median`` (tokens) and log-sd ``sigma``, mass above ``upper`` put at it."""
        if not (0 < median < math.inf and 0 <= sigma < math.inf and upper >= 1 and 2 <= bins <= MAX_BINS):
            raise PredictionError("log-normal needs median > 0, sigma >= 0, upper >= 1 and 2 to 256 bins")
        if sigma == 0.0:
            return cls.point(min(max(1, round(median)), upper), closed_by)
        spread = np.linspace(-3.2, 3.2, bins - 1) * sigma
        with np.errstate(over="ignore"):
            cuts = np.unique(np.clip(np.rint(median * np.exp(spread)), 1, upper)).astype(int)
        edges = [0, *(int(c) for c in cuts if 0 < c < upper), upper]
        z = np.log(np.maximum(np.asarray(edges[1:-1], dtype=float), 1e-9) / median) / sigma
        cdf = np.concatenate([[0.0], [0.5 * math.erfc(-v / math.sqrt(2.0)) for v in z], [1.0]])
        return cls.from_weights(edges, np.maximum(np.diff(cdf), 0.0), closed_by)

    @classmethod
    def from_samples(
        cls, samples: Sequence[int], upper: int, bins: int = 40, closed_by: ClosedBy = "max_model_len"
    ) -> LengthDistribution:
        """Histogram of observed lengths (tokens) on at most ``bins`` quantile bins, smoothed by one pseudo-count."""
        if len(samples) == 0:
            raise PredictionError("no samples to make a distribution from")
        x = np.clip(np.asarray(samples, dtype=np.int64), 1, upper)
        cuts = np.unique(np.quantile(x, np.linspace(0, 1, bins)[1:-1], method="inverted_cdf")).astype(int)
        # The last sample closes the last populated bin; what lies above it keeps a share of one pseudo-count.
        top = int(x.max())
        edges = sorted({0, *(int(c) for c in cuts if 0 < c < top), top, upper})
        counts = np.histogram(x, bins=np.asarray(edges) + 0.5)[0].astype(float)
        widths = np.diff(np.asarray(edges, dtype=float))
        return cls.from_weights(edges, counts + widths / widths.sum(), closed_by)

    @property
    def upper(self) -> int:
        """The largest length with room in the last bin, in tokens."""
        return self.edges[-1]

    @property
    def cdf(self) -> tuple[float, ...]:
        """P(length <= edge) at each edge: ``K + 1`` numbers from 0 to 1."""
        return self._cdf

    def quantile(self, q: float) -> int:
        """The smallest length n (tokens) with P(length <= n) >= q, for 0 <= q <= 1."""
        if not 0.0 <= q <= 1.0:
            raise PredictionError(f"quantile {q} is not between 0 and 1")
        cdf = self._cdf
        k = bisect_left(cdf, q, 1) - 1
        probs = self.probs
        last = len(probs) - 1
        k = min(k, last)
        p = probs[k]
        low, high = self.edges[k], self.edges[k + 1]
        if p <= 0.0:
            return low + 1
        n = low + math.ceil((q - cdf[k]) / p * (high - low) - 1e-9)
        return min(max(n, low + 1), high)

    def mean(self) -> float:
        """The expected length in tokens."""
        value = self._mean
        if value is None:
            e = self.edges
            value = 0.5 * (
                math.fsum(map(operator.mul, self.probs, map(operator.add, e, e[1:]))) + math.fsum(self.probs)
            )
            object.__setattr__(self, "_mean", value)
        return value

    def survival(self, n: float) -> float:
        """P(length > n): the probability that token n + 1 will be generated."""
        e = self.edges
        if n <= e[0]:
            return 1.0
        if n >= e[-1]:
            return 0.0
        k = bisect_left(e, n) - 1
        low = e[k]
        return max(0.0, 1.0 - self._cdf[k] - self.probs[k] * (n - low) / (e[k + 1] - low))

    def survival_at(self, n: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """:meth:`survival` of an array of lengths, same shape."""
        x = np.asarray(n, dtype=np.float64)
        out = 1.0 - np.interp(x, np.asarray(self.edges, dtype=np.float64), np.asarray(self._cdf))
        return np.asarray(out, dtype=np.float64)

    def given_longer_than(self, n: int) -> LengthDistribution:
        """P(length | length > n): once ``n`` tokens are out and none of them was the last.

        Past the end of its support the prediction was wrong, and only the age is known. The remaining length is then of
        the order of the age: three eighths of it in the median, all of it at most.
        """
        if n <= self.edges[0]:
            return self
        if self.survival(n) <= 1e-12:
            n = min(n, MAX_LENGTH - 1)
            rest = max(4, n)
            cuts = sorted({min(c, MAX_LENGTH) for c in (n, n + max(1, rest // 4), n + max(2, rest // 2), n + rest)})
            weights = [1.0] * (len(cuts) - 1)
            return LengthDistribution.from_weights(cuts, weights, self.closed_by)
        k = max(0, bisect_left(self.edges, n + 1) - 1)
        low, high = self.edges[k], self.edges[k + 1]
        first = self.probs[k] * (high - n) / (high - low)
        if type(n) is not int:
            return LengthDistribution.from_weights(
                (n, *self.edges[k + 1 :]), (first, *self.probs[k + 1 :]), self.closed_by
            )
        return LengthDistribution._of(
            (n, *self.edges[k + 1 :]), np.array((first, *self.probs[k + 1 :])), self.closed_by
        )

    def closed_at(self, limit: int, by: ClosedBy = "max_tokens") -> LengthDistribution:
        """The distribution of min(length, limit): generation stops at ``limit`` tokens."""
        if limit < 1:
            raise PredictionError(f"a limit of {limit} tokens leaves no room for a response")
        if limit >= self.edges[-1]:
            return self
        if limit <= self.edges[0] + 1:
            return LengthDistribution.point(limit, by)
        rest = self.survival(limit - 1)
        below = bisect_left(self.edges, limit - 1)
        edges = [*self.edges[:below], limit - 1, limit]
        cdf = [*self._cdf[:below], 1.0 - rest]
        if len(edges) > MAX_BINS + 1:
            # The two bins before the limit's own become one.
            del edges[-3], cdf[-2]
        at = np.array([*cdf, 1.0])
        return LengthDistribution._of(tuple(edges), np.maximum(at[1:] - at[:-1], 0.0), by)

    def scaled(self, factor: float) -> LengthDistribution:
        """The distribution of ``factor * length``."""
        if not (math.isfinite(factor) and factor > 0):
            raise PredictionError(f"a length cannot be scaled by {factor}")
        fits = self.edges[-1] * factor < MAX_LENGTH
        cuts = np.rint(np.array(self.edges) * (factor if fits else 0.0))
        if (cuts[1:] > cuts[:-1]).all():
            return LengthDistribution._of(tuple(map(int, cuts.tolist())), np.array(self.probs), self.closed_by)
        reached: dict[int, float] = {}
        for e, c in zip(self.edges, self._cdf, strict=True):
            cut = round(min(float(MAX_LENGTH), e * factor))
            cut = max(1, cut) if reached else min(cut, MAX_LENGTH - 1)
            if cut in reached:
                # What lay between edges that fall together gets the last token up to there for itself, instead of
                # being spread over a wide neighbour.
                reached.setdefault(cut - 1, reached[cut])
            reached[cut] = c
        edges = tuple(sorted(reached))
        cdf = np.array([reached[e] for e in edges])
        return LengthDistribution._of(edges, np.maximum(cdf[1:] - cdf[:-1], 0.0), self.closed_by)

    def to_wire(self) -> list[float]:
        """A flat list of floats: version, code of ``closed_by``, K + 1 edges, K probabilities."""
        head = [float(WIRE_VERSION), float(CLOSERS.index(self.closed_by))]
        return [*head, *(float(e) for e in self.edges), *self.probs]

    @classmethod
    def from_wire(cls, values: object) -> LengthDistribution:
        """Read what :meth:`to_wire` wrote; anything else is a PredictionError."""
        if not isinstance(values, (list, tuple)):
            raise PredictionError(f"a length distribution travels as a flat list, got {type(values).__name__}")
        if not 5 <= len(values) <= 2 * MAX_BINS + 3 or len(values) % 2 == 0:
            raise PredictionError(f"a flat list of {len(values)} numbers is not a length distribution")
        if not _are_numbers(values):
            raise PredictionError("a length distribution travels as numbers only")
        try:
            version, closer, *numbers = map(float, values)
        except OverflowError:
            raise PredictionError("a length distribution has no numbers that large") from None
        if version != WIRE_VERSION:
            raise PredictionError(f"layout {version:g} of a length distribution is not known")
        if closer not in range(len(CLOSERS)):
            raise PredictionError(f"code {closer:g} says nothing about what closes the last bin")
        bins = len(numbers) // 2
        read = object.__new__(cls)
        read._check(numbers[: bins + 1], numbers[bins + 1 :], CLOSERS[int(closer)])
        return read

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"LengthDistribution is immutable, cannot set {name}")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"LengthDistribution is immutable, cannot delete {name}")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, LengthDistribution):
            return NotImplemented
        return (self.edges, self.probs, self.closed_by) == (other.edges, other.probs, other.closed_by)

    def __hash__(self) -> int:
        return hash((self.edges, self.probs, self.closed_by))

    def __reduce__(self) -> tuple[object, ...]:
        return (LengthDistribution, (self.edges, self.probs, self.closed_by))

    def __repr__(self) -> str:
        q = "/".join(str(self.quantile(v)) for v in (0.1, 0.5, 0.9))
        return f"LengthDistribution({len(self.probs)} bins, 10/50/90 % at {q} of {self.upper} tokens)"


def _are_numbers(values: Sequence[object]) -> bool:
    """Whether all are real numbers, not booleans or texts, which Python would convert."""
    return all(issubclass(t, _NUMBERS) and not issubclass(t, bool) for t in set(map(type, values)))
