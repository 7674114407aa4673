"""Where predicted response lengths come from: the true lengths, a predictor, or an error of a known kind and size.

A form (``--lengths``, ``lengths:`` of a plan) is one function and one row of :data:`FORMS`. Only ``predicted`` reads
prompts, and only the others read the recorded lengths; what they return is all that a scheduler gets.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr, ndtri

from ecoserve.data import Record
from ecoserve.errors import InputError, TraceError
from ecoserve.lengths import LengthDistribution
from ecoserve.predictor.text import Request, asked_of

Lengths = npt.NDArray[np.int64]
Distributions = Sequence[LengthDistribution | None]

#: Bins of ``bins:``, and points of a posterior of ``tau:``.
_CLASSES: Final = 10
_POINTS: Final = 64


class Drawn(NamedTuple):
    """The requests of a load: rows, true response lengths, upper edge of a distribution's last bin (tokens), seed."""

    records: Sequence[Record]
    true: Lengths
    upper: int
    seed: int


# -- the forms -----------------------------------------------------------------------------------------------------


def _certain(lengths: Sequence[int] | Lengths) -> Distributions:
    return [LengthDistribution.point(max(1, int(n))) for n in lengths]


def _predicted(drawn: Drawn, checkpoint: str) -> Distributions:
    asked = []
    for record in drawn.records:
        # Earlier turns and the request's own parameters are part of the request, where the trace has them.
        request = asked_of(record)
        if request is None:
            raise TraceError("predicted lengths need prompt texts, this trace has lengths only", fix="use noise:SIGMA")
        asked.append(request)
    return _predictions(checkpoint, tuple(asked), tuple(r.parameters for r in drawn.records))


def _noise(drawn: Drawn, sigma: float) -> Distributions:
    rng = random.Random(f"lengths-{drawn.seed}")
    medians = [max(1.0, int(n) * math.exp(rng.gauss(0.0, sigma))) for n in drawn.true]
    return [LengthDistribution.lognormal(median, sigma, drawn.upper) for median in medians]


def _tau(drawn: Drawn, tau: float) -> Distributions:
    rng = np.random.default_rng([drawn.seed, 1])
    true, count = drawn.true, len(drawn.true)
    rho = math.sin(math.pi * tau / 2.0)
    rest = math.sqrt(1.0 - rho * rho)
    ordered = np.sort(true)
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


def _bins(drawn: Drawn, accuracy: float) -> Distributions:
    rng = np.random.default_rng([drawn.seed, 2])
    true, upper = drawn.true, drawn.upper
    cuts = np.unique(np.quantile(true, np.linspace(0.0, 1.0, _CLASSES + 1)[1:-1], method="inverted_cdf"))
    edges = [0, *(int(c) for c in cuts if c < upper), upper]
    classes = len(edges) - 1
    if classes == 1:
        return [LengthDistribution(edges, (1.0,))] * len(true)
    right = np.minimum(np.searchsorted(edges, true, side="left") - 1, classes - 1)
    wrong = (right + rng.integers(1, classes, len(true))) % classes
    answered = np.where(rng.random(len(true)) < accuracy, right, wrong)
    weights = np.full((classes, classes), (1.0 - accuracy) / (classes - 1))
    np.fill_diagonal(weights, accuracy)
    answers = [LengthDistribution.from_weights(edges, row) for row in weights]
    return [answers[k] for k in answered]


def _inverted(drawn: Drawn, _: Any) -> Distributions:
    order = np.argsort(drawn.true, kind="stable")
    lengths = np.empty_like(drawn.true)
    lengths[order] = drawn.true[order[::-1]]
    return _certain(lengths)


class Form(NamedTuple):
    """One form of ``--lengths``: what makes the predictions, from the load and what stands behind the colon.

    ``argument``: the name of what stands there, "" for nothing; ``bounds``, ``meaning``: of a number there.
    """

    distributions: Callable[[Drawn, Any], Distributions]
    help: str
    argument: str = ""
    bounds: tuple[float, float] | None = None
    meaning: str = ""


