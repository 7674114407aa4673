"""What a policy is told of a response's length: the truth, a predictor's word, or an error of a known kind.

============== =====================================================================================================
``true``       the length itself, as certain: the oracle
``none``       nothing
``predicted:`` what the predictor of this checkpoint says of the request
``noise:S``    the length times a log-normal error of log-standard deviation S, stated as what it is
``tau:T``      the posterior of a predictor that is calibrated, knows how lengths are distributed, and ranks them with
               Kendall's tau T: normal scores of truth and prediction have correlation sin(pi T / 2)
``bins:A``     a classifier over ten bins of equal frequency that is right in a share A, and otherwise in any other bin;
               it says so: A on its bin, the rest evenly
``bias:F``     the length times F, as certain
``constant:N`` N tokens for everybody, as certain
``random``     somebody else's length, as certain
``inverted``   of n lengths the k-th longest is told as the k-th shortest, as certain
============== =====================================================================================================

Only ``true`` and the errors look at the recorded lengths, and what they say is all that a scheduler gets. The last four
are for whoever wants to see how bad it can get.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr, ndtri

from ecoserve.data import Record
from ecoserve.errors import InputError, TraceError
from ecoserve.lengths import LengthDistribution
from ecoserve.predictor.text import Request, asked_of

#: The forms, for help texts.
FORMS: Final = (
    "true, none, predicted:CHECKPOINT, noise:SIGMA, tau:T, bins:ACCURACY, bias:FACTOR, constant:N, random, inverted"
)
#: Kinds with a number: its bounds, and what it is.
_NUMBERS: Final[dict[str, tuple[float, float, str]]] = {
    "noise": (0.0, 5.0, "a log-standard deviation"),
    "tau": (0.0, 0.99, "a rank correlation"),
    "bins": (0.1, 1.0, "a share of right bins"),
    "bias": (0.01, 100.0, "a factor"),
    "constant": (1.0, 2.0**24, "a number of tokens"),
}
_PLAIN: Final = ("true", "none", "random", "inverted")
#: Bins of ``bins:``, and points of a posterior of ``tau:``.
_CLASSES: Final = 10
_POINTS: Final = 64

Lengths = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class LengthSource:
    """One of the forms above.

    Attributes:
        kind: what stands before the colon. value: the number behind it, if any. checkpoint: of ``predicted``.
    """

    kind: str
    value: float = 0.0
    checkpoint: str = ""

    @classmethod
    def parse(cls, text: str) -> LengthSource:
        """Read one of the forms.

        Raises:
            InputError: naming the form it is not.
        """
        kind, colon, rest = text.partition(":")
        if kind in _PLAIN and not colon:
            return cls(kind)
        if kind == "predicted" and rest:
            return cls(kind, checkpoint=rest)
        if kind in _NUMBERS:
            low, high, what = _NUMBERS[kind]
            try:
                value = float(rest)
            except ValueError:
                value = math.nan
            if low <= value <= high:
                return cls(kind, float(round(value)) if kind == "constant" else value)
            raise InputError(f"{text} is not {what} between {low:g} and {high:g}", where="--lengths")
        raise InputError(f"{text!r} is none of {FORMS}", where="--lengths", fix="for example --lengths noise:0.6")

    def __str__(self) -> str:
        if self.kind == "predicted":
            return f"predicted:{self.checkpoint}"
        return f"{self.kind}:{self.value:.10g}" if self.kind in _NUMBERS else self.kind

    def distributions(
        self, records: Sequence[Record], lengths: Sequence[int], upper: int, seed: int
    ) -> list[LengthDistribution | None]:
        """The distribution told for each record.

        Args:
            records: the rows. lengths: their true response lengths, tokens.
            upper: closes the last bin, tokens.
            seed: of the errors.
        """
        if self.kind == "none":
            return [None] * len(records)
        if self.kind == "predicted":
            asked = tuple(_question(r) for r in records)
            return list(_predictions(self.checkpoint, asked, tuple(r.parameters for r in records)))
        if not lengths:
            return []
        true = np.asarray(lengths, dtype=np.int64)
        return list(_ERRORS[self.kind](true, self.value, upper, seed))


# -- the errors ----------------------------------------------------------------------------------------------------


def _certain(lengths: Sequence[int] | Lengths) -> list[LengthDistribution]:
    return [LengthDistribution.point(max(1, int(n))) for n in lengths]


def _noise(true: Lengths, sigma: float, upper: int, seed: int) -> list[LengthDistribution]:
    rng = random.Random(f"lengths-{seed}")
    return [
        LengthDistribution.lognormal(max(1.0, int(n) * math.exp(rng.gauss(0.0, sigma))), sigma, upper) for n in true
    ]


def _tau(true: Lengths, tau: float, upper: int, seed: int) -> list[LengthDistribution]:
    rng = np.random.default_rng([seed, 1])
    rho = math.sin(math.pi * tau / 2.0)
    rest = math.sqrt(1.0 - rho * rho)
    ordered = np.sort(true)
    count = len(true)
    # Equal lengths are put in a random order, so that normal scores are normal.
    ranks = np.empty(count)
    ranks[np.lexsort((rng.random(count), true))] = (np.arange(count) + 0.5) / count
    scores = rho * ndtri(ranks) + rest * rng.standard_normal(count)
    points = ndtri((np.arange(_POINTS) + 0.5) / _POINTS)
    levels = ndtr(rho * scores[:, None] + rest * points)
    posterior = ordered[np.minimum((levels * count).astype(int), count - 1)]
    return [_histogram(row) for row in posterior]


def _histogram(samples: Lengths) -> LengthDistribution:
    """Each sample's probability ends at it."""
    values, counts = np.unique(samples, return_counts=True)
    return LengthDistribution.from_weights([int(values[0]) - 1, *values.tolist()], counts)


