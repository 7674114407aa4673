"""Two traces side by side: would a predictor trained on A serve B?

A predictor reads prompts, so another mix of prompts alone does not harm it; other lengths for the same prompts do. If
the same prompts stay long on both sides, the scale can be recalibrated; without shared prompts, a change of scale and
spread of log lengths is a reason to recalibrate, a change of shape or prompts of a new kind a reason to retrain.
Distances are computed from counts of distinct lengths; the bootstrap draws counts (multinomial) of as many answers as
would be independent (design effect).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ecoserve.data.laws import Histogram, KaplanMeier
from ecoserve.data.profiling.comparison import Comparison, GroupChange, QuantileChange, SharedPrompts, judge, say
from ecoserve.data.profiling.model import Curve, Grouping
from ecoserve.data.profiling.over_time import mix_and_within
from ecoserve.data.profiling.profile import describe_source, in_bins, log_edges, rounded
from ecoserve.data.profiling.same_prompt import (
    FEWEST_SETS,
    MOST_MODELS,
    answer_sets,
    by_others,
    compare_pair,
    prompt_means,
)
from ecoserve.data.profiling.summaries import MOST_ROWS, conversations_of, count, joint_groupings, summarise
from ecoserve.data.profiling.table import TraceTable, read_table
from ecoserve.data.records import Trace
from ecoserve.data.streaming import TraceStream

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

DRAWS: Final = 400
_COMPARED: Final = (0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)
_MOST_LENGTHS_DRAWN: Final = 4000


@dataclass(frozen=True, slots=True)
class Pair:
    """Two sets of lengths on one support: ``lengths`` (tokens, ascending) and counts ``a``, ``b``, of shape ``[k]``.

    ``effect_a``, ``effect_b`` are design effects: answers count as n / effect independent ones.
    """

    lengths: Ints
    a: Ints
    b: Ints
    effect_a: float
    effect_b: float

    @classmethod
    def of(cls, a: Histogram, b: Histogram, effect_a: float, effect_b: float) -> Pair:
        lengths = np.union1d(a.lengths, b.lengths)
        sides = []
        for side in (a, b):
            counts = np.zeros(len(lengths), dtype=np.int64)
            counts[np.searchsorted(lengths, side.lengths)] = side.ended + side.cut
            sides.append(counts)
        return cls(lengths.astype(np.int64), sides[0], sides[1], effect_a, effect_b)

    @property
    def independent(self) -> tuple[float, float]:
        """Answers of each side that would be independent."""
        return float(self.a.sum()) / self.effect_a, float(self.b.sum()) / self.effect_b

    def drawn(self, seed: int) -> tuple[Ints, Ints, Ints]:
        """Lengths (shape ``[k]``) and running sums of both sides' bootstrap counts (shape ``[DRAWS, k]``)."""
        small = self._rounded() if len(self.lengths) > _MOST_LENGTHS_DRAWN else self
        rng = np.random.default_rng(seed)
        sides = [
            np.cumsum(rng.multinomial(max(1, round(n)), counts / counts.sum(), size=DRAWS), axis=1)
            for counts, n in zip((small.a, small.b), self.independent, strict=True)
        ]
        return small.lengths, sides[0], sides[1]

    def _rounded(self) -> Pair:
        step = 10.0 ** np.maximum(np.floor(np.log10(np.maximum(self.lengths, 1))) - 2, 0)
        rounded, place = np.unique(np.round(self.lengths / step) * step, return_inverse=True)
        a, b = (np.bincount(place, weights=side).astype(np.int64) for side in (self.a, self.b))
        return Pair(rounded.astype(np.int64), a, b, self.effect_a, self.effect_b)


def ks(pair: Pair, drawn: tuple[Ints, Ints, Ints]) -> dict[str, float]:
    """The distance and its 95 % interval from what the pair has :meth:`~Pair.drawn`."""
    found = float(_ks(np.cumsum(pair.a)[None, :], np.cumsum(pair.b)[None, :])[0])
    high = float(np.quantile(_ks(*drawn[1:]), 0.975))
    # Drawn distances are biased upwards; that is taken off the lower end, and left on the upper one to be safe.
    return {"ks": found, "ks_low": max(0.0, 2.0 * found - high), "ks_high": max(found, high)}


def _ks(upto_a: Ints, upto_b: Ints) -> Floats:
    """Of running sums, shape ``[draws, k]``: ``[draws]``."""
    return np.asarray(np.abs(upto_a / upto_a[:, -1:] - upto_b / upto_b[:, -1:]).max(axis=1))


def ks_chance(pair: Pair, distance: float) -> tuple[float, float]:
    """The distance that equal traffic exceeds one time in 20, and how often it gives ``distance`` (Kolmogorov)."""
    from scipy.stats import kstwobign

    n_a, n_b = pair.independent
    root = math.sqrt(n_a * n_b / (n_a + n_b))
    return float(kstwobign.isf(0.05)) / root, float(kstwobign.sf(distance * root))


