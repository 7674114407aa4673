"""From a trace to its profile."""

from __future__ import annotations

import numpy as np

from ecoserve.data.profiling import statements
from ecoserve.data.profiling.across_models import across_models
from ecoserve.data.profiling.arriving import arrivals
from ecoserve.data.profiling.curves import curves
from ecoserve.data.profiling.drift import drift
from ecoserve.data.profiling.groupings import all_groupings
from ecoserve.data.profiling.model import Lengths, Profile, SamePrompt, Source
from ecoserve.data.profiling.ordering import orderings
from ecoserve.data.profiling.predicted import Predictions, predicted
from ecoserve.data.profiling.prompt_length import guess_by_band, prompt_length
from ecoserve.data.profiling.reservation import waste
from ecoserve.data.profiling.same_prompt import FEWEST_SETS, AnswerSets, answer_sets, by_others, same_prompt
from ecoserve.data.profiling.summaries import MOST_ROWS, conversations_of, count, summarise
from ecoserve.data.profiling.table import RecordStream, TraceTable, cap_of, read_table
from ecoserve.data.profiling.tails import tail
from ecoserve.data.records import Trace
from ecoserve.errors import TraceError


def profile_trace(
    source: Trace | RecordStream | TraceTable,
    *,
    predictions: Predictions | None = None,
    max_tokens: int | None = None,
    seed: int = 0,
) -> Profile:
    """Profile the response lengths of a trace.

    Args:
        source: a trace, a stream of one (read once, to its end), or the table that :func:`read_table` made of it.
        predictions: what a predictor says about some of the table's rows.
        max_tokens: the most tokens a request allows, where the trace does not say it; it replaces the trace's own.
        seed: of samples and bootstraps; the same seed gives the same profile.

    Raises:
        TraceError: if there is no record with a response length, or ``max_tokens`` is below 1.
    """
    if max_tokens is not None and max_tokens < 1:
        raise TraceError(f"max_tokens of {max_tokens} leaves no room for an answer", fix="give 1 or more")
    table = source if isinstance(source, TraceTable) else read_table(source, seed=seed)
    conversations, effect = conversations_of(table)
    counts = count(table.response, table.censored)
    response = summarise(counts, effect)
    found_tail, laws = tail(counts, cap_of(table))
    # Predictions are of rows of the whole table, which is in memory anyway.
    part = table.thinned(MOST_ROWS) if predictions is None else table
    answers = answer_sets(part, seed)
    if answers is not None and len(answers.model) < FEWEST_SETS:
        answers = None
    others = by_others(answers, seed) if answers is not None else None
    same = same_prompt(answers, None, others, seed) if answers is not None and others is not None else None
    bands = guess_by_band(part)
    by_length = prompt_length(part, bands, seed) if bands is not None else None
    told = predicted(part, predictions, seed) if predictions is not None else None
    wasted = waste(part, answers, predictions, max_tokens)
    arrived, *rate = arrivals(table)
    trace = describe_source(table, conversations, effect)
    across = across_models(part, seed)
    orders = orderings(part, others, predictions, bands)
    worth, reason = statements.is_it_worth_it(response, same, across, by_length, told, wasted, orders)
    return Profile(
        answer=[
            statements.how_long(response),
            statements.how_heavy(found_tail),
            statements.how_predictable(same, across, by_length, told),
            statements.what_is_wasted(wasted),
            reason,
        ],
        worth=worth,
        trace=trace,
        response=response,
        prompt=_prompts(table, effect),
        groupings=all_groupings(part, effect, table),
        tail=found_tail,
        same_prompt=same,
        same_prompt_by_model=_by_model(part, answers, seed),
        across_models=across,
        prompt_length=by_length,
        predicted=told,
        drift=drift(part, np.unique(part.conversation, return_inverse=True)[1]),
        arrivals=arrived,
        waste=wasted,
        orderings=orders,
        curves=curves(part, counts, laws, answers, others, predictions, (rate[0], rate[1])),
        seed=seed,
        notes=statements.notes(trace, response, found_tail, same, wasted, len(table.languages.rows), len(part)),
    )


def _prompts(table: TraceTable, effect: float) -> Lengths | None:
    known = table.prompt[table.prompt >= 0]
    return summarise(count(known), effect) if len(known) else None


def _by_model(table: TraceTable, answers: AnswerSets | None, seed: int) -> list[SamePrompt]:
    if answers is None:
        return []
    sets = np.bincount(answers.model, minlength=len(table.models))
    several = [int(m) for m in np.argsort(-sets, kind="stable") if sets[m] >= FEWEST_SETS]
    if len(several) < 2:
        return []
    found = []
    for model in several[:12]:
        mine = answers.of_model(model)
        found.append(same_prompt(mine, table.models[model] or "not named", by_others(mine, seed), seed))
    return found


def describe_source(table: TraceTable, conversations: int, effect: float) -> Source:
    """Where a table's records come from; ``conversations``: how many."""
    origin = table.origin
    return Source(
        source=origin.source,
        format=origin.format,
        sha256=origin.sha256,
        length_source=origin.length_source,
        prompt_length_source=origin.prompt_length_source,
        rows_in=origin.report.rows_in,
        records=len(table),
        conversations=conversations,
        dropped=dict(origin.report.dropped),
        noted=dict(origin.report.noted),
        models=sum(name is not None for name in table.models),
        design_effect=effect,
    )
