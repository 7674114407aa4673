"""Answers of one or several models to the same prompts: how much of the length the prompt decides.

docs/guides/profiling.md names the measures. A set is one model's answers to one prompt (its whole context): rows with
equal prompt and model; a single such row with its own further samples, of which only the row's length is a target. The
mean squares of ICC(1) are between and within sets of unequal size. The smallest expected error lies between a set's
deviation from its own median and the error of the others' mean or median. Across models, a model's length for a prompt
is the geometric mean of its answers.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ecoserve.accuracy import kendall_tau, point_accuracy
from ecoserve.data.profiling.model import AcrossModels, ModelPair, NoiseFloor, SamePrompt
from ecoserve.data.profiling.summaries import Z95
from ecoserve.data.profiling.table import TraceTable

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

#: Fewer sets are no evidence.
FEWEST_SETS: Final = 10
#: Answers of a set that count.
MOST: Final = 16
#: Pairs that Kendall's tau is taken of, at most.
MOST_PAIRS: Final = 200_000
_DRAWS: Final = 400
#: Sets are put into this many random blocks, which the bootstrap draws.
_BLOCKS: Final = 2000


def measure(guess: npt.ArrayLike, true: npt.ArrayLike, seed: int) -> NoiseFloor:
    """The accuracy of ``guess`` against ``true`` (both shape ``[n]``, tokens, n >= 1)."""
    order = tau(np.asarray(guess, dtype=np.float64), np.asarray(true, dtype=np.float64), seed)
    return NoiseFloor(targets=np.size(true), kendall_tau=order, **point_accuracy(guess, true))


def tau(a: npt.NDArray[Any], b: npt.NDArray[Any], seed: int) -> float:
    """Kendall's tau-b of two arrays (shape ``[n]``), of a seeded sample if they are long; 0 where it is not defined."""
    if len(a) > MOST_PAIRS:
        chosen = np.random.default_rng(seed).choice(len(a), MOST_PAIRS, replace=False)
        a, b = a[chosen], b[chosen]
    return kendall_tau(a, b) or 0.0


@dataclass(frozen=True, slots=True)
class AnswerSets:
    """Answers by set: m answers in k sets.

    ``sets`` (shape ``[m]``, ascending, 0 to k - 1), ``lengths`` (``[m]``, tokens), ``rows`` (``[m]``: the answer's row
    in the table; -1 for further samples, which are no targets), ``model`` and ``prompt_hash`` (``[k]``).
    """

    sets: Ints
    lengths: Floats
    rows: Ints
    model: npt.NDArray[np.uint16]
    prompt_hash: npt.NDArray[np.uint64]
    censored_share: float

    @property
    def targets(self) -> npt.NDArray[np.bool_]:
        """Shape ``[m]``: whether an answer is to be predicted."""
        return self.rows >= 0

    @property
    def sizes(self) -> Ints:
        return np.bincount(self.sets, minlength=len(self.model))

    def of_model(self, model: int) -> AnswerSets:
        chosen = self.model == model
        renumbered = np.cumsum(chosen) - 1
        here = chosen[self.sets]
        return AnswerSets(
            renumbered[self.sets[here]],
            self.lengths[here],
            self.rows[here],
            self.model[chosen],
            self.prompt_hash[chosen],
            self.censored_share,
        )


