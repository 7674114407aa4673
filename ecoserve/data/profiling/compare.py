"""Two traces side by side: would a predictor trained on A serve B?

A predictor reads prompts, so another mix of prompts alone does not harm it; other lengths for the same prompts do. The
same prompts on both sides are the best evidence: if the same ones stay long (tau near that of two answers in A), the
scale can be recalibrated. Without them, a change of scale and spread of log lengths is a reason to recalibrate; a
change of shape, or prompts of lengths or in languages that A hardly has, a reason to retrain. This is evidence from
lengths alone; the proof is ``ecoserve evaluate-predictor`` on B.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from ecoserve.data.laws import Histogram, KaplanMeier
from ecoserve.data.profiling import distances
from ecoserve.data.profiling.across_models import MOST_MODELS, compare_pair, prompt_means
from ecoserve.data.profiling.comparison_model import Comparison, GroupChange, SharedPrompts
from ecoserve.data.profiling.comparison_words import judge, say
from ecoserve.data.profiling.curves import in_bins, log_edges, rounded
from ecoserve.data.profiling.drift import mix_and_within
from ecoserve.data.profiling.groupings import joint_groupings
from ecoserve.data.profiling.model import Curve, Grouping
from ecoserve.data.profiling.profile import describe_source
from ecoserve.data.profiling.same_prompt import FEWEST_SETS, answer_sets, by_others
from ecoserve.data.profiling.summaries import MOST_ROWS, conversations_of, count, summarise
from ecoserve.data.profiling.table import TraceTable, read_table
from ecoserve.data.records import Trace
from ecoserve.data.streaming import TraceStream

Ints = npt.NDArray[np.int64]

#: A language that has less of A's prompts is new to a predictor trained there.
_RARE: Final = 0.01
_MOST_POINTS: Final = 2000
_BINS: Final = 48
_POINTS: Final = 120


def compare_traces(
    a: Trace | TraceStream | TraceTable, b: Trace | TraceStream | TraceTable, *, seed: int = 0
) -> Comparison:
    """Compare the response lengths of two traces.

    Args:
        a: the training trace of a predictor; a trace, a stream (read to its end), or a table.
        b: the trace it would serve.
        seed: of samples and bootstraps.

    Raises:
        TraceError: if one has no record with a response length.
    """
    tables = [x if isinstance(x, TraceTable) else read_table(x, seed=seed) for x in (a, b)]
    conversations, effects = zip(*(conversations_of(t) for t in tables), strict=True)
    counts = [count(t.response, t.censored) for t in tables]
    pair = distances.Pair.of(counts[0], counts[1], effects[0], effects[1])
    distance, low, high = distances.ks(pair, seed)
    by_chance, p = distances.ks_chance(pair, distance)
    one, two = (t.thinned(MOST_ROWS) for t in tables)
    logs = [np.log(np.maximum(t.response, 1)) for t in (one, two)]
    mix, within = mix_and_within(_kinds(one), logs[0], _kinds(two), logs[1])
    scale, power, left = distances.stretch(pair)
    shared, points = _shared(one, two, seed)
    longest = max(int(pair.lengths[-1]), 2)
    edges = log_edges(int(pair.lengths[0]), longest, _BINS)
    draft = Comparison(
        answer=[],
        verdict="same",
        reasons=[],
        a=describe_source(tables[0], conversations[0], effects[0]),
        b=describe_source(tables[1], conversations[1], effects[1]),
        response_a=summarise(counts[0], effects[0]),
        response_b=summarise(counts[1], effects[1]),
        ks=distance,
        ks_low=low,
        ks_high=high,
        ks_by_chance=by_chance,
        ks_p=p,
        psi=distances.psi(pair),
        wasserstein_log=distances.wasserstein_log(pair),
        quantiles=distances.quantile_changes(pair, seed),
        shift_log=float(logs[1].mean() - logs[0].mean()),
        mix_log=mix,
        within_log=within,
        scale=scale,
        power=power,
        aligned_ks=left,
        new_prompt_lengths=_new_prompt_lengths(one, two),
        new_languages=_new_languages(*tables),
        shared_prompts=shared,
        groups=_groups(joint_groupings((one, two), (effects[0], effects[1]))),
        histogram_edges=edges.tolist(),
        histogram_a=in_bins(pair.lengths, pair.a, edges),
        histogram_b=in_bins(pair.lengths, pair.b, edges),
        survival=[_survival(name, side) for name, side in zip(("A", "B"), counts, strict=True)],
        shared_points=points,
        seed=seed,
        notes=[],
    )
    verdict, reasons = judge(draft)
    judged = draft.model_copy(update={"verdict": verdict, "reasons": reasons})
    answer, notes = say(judged)
    return judged.model_copy(update={"answer": answer, "notes": notes})


def _kinds(table: TraceTable) -> Ints:
    """The kind of each record: octave of its prompt's length x first or later turn."""
    octave = np.ceil(np.log2(np.maximum(table.prompt, 1))).astype(np.int64) + 1
    return np.where(table.prompt >= 0, octave, 0) * 2 + (table.turn > 0)


