"""Curves of a profile's plots, thinned to the resolution of a plot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ecoserve.data.laws import FittedLaw, Histogram, KaplanMeier
from ecoserve.data.profiling.accuracy import error_curve
from ecoserve.data.profiling.guesses import Predictions
from ecoserve.data.profiling.model import Curve, Curves
from ecoserve.data.profiling.same_prompt import AnswerSets, ByOthers, variation
from ecoserve.data.profiling.table import TraceTable

_BINS: Final = 48
_POINTS: Final = 120
_DENSITY_BINS: Final = 32
#: Laws drawn beside the observed lengths.
_LAWS: Final = 4
#: Upper ends (tokens) at which errors are counted.
_ERRORS: Final = np.unique(np.round(np.geomspace(1, 2000, 60)).astype(int))
_SPREAD: Final = np.linspace(0.0, 2.0, 41)

SEEN: Final = "seen"


def curves(
    table: TraceTable,
    counts: Histogram,
    laws: Sequence[FittedLaw],
    answers: AnswerSets | None,
    others: ByOthers | None,
    predictions: Predictions | None,
    rate: tuple[list[float], list[float]],
) -> Curves:
    """All curves of a profile."""
    edges = log_edges(int(counts.lengths[0]), int(counts.lengths[-1]), _BINS)
    at = log_edges(int(counts.lengths[0]), int(counts.lengths[-1]), _POINTS)[1:]
    seen = KaplanMeier.of(counts)
    # Beyond its reach the estimate rests on a handful of answers.
    known = at[at <= seen.reach]
    survival = [Curve(name=SEEN, x=rounded(known), y=rounded(seen.survival_at(known)))]
    survival += [Curve(name=fit.law.name, x=rounded(at), y=rounded(fit.law.survival_at(at))) for fit in laws[:_LAWS]]
    prompt_edges, response_edges, density = _density(table)
    return Curves(
        histogram_edges=edges.tolist(),
        histogram_ended=in_bins(counts.lengths, counts.ended, edges),
        histogram_cut=in_bins(counts.lengths, counts.cut, edges),
        survival=survival,
        density_prompt_edges=prompt_edges,
        density_response_edges=response_edges,
        density=density,
        errors=_errors(table, others, predictions),
        spread_edges=rounded(_SPREAD) if answers is not None else [],
        spread=np.histogram(np.minimum(variation(answers), _SPREAD[-1]), _SPREAD)[0].tolist() if answers else [],
        rate_s=rate[0],
        rate_rps=rate[1],
    )


def log_edges(shortest: int, longest: int, bins: int) -> npt.NDArray[np.int64]:
    """At most ``bins`` bins of equal width in log, on whole numbers: bin k holds edges[k] + 1 to edges[k + 1]."""
    inner = np.round(np.geomspace(max(1, shortest), max(2, longest), bins + 1)).astype(np.int64)
    return np.unique(np.concatenate(([max(0, shortest - 1)], inner[1:-1], [max(1, longest)])))


def in_bins(lengths: npt.NDArray[Any], weights: npt.NDArray[Any], edges: npt.NDArray[np.int64]) -> list[int]:
    """How many of the counted lengths fall into each bin."""
    total = np.concatenate(([0], np.cumsum(weights)))[np.searchsorted(lengths, edges, side="right")]
    return [int(n) for n in np.diff(total)]


def _density(table: TraceTable) -> tuple[list[int], list[int], list[list[int]]]:
    known = np.flatnonzero(table.prompt > 0)
    if len(known) < 2:
        return [], [], []
    prompt, response = table.prompt[known], table.response[known]
    a = log_edges(int(prompt.min()), int(prompt.max()), _DENSITY_BINS)
    b = log_edges(int(response.min()), int(response.max()), _DENSITY_BINS)
    i, j = np.searchsorted(a, prompt, side="left") - 1, np.searchsorted(b, response, side="left") - 1
    cell = np.bincount(np.maximum(i, 0) * (len(b) - 1) + np.maximum(j, 0), minlength=(len(a) - 1) * (len(b) - 1))
    return a.tolist(), b.tolist(), cell.reshape(len(a) - 1, len(b) - 1).tolist()


def _errors(table: TraceTable, others: ByOthers | None, predictions: Predictions | None) -> list[Curve]:
    """Curves of errors: of other answers and their targets if there are any, and of the predictor."""
    found: list[tuple[str, npt.NDArray[Any]]] = []
    true: npt.NDArray[Any] | None = None
    if others is not None:
        true = others.true
        found.append(("one other answer to the prompt", np.abs(others.one - true)))
        if others.several.any():
            found.append(("mean of the other answers", np.abs(others.mean - true)[others.several]))
    if predictions is not None:
        response = table.response[predictions.rows]
        found.append(("predictor", np.abs(predictions.quantiles[0.5] - response)))
        true = response if true is None else true
    if true is None:
        return []
    found.insert(0, ("always the median", np.abs(true - np.median(true))))
    return [Curve(name=name, x=rounded(_ERRORS), y=error_curve(errors, _ERRORS)) for name, errors in found]


def rounded(values: npt.ArrayLike) -> list[float]:
    """Plain numbers to six significant digits, so that a result file stays small."""
    return [float(f"{v:.6g}") for v in np.asarray(values, dtype=np.float64).tolist()]