def quantile_changes(pair: Pair, drawn: tuple[Ints, Ints, Ints]) -> list[QuantileChange]:
    """Each of :data:`_COMPARED` on both sides, with the 95 % interval of b - a from what the pair has ``drawn``."""
    lengths, drawn_a, drawn_b = drawn
    found = []
    for q in _COMPARED:
        a, b = (int(_quantile(pair.lengths, np.cumsum(side)[None, :], q)[0]) for side in (pair.a, pair.b))
        difference = _quantile(lengths, drawn_b, q) - _quantile(lengths, drawn_a, q)
        low, high = np.quantile(difference, (0.025, 0.975)).tolist()
        found.append(QuantileChange(q=q, a=a, b=b, difference=b - a, low=low, high=high, ratio=b / a))
    return found


def _quantile(lengths: npt.NDArray[Any], upto: Ints, q: float) -> npt.NDArray[Any]:
    """Quantile ``q`` of each row of running sums, shape ``[draws, k]``, over ``lengths``, ``[k]``."""
    reached = upto >= np.ceil(q * upto[:, -1:] - 1e-9)
    return np.asarray(lengths[reached.argmax(axis=1)])


def psi(pair: Pair) -> float:
    """Population stability index over the ten tenths of A (fewer where lengths are equal)."""
    upto = np.cumsum(pair.a) / pair.a.sum()
    edges = np.unique(np.searchsorted(upto, np.linspace(0.1, 0.9, 9), side="left"))
    tenth = np.searchsorted(edges, np.arange(len(pair.lengths)), side="left")
    shares = []
    for side in (pair.a, pair.b):
        counts = np.bincount(tenth, weights=side, minlength=len(edges) + 1)
        # Half an answer in every tenth: an empty one would make the index infinite.
        shares.append((counts + 0.5) / (counts + 0.5).sum())
    return float(((shares[1] - shares[0]) * np.log(shares[1] / shares[0])).sum())


def wasserstein_log(pair: Pair) -> float:
    difference = np.cumsum(pair.a) / pair.a.sum() - np.cumsum(pair.b) / pair.b.sum()
    return float(np.abs(difference[:-1]) @ np.diff(np.log(pair.lengths)))


def stretch(pair: Pair) -> tuple[float, float, float]:
    """Scale and power that stretch A to B, by median and interquartile range of log lengths; and the KS left."""
    logs = np.log(pair.lengths)
    middle, width = [], []
    for side in (pair.a, pair.b):
        low, at, high = (float(_quantile(logs, np.cumsum(side)[None, :], q)[0]) for q in (0.25, 0.5, 0.75))
        middle.append(at)
        width.append(high - low)
    power = width[1] / width[0] if width[0] > 0 and width[1] > 0 else 1.0
    shift = middle[1] - power * middle[0]
    moved = power * logs + shift
    # Compared at B's lengths, half a token up, because stretched lengths are not whole.
    at = np.log(pair.lengths + 0.5)
    above_a = np.concatenate(([0], np.cumsum(pair.a)))[np.searchsorted(moved, at, side="right")] / pair.a.sum()
    left = np.abs(above_a - np.cumsum(pair.b) / pair.b.sum())
    return math.exp(shift), power, float(left[pair.b > 0].max())


#: A language that has less of A's prompts is new to a predictor trained there.
_RARE: Final = 0.01
_MOST_POINTS: Final = 2000
_BINS: Final = 48
_POINTS: Final = 120


def compare_traces(
    a: Trace | TraceStream | TraceTable, b: Trace | TraceStream | TraceTable, *, seed: int = 0
) -> Comparison:
    """Compare the response lengths of ``a``, a predictor's training trace, and ``b``, the trace it would serve.

    Streams are read to their end. Raises TraceError if a trace has no record with a response length.
    """
    tables = [x if isinstance(x, TraceTable) else read_table(x, seed=seed) for x in (a, b)]
    conversations, effects = zip(*(conversations_of(t) for t in tables), strict=True)
    counts = [count(t.response, t.censored) for t in tables]
    pair = Pair.of(counts[0], counts[1], effects[0], effects[1])
    drawn = pair.drawn(seed)
    distance = ks(pair, drawn)
    by_chance, p = ks_chance(pair, distance["ks"])
    one, two = (t.thinned(MOST_ROWS) for t in tables)
    logs = [np.log(np.maximum(t.response, 1)) for t in (one, two)]
    mix, within = mix_and_within(_kinds(one), logs[0], _kinds(two), logs[1])
    scale, power, left = stretch(pair)
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
        **distance,
        ks_by_chance=by_chance,
        ks_p=p,
        psi=psi(pair),
        wasserstein_log=wasserstein_log(pair),
        quantiles=quantile_changes(pair, drawn),
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