def answer_sets(table: TraceTable, seed: int) -> AnswerSets | None:
    """The sets with at least two answers; ``None`` where there are none."""
    rows = np.flatnonzero(table.prompt_hash)
    with_samples = np.flatnonzero((table.prompt_hash == 0) & (table.sample_count > 0))
    # Without a text, a record's samples still belong together.
    own_key = table.prompt_hash.copy() if len(with_samples) else table.prompt_hash
    own_key[with_samples] = with_samples.astype(np.uint64) + 1
    rows = np.concatenate((rows, with_samples))
    if not len(rows):
        return None
    key = own_key[rows] ^ ((table.model[rows].astype(np.uint64) + 1) * np.uint64(0x9E3779B97F4A7C15))
    _, number, count = np.unique(key, return_inverse=True, return_counts=True)
    repeated = count[number] > 1
    alone = ~repeated & (table.sample_count[rows] > 0)
    if not (repeated.any() or alone.any()):
        return None
    own = rows[repeated | alone]
    number_of_own = number[repeated | alone]
    samples, sampled_by = _samples(table, rows[alone], number[alone])
    sets = np.concatenate((number_of_own, sampled_by))
    lengths = np.concatenate((table.response[own], samples)).astype(np.float64)
    of_row = np.concatenate((own, np.full(len(samples), -1)))
    chosen = _sampled(sets, of_row < 0, seed)
    sets, lengths, of_row = sets[chosen], lengths[chosen], of_row[chosen]
    numbers, sets = np.unique(sets, return_inverse=True)
    place = np.zeros(len(count), dtype=np.int64)
    place[number_of_own] = own
    row = place[numbers]
    return AnswerSets(
        sets, lengths, of_row, table.model[row], own_key[row], float(table.censored[own].mean()) if len(own) else 0.0
    )


def _samples(table: TraceTable, rows: Ints, numbers: Ints) -> tuple[npt.NDArray[np.int32], Ints]:
    counts = table.sample_count[rows].astype(np.int64)
    first = (np.cumsum(table.sample_count, dtype=np.int64) - table.sample_count)[rows]
    within = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
    return table.samples[np.repeat(first, counts) + within], np.repeat(numbers, counts)


def _sampled(sets: Ints, last: npt.NDArray[np.bool_], seed: int) -> Ints:
    """Indices sorted by set, ``last`` ones last and else at random, at most :data:`MOST` of a set."""
    order = np.lexsort((np.random.default_rng(seed).random(len(sets)), last, sets))
    begins = np.flatnonzero(np.diff(sets[order], prepend=-1))
    rank = np.arange(len(order)) - np.repeat(begins, np.diff(begins, append=len(order)))
    return np.asarray(order[rank < MOST], dtype=np.int64)


def same_prompt(answers: AnswerSets, model: str | None, others: ByOthers, seed: int) -> SamePrompt:
    """The figures of ``answers``; ``others`` is :func:`by_others` of them."""
    sizes = answers.sizes
    cv = variation(answers)
    logs = np.log(answers.lengths)
    log_means = np.bincount(answers.sets, weights=logs) / sizes
    within_log = float(((logs - log_means[answers.sets]) ** 2).sum() / (sizes - 1).sum())
    plain, logarithmic = icc(answers.lengths, answers.sets, seed), icc(logs, answers.sets, seed)
    true = answers.lengths[answers.targets]
    constant = measure(np.full(len(true), np.median(true)), true, seed)
    reached = [others.by_mean.mae_tokens if others.by_mean else np.inf, others.by_one.mae_tokens, others.by_median]
    return SamePrompt(
        model=model,
        prompts=len(sizes),
        answers=len(answers.sets),
        censored_share=answers.censored_share,
        cv_median=float(np.median(cv)),
        cv_p10=float(np.quantile(cv, 0.1)),
        cv_p90=float(np.quantile(cv, 0.9)),
        sd_log_within=within_log**0.5,
        **dict(zip(("icc", "icc_low", "icc_high"), plain, strict=True)),
        **dict(zip(("icc_log", "icc_log_low", "icc_log_high"), logarithmic, strict=True)),
        constant=constant,
        one_other=others.by_one,
        mean_of_others=others.by_mean,
        floor_mae_low_tokens=min(others.own_median, *reached),
        floor_mae_high_tokens=float(min(reached)),
    )


def variation(answers: AnswerSets) -> Floats:
    """Coefficient of variation within each set, shape ``[k]``."""
    sizes = answers.sizes
    means = np.bincount(answers.sets, weights=answers.lengths) / sizes
    squares = np.bincount(answers.sets, weights=(answers.lengths - means[answers.sets]) ** 2)
    return np.asarray(np.sqrt(squares / (sizes - 1)) / means)