def _bins(true: Lengths, accuracy: float, upper: int, seed: int) -> list[LengthDistribution]:
    rng = np.random.default_rng([seed, 2])
    cuts = np.unique(np.quantile(true, np.linspace(0.0, 1.0, _CLASSES + 1)[1:-1], method="inverted_cdf"))
    edges = [0, *(int(c) for c in cuts if c < upper), upper]
    classes = len(edges) - 1
    if classes == 1:
        return [LengthDistribution(edges, (1.0,))] * len(true)
    right = np.minimum(np.searchsorted(edges, true, side="left") - 1, classes - 1)
    wrong = (right + rng.integers(1, classes, len(true))) % classes
    said = np.where(rng.random(len(true)) < accuracy, right, wrong)
    weights = np.full((classes, classes), (1.0 - accuracy) / (classes - 1))
    np.fill_diagonal(weights, accuracy)
    answers = [LengthDistribution.from_weights(edges, row) for row in weights]
    return [answers[k] for k in said]


def _inverted(true: Lengths, value: float, upper: int, seed: int) -> list[LengthDistribution]:
    order = np.argsort(true, kind="stable")
    told = np.empty_like(true)
    told[order] = true[order[::-1]]
    return _certain(told)


_ERRORS: Final[dict[str, Callable[[Lengths, float, int, int], list[LengthDistribution]]]] = {
    "true": lambda true, value, upper, seed: _certain(true),
    "noise": _noise,
    "tau": _tau,
    "bins": _bins,
    "bias": lambda true, value, upper, seed: _certain(np.rint(true * value).astype(np.int64)),
    "constant": lambda true, value, upper, seed: _certain(np.full_like(true, int(value))),
    "random": lambda true, value, upper, seed: _certain(np.random.default_rng([seed, 3]).permutation(true)),
    "inverted": _inverted,
}


# -- predictions ---------------------------------------------------------------------------------------------------


def _question(record: Record) -> Request:
    """What was asked: earlier turns and the request's own parameters too, where the trace has them."""
    asked = asked_of(record)
    if asked is None:
        raise TraceError("predicted lengths need prompt texts, this trace has lengths only", fix="use noise:SIGMA")
    return asked


@lru_cache(maxsize=8)
def _predictor(checkpoint: str) -> object:
    from ecoserve.predictor import load_predictor

    return load_predictor(checkpoint)


@lru_cache(maxsize=32)
def _predictions(
    checkpoint: str, asked: tuple[Request, ...], parameters: tuple[object, ...]
) -> tuple[LengthDistribution, ...]:
    """``parameters`` repeats those of ``asked``: requests are equal if their messages are."""
    return tuple(_predictor(checkpoint).predict(list(asked)))  # type: ignore[attr-defined]
