"""From a trace to its profile, and to the curves of its plots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Final, Unpack

import numpy as np
import numpy.typing as npt

from ecoserve.data.laws import FittedLaw, Histogram, KaplanMeier
from ecoserve.data.loading import ReadOptions
from ecoserve.data.profiling.model import Curve, Curves, Profile, SamePrompt, Source
from ecoserve.data.profiling.over_time import arrivals, drift
from ecoserve.data.profiling.same_prompt import (
    FEWEST_SETS,
    AnswerSets,
    ByOthers,
    across_models,
    answer_sets,
    by_others,
    same_prompt,
    variation,
)
from ecoserve.data.profiling.statements import notes, say
from ecoserve.data.profiling.summaries import MOST_ROWS, all_groupings, conversations_of, count, summarise
from ecoserve.data.profiling.table import TraceTable, cap_of, read_table
from ecoserve.data.profiling.tails import tail
from ecoserve.data.profiling.worth import Predictions, guess_by_band, orderings, predicted, prompt_length, waste
from ecoserve.data.records import Trace
from ecoserve.data.streaming import TraceStream
from ecoserve.data.traces import stream_trace
from ecoserve.errors import TraceError

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


def error_curve(errors: npt.NDArray[Any], at: npt.NDArray[Any]) -> list[float | None]:
    """Share of ``errors`` (shape ``[n]``) that do not exceed each of ``at``."""
    return [float(v) for v in np.searchsorted(np.sort(errors), at, side="right") / max(1, len(errors))]


def rounded(values: npt.ArrayLike) -> list[float]:
    """Plain numbers to six significant digits, so that a result file stays small."""
    return [float(f"{v:.6g}") for v in np.asarray(values, dtype=np.float64).tolist()]


def profile_trace(
    source: str | Path | Trace | TraceStream | TraceTable,
    *,
    predictions: Predictions | None = None,
    max_tokens: int | None = None,
    seed: int = 0,
    **options: Unpack[ReadOptions],
) -> Profile:
    """Profile the response lengths of a trace: percentiles, tail, predictability, waste, drift.

    Args:
        source: a file or hub data set, read as a stream; a trace, a stream (read once, to its end), or a table.
        predictions: for rows of the table.
        max_tokens: tokens that a request may generate, in place of the trace's own.
        seed: of what is sampled; the same seed gives the same profile.
        options: how a file is read, see :class:`~ecoserve.data.loading.ReadOptions`.

    Returns:
        The profile, a pydantic model: ``worth`` and ``answer`` say in words whether predicting lengths pays.

    Raises TraceError if the source cannot be read or has no response length, or ``max_tokens`` is below 1.
    """
    if max_tokens is not None and max_tokens < 1:
        raise TraceError(f"max_tokens of {max_tokens} leaves no room for an answer", fix="give 1 or more")
    if isinstance(source, str | Path):
        source = stream_trace(source, **options)
    table = source if isinstance(source, TraceTable) else read_table(source, seed=seed)
    conversations, effect = conversations_of(table)
    counts = count(table.response, table.censored)
    found_tail, laws = tail(counts, cap_of(table))
    # Predictions are for rows of the whole table, which is in memory anyway.
    part = table.thinned(MOST_ROWS) if predictions is None else table
    answers = answer_sets(part, seed)
    if answers is not None and len(answers.model) < FEWEST_SETS:
        answers = None
    others = by_others(answers, seed) if answers is not None else None
    bands = guess_by_band(part)
    arrived, *rate = arrivals(table)
    thinks = table.thinking >= 0
    thought = np.minimum(table.thinking, table.response)[thinks]
    known_prompts = table.prompt[table.prompt >= 0]
    draft = Profile(
        answer=[],
        worth="unknown",
        trace=describe_source(table, conversations, effect),
        response=summarise(counts, effect),
        prompt=summarise(count(known_prompts), effect) if len(known_prompts) else None,
        thinking=summarise(count(thought), effect) if len(thought) else None,
        visible=summarise(count(table.response[thinks] - thought), effect) if len(thought) else None,
        groupings=all_groupings(part, effect, table),
        tail=found_tail,
        same_prompt=same_prompt(answers, None, others, seed) if answers is not None and others is not None else None,
        same_prompt_by_model=_by_model(part, answers, seed),
        across_models=across_models(part, seed),
        prompt_length=prompt_length(part, bands, seed) if bands is not None else None,
        predicted=predicted(part, predictions, seed) if predictions is not None else None,
        drift=drift(part, np.unique(part.conversation, return_inverse=True)[1]),
        arrivals=arrived,
        waste=waste(part, answers, predictions, max_tokens),
        orderings=orderings(part, others, predictions, bands),
        curves=curves(part, counts, laws, answers, others, predictions, (rate[0], rate[1])),
        seed=seed,
        notes=[],
    )
    answer, worth = say(draft)
    limits = notes(draft, language_rows=len(table.languages.rows), rows=len(part))
    return draft.model_copy(update={"answer": answer, "worth": worth, "notes": limits})


def _by_model(table: TraceTable, answers: AnswerSets | None, seed: int) -> list[SamePrompt]:
    if answers is None:
        return []
    sets = np.bincount(answers.model, minlength=len(table.models))
    several = [int(m) for m in np.argsort(-sets, kind="stable") if sets[m] >= FEWEST_SETS]
    if len(several) < 2:
        return []
    by_model = {model: answers.of_model(model) for model in several[:12]}
    return [
        same_prompt(mine, table.models[model] or "not named", by_others(mine, seed), seed)
        for model, mine in by_model.items()
    ]


def describe_source(table: TraceTable, conversations: int, effect: float) -> Source:
    """Where a table's records come from; ``conversations``: how many. ``effect``: the design effect."""
    report = table.origin.report
    return Source(
        rows_in=report.rows_in,
        records=len(table),
        conversations=conversations,
        dropped=dict(report.dropped),
        noted=dict(report.noted),
        stated=list(report.stated),
        warnings=list(report.warnings),
        models=sum(name is not None for name in table.models),
        design_effect=effect,
        **{f.name: getattr(table.origin, f.name) for f in fields(table.origin) if f.name != "report"},
    )