def icc(values: Floats, sets: Ints, seed: int) -> tuple[float, float, float]:
    """ICC(1) of ``values`` (shape ``[m]``) in ``sets`` (``[m]``, 0 to k - 1), and its 95 % interval; at least 0."""
    if np.ptp(values) == 0:
        return 0.0, 0.0, 0.0
    # Far from zero, sums of squares would lose their digits.
    values = values - values.mean()
    sizes = np.bincount(sets).astype(np.float64)
    sums = np.bincount(sets, weights=values)
    # The terms of the mean squares, per set: 1, n, n^2, sum, sum^2 / n, sum of squares.
    parts = np.column_stack(
        (np.ones_like(sizes), sizes, sizes**2, sums, sums**2 / sizes, np.bincount(sets, weights=values**2))
    )
    rng = np.random.default_rng(seed)
    block = rng.permutation(len(parts)) % min(_BLOCKS, len(parts))
    blocks = np.column_stack([np.bincount(block, weights=column) for column in parts.T])
    weights = rng.multinomial(len(blocks), np.full(len(blocks), 1.0 / len(blocks)), size=_DRAWS)
    low, high = np.quantile(_icc(weights.astype(np.float64) @ blocks), (0.025, 0.975))
    return float(_icc(parts.sum(axis=0)[None, :])[0]), float(low), float(high)


def _icc(parts: Floats) -> Floats:
    k, n, squared, total, between, squares = parts.T
    mean_between = (between - total**2 / n) / (k - 1.0)
    mean_within = (squares - between) / (n - k)
    size = (n - squared / n) / (k - 1.0)
    denominator = mean_between + (size - 1.0) * mean_within
    with np.errstate(invalid="ignore", divide="ignore"):
        found = (mean_between - mean_within) / denominator
    return np.clip(np.where(denominator > 0, found, 0.0), 0.0, 1.0)


@dataclass(frozen=True, slots=True)
class ByOthers:
    """Every target predicted by the other answers of its set.

    ``by_one``, ``by_mean`` (``None`` where there is never more than one other) and ``by_median`` (mean error, tokens):
    by one other answer, by the mean and by the median of all others; ``own_median``: by the set's median. ``true``,
    ``one``, ``mean``, ``several`` have shape ``[t]``; ``several``: whether the mean is of more than one answer.
    """

    by_one: NoiseFloor
    by_mean: NoiseFloor | None
    by_median: float
    own_median: float
    true: Floats
    one: Floats
    mean: Floats
    several: npt.NDArray[np.bool_]


def by_others(answers: AnswerSets, seed: int) -> ByOthers:
    rng = np.random.default_rng(seed)
    sizes = answers.sizes
    begins = np.cumsum(sizes) - sizes
    pieces: list[tuple[npt.NDArray[Any], ...]] = []
    for size in np.unique(sizes):
        which = begins[sizes == size][:, None] + np.arange(size)
        values, targets = answers.lengths[which], answers.targets[which]
        total = values.sum(axis=1)
        for i in range(int(size)):
            here = targets[:, i]
            if not here.any():
                continue
            mine, rest = values[here, i], np.delete(values[here], i, axis=1)
            error = np.abs(rest - mine[:, None])
            pieces.append(
                (
                    mine,
                    rest[np.arange(len(rest)), rng.integers(0, size - 1, len(rest))],
                    (total[here] - mine) / (size - 1),
                    np.full(len(mine), size > 2),
                    error.mean(axis=1),
                    (error <= 50).mean(axis=1),
                    (error <= 100).mean(axis=1),
                    np.abs(np.median(rest, axis=1) - mine),
                    np.abs(values[here] - np.median(values[here], axis=1)[:, None]).mean(axis=1),
                )
            )
    columns = [np.concatenate(column) for column in zip(*pieces, strict=True)]
    true, one, mean, several = columns[:4]
    mae, within_50, within_100, by_median, own_median = (float(column.mean()) for column in columns[4:])
    order = tau(one, true, seed)
    return ByOthers(
        by_one=NoiseFloor(
            targets=len(true), mae_tokens=mae, within_50=within_50, within_100=within_100, kendall_tau=order
        ),
        by_mean=measure(mean[several], true[several], seed) if several.any() else None,
        by_median=by_median,
        own_median=own_median,
        true=true,
        one=one,
        mean=mean,
        several=several,
    )


MOST_MODELS: Final = 10
FEWEST_PROMPTS: Final = 20