def _shared(one: TraceTable, two: TraceTable, seed: int) -> tuple[list[SharedPrompts], list[list[float]]]:
    """The same prompts on both sides, by model, most prompts first; and pairs of lengths of the first of them."""
    sides = [prompt_means(t) for t in (one, two)]
    models = [dict(enumerate(t.models)) for t in (one, two)]
    pairs = [(i, j) for i, a in models[0].items() for j, b in models[1].items() if a == b]
    if not pairs:
        pairs = [(i, j) for i in list(models[0])[:MOST_MODELS] for j in list(models[1])[:MOST_MODELS]]
    answers = answer_sets(one, seed)
    found: list[tuple[SharedPrompts, list[list[float]]]] = []
    for i, j in pairs:
        (prompts_a, means_a), (prompts_b, means_b) = (
            (prompt[model == k], mean[model == k]) for (prompt, model, mean), k in zip(sides, (i, j), strict=True)
        )
        names = [table.models[k] or "not named" for table, k in ((one, i), (two, j))]
        pair = compare_pair(names[0], prompts_a, means_a, names[1], prompts_b, means_b, seed)
        if pair is None:
            continue
        _, here, there = np.intersect1d(prompts_a, prompts_b, assume_unique=True, return_indices=True)
        x, y = np.exp(means_a[here]), np.exp(means_b[there])
        within = None
        if answers is not None and np.count_nonzero(answers.model == i) >= FEWEST_SETS:
            within = by_others(answers.of_model(i), seed).by_one.kendall_tau
        shared = SharedPrompts(
            model_a=names[0],
            model_b=names[1],
            tau_within_a=within,
            mae_tokens=float(np.abs(x - y).mean()),
            **pair.model_dump(exclude={"a", "b"}),
        )
        chosen = np.random.default_rng(seed).permutation(len(x))[:_MOST_POINTS]
        found.append((shared, [[a, b] for a, b in zip(rounded(x[chosen]), rounded(y[chosen]), strict=True)]))
    found.sort(key=lambda entry: -entry[0].prompts)
    return [shared for shared, _ in found], found[0][1] if found else []


def _new_prompt_lengths(one: TraceTable, two: TraceTable) -> float | None:
    known = [t.prompt[t.prompt >= 0] for t in (one, two)]
    if not len(known[0]) or not len(known[1]):
        return None
    low, high = np.quantile(known[0], (0.005, 0.995), method="inverted_cdf")
    return float(((known[1] < low) | (known[1] > high)).mean())


def _new_languages(one: TraceTable, two: TraceTable) -> float | None:
    shares = []
    for table in (one, two):
        sample = table.languages
        if not len(sample.rows):
            return None
        sizes = np.bincount(sample.codes, minlength=len(sample.names)) / len(sample.rows)
        shares.append(dict(zip(sample.names, sizes.tolist(), strict=True)))
    return float(min(1.0, sum(part for name, part in shares[1].items() if shares[0].get(name, 0.0) < _RARE)))


def _groups(joint: list[tuple[Sequence[str], Grouping, Grouping]]) -> list[GroupChange]:
    """The groups of both sides by name."""
    found = []
    for names, a, b in joint:
        sides = [{g.name: g for g in side.groups} for side in (a, b)]
        for name in names:
            here, there = (side.get(name) for side in sides)
            if here is not None or there is not None:
                found.append(
                    GroupChange(
                        by=a.by,
                        name=name,
                        share_a=here.share if here else 0.0,
                        share_b=there.share if there else 0.0,
                        p50_a=here.lengths.p50 if here else None,
                        p50_b=there.lengths.p50 if there else None,
                    )
                )
    return found


def _survival(name: str, counts: Histogram) -> Curve:
    at = log_edges(int(counts.lengths[0]), int(counts.lengths[-1]), _POINTS)[1:]
    return Curve(name=name, x=rounded(at), y=rounded(KaplanMeier.of(counts).survival_at(at)))