#: The forms by name.
REGISTRY: Final[dict[str, Form]] = {
    "true": Form(lambda drawn, _: _certain(drawn.true), "the recorded length, as certain: an oracle"),
    "none": Form(lambda drawn, _: [None] * len(drawn.records), "no prediction"),
    "predicted": Form(_predicted, "what the predictor of a checkpoint returns for the request", "CHECKPOINT"),
    "noise": Form(
        _noise,
        "the length times a log-normal error, and its distribution",
        *("SIGMA", (0.0, 5.0), "a log-standard deviation"),
    ),
    "tau": Form(
        _tau,
        "the posterior of a calibrated predictor that ranks lengths with Kendall's tau T: normal scores of length and "
        "prediction have correlation sin(pi T / 2)",
        *("T", (0.0, 0.99), "a rank correlation"),
    ),
    "bins": Form(
        _bins,
        "a classifier over ten bins of equal frequency with this accuracy: ACCURACY on its bin, the rest evenly",
        *("ACCURACY", (0.1, 1.0), "a share of right bins"),
    ),
    "bias": Form(
        lambda drawn, factor: _certain(np.rint(drawn.true * factor)),
        "the length times a factor, as certain",
        *("FACTOR", (0.01, 100.0), "a factor"),
    ),
    "constant": Form(
        lambda drawn, tokens: _certain([round(tokens)] * len(drawn.true)),
        "N tokens for every request, as certain",
        *("N", (1.0, 2.0**24), "a number of tokens"),
    ),
    "random": Form(
        lambda drawn, _: _certain(np.random.default_rng([drawn.seed, 3]).permutation(drawn.true)),
        "another request's length, as certain",
    ),
    "inverted": Form(_inverted, "the k-th shortest of n lengths for the k-th longest, as certain"),
}
#: All forms in one line, for help texts and errors.
FORMS: Final = ", ".join(f"{name}:{form.argument}" if form.argument else name for name, form in REGISTRY.items())


@dataclass(frozen=True, slots=True)
class LengthSource:
    """A form, by its name in :data:`REGISTRY`, and its argument: a number, a checkpoint, or None."""

    kind: str
    argument: float | str | None = None

    @classmethod
    def parse(cls, text: str) -> LengthSource:
        """Read ``KIND`` or ``KIND:ARGUMENT``; raises InputError naming the forms, or the bounds of the number."""
        kind, colon, rest = text.partition(":")
        form = REGISTRY.get(kind)
        if form is None or bool(colon) != bool(form.argument) or (form.argument and not form.bounds and not rest):
            raise InputError(f"{text!r} is none of {FORMS}", where="--lengths", fix="for example --lengths noise:0.6")
        if form.bounds is None:
            return cls(kind, rest or None)
        low, high = form.bounds
        try:
            value = float(rest)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise InputError(f"{text} is not {form.meaning} between {low:g} and {high:g}", where="--lengths")
        return cls(kind, float(round(value)) if form.argument == "N" else value)

    def __str__(self) -> str:
        if self.argument is None:
            return self.kind
        return (
            f"{self.kind}:{self.argument:.10g}" if isinstance(self.argument, float) else f"{self.kind}:{self.argument}"
        )

    def distributions(
        self, records: Sequence[Record], lengths: Sequence[int], upper: int, seed: int
    ) -> list[LengthDistribution | None]:
        """The predicted distribution of each record's response; ``upper``: upper edge of the last bin, tokens."""
        drawn = Drawn(records, np.asarray(lengths, dtype=np.int64), upper, seed)
        if not len(lengths):
            return []
        return list(REGISTRY[self.kind].distributions(drawn, self.argument))


# -- predictors ----------------------------------------------------------------------------------------------------


@lru_cache(maxsize=8)
def _predictor(checkpoint: str) -> Any:
    from ecoserve.predictor import load_predictor

    return load_predictor(checkpoint)


@lru_cache(maxsize=32)
def _predictions(
    checkpoint: str, asked: tuple[Request, ...], parameters: tuple[object, ...]
) -> tuple[LengthDistribution, ...]:
    """``parameters`` repeats those of ``asked``: requests are equal if their messages are."""
    return tuple(_predictor(checkpoint).predict(list(asked)))