def prompt_means(table: TraceTable) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64], Floats]:
    """Mean log length per prompt and model: hash, model, mean, each of shape ``[k]``, sorted by hash, then model."""
    rows = np.flatnonzero(table.prompt_hash)
    order = rows[np.lexsort((table.model[rows], table.prompt_hash[rows]))]
    prompt, model = table.prompt_hash[order], table.model[order].astype(np.int64)
    new = np.ones(len(order), dtype=bool)
    new[1:] = (np.diff(prompt) != 0) | (np.diff(model) != 0)
    number = np.cumsum(new) - 1
    sums = np.bincount(number, weights=np.log(np.maximum(table.response[order], 1)))
    return prompt[new], model[new], sums / np.bincount(number)


def across_models(table: TraceTable, seed: int) -> AcrossModels | None:
    """Compare the models of a table; ``None`` where no two have enough prompts in common."""
    if len(table.models) < 2:
        return None
    prompt, model, mean = prompt_means(table)
    _, number, count = np.unique(prompt, return_inverse=True, return_counts=True)
    shared = count[number] > 1
    sizes = np.bincount(model[shared], minlength=len(table.models))
    chosen = [int(m) for m in np.argsort(-sizes, kind="stable")[:MOST_MODELS] if sizes[m] >= FEWEST_PROMPTS]
    if len(chosen) < 2:
        return None
    of = {m: (prompt[model == m], mean[model == m]) for m in chosen}
    names = {m: table.models[m] or "not named" for m in chosen}
    pairs = [
        pair
        for a, b in itertools.combinations(chosen, 2)
        if (pair := compare_pair(names[a], *of[a], names[b], *of[b], seed)) is not None
    ]
    if not pairs:
        return None
    common = of[chosen[0]][0]
    for m in chosen[1:]:
        common = np.intersect1d(common, of[m][0], assume_unique=True)
    shares = {}
    if len(common) >= FEWEST_PROMPTS:
        means = np.column_stack([of[m][1][np.searchsorted(of[m][0], common)] for m in chosen])
        shares = dict(zip(("prompt_share", "model_share", "rest_share"), variance_shares(means), strict=True))
    return AcrossModels(models=len(chosen), prompts=len(common), pairs=pairs, **shares)


def compare_pair(
    name_a: str,
    prompts_a: npt.NDArray[np.uint64],
    means_a: Floats,
    name_b: str,
    prompts_b: npt.NDArray[np.uint64],
    means_b: Floats,
    seed: int,
) -> ModelPair | None:
    """Two models on the prompts both answered (hashes ascending, mean log lengths); ``None`` for too few of them."""
    _, here, there = np.intersect1d(prompts_a, prompts_b, assume_unique=True, return_indices=True)
    if len(here) < FEWEST_PROMPTS:
        return None
    a, b = means_a[here], means_b[there]
    difference = b - a
    mean, sd = float(difference.mean()), float(difference.std(ddof=1))
    away = Z95 * sd / len(here) ** 0.5
    return ModelPair(
        a=name_a,
        b=name_b,
        prompts=len(here),
        ratio=float(np.exp(mean)),
        ratio_low=float(np.exp(mean - away)),
        ratio_high=float(np.exp(mean + away)),
        sd_log_ratio=sd,
        kendall_tau=tau(a, b, seed),
    )


def variance_shares(values: Floats) -> tuple[float, float, float]:
    """Shares of the variance of ``values``, shape ``[prompts, models]``: of prompts, of models, and the rest."""
    if np.ptp(values) == 0:
        return 0.0, 0.0, 1.0
    r, c = values.shape
    rows, columns = values.mean(axis=1), values.mean(axis=0)
    rest = values - rows[:, None] - columns[None, :] + values.mean()
    mean_rest = float((rest**2).sum()) / ((r - 1) * (c - 1))
    of_rows = max(0.0, (c * float(rows.var(ddof=1)) - mean_rest) / c)
    of_columns = max(0.0, (r * float(columns.var(ddof=1)) - mean_rest) / r)
    total = of_rows + of_columns + mean_rest
    return of_rows / total, of_columns / total, mean_rest / total
