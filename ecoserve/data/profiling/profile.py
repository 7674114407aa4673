"""From a trace to its profile."""

from __future__ import annotations

from dataclasses import fields

import numpy as np

from ecoserve.data.profiling.across_models import across_models
from ecoserve.data.profiling.arriving import arrivals
from ecoserve.data.profiling.curves import curves
from ecoserve.data.profiling.drift import drift
from ecoserve.data.profiling.groupings import all_groupings
from ecoserve.data.profiling.guesses import Predictions, guess_by_band, orderings, predicted, prompt_length
from ecoserve.data.profiling.model import Profile, SamePrompt, Source
from ecoserve.data.profiling.reservation import waste
from ecoserve.data.profiling.same_prompt import FEWEST_SETS, AnswerSets, answer_sets, by_others, same_prompt
from ecoserve.data.profiling.statements import notes, say
from ecoserve.data.profiling.summaries import MOST_ROWS, conversations_of, count, summarise
from ecoserve.data.profiling.table import TraceTable, cap_of, read_table
from ecoserve.data.profiling.tails import tail
from ecoserve.data.records import Trace
from ecoserve.data.streaming import TraceStream
from ecoserve.errors import TraceError


def profile_trace(
    source: Trace | TraceStream | TraceTable,
    *,
    predictions: Predictions | None = None,
    max_tokens: int | None = None,
    seed: int = 0,
) -> Profile:
    """Profile the response lengths of a trace.

    Args:
        source: a trace, a stream of one (read once, to its end), or the table that :func:`read_table` made of it.
        predictions: a predictor's predictions for some of the table's rows.
        max_tokens: the most tokens a request allows; it replaces the trace's own.
        seed: of samples and bootstraps; the same seed gives the same profile.

    Raises:
        TraceError: if there is no record with a response length, or ``max_tokens`` is below 1.
    """
    if max_tokens is not None and max_tokens < 1:
        raise TraceError(f"max_tokens of {max_tokens} leaves no room for an answer", fix="give 1 or more")
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
    known_prompts = table.prompt[table.prompt >= 0]
    draft = Profile(
        answer=[],
        worth="unknown",
        trace=describe_source(table, conversations, effect),
        response=summarise(counts, effect),
        prompt=summarise(count(known_prompts), effect) if len(known_prompts) else None,
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
        models=sum(name is not None for name in table.models),
        design_effect=effect,
        **{f.name: getattr(table.origin, f.name) for f in fields(table.origin) if f.name != "report"},
    )
