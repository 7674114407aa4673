"""Several answers to one prompt: how much of the length the prompt decides, which bounds any predictor.

A set is one model's answers to one prompt (its whole context): rows with equal prompt and model; a single such row with
its own further samples, of which only the row's length is a target. At most :data:`MOST` answers of a set count.

* Share that the prompt explains: the intraclass correlation of one-way random effects, ICC(1), from the mean squares
  between and within sets of unequal size (Donner 1986). A predictor that sees the prompt only cannot have a higher R
  squared. Interval: bootstrap over prompts.
* Noise floor: a target predicted by one other answer of its set (each in turn; tau: a random one), and by the mean of
  all others. The smallest expected error, if a set's answers are exchangeable, lies between a set's deviation from its
  own median (too small on average) and the error of the others' mean or median.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ecoserve.data.profiling.accuracy import measure, tau
from ecoserve.data.profiling.model import NoiseFloor, SamePrompt
from ecoserve.data.profiling.table import TraceTable

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

#: Fewer sets are no evidence.
FEWEST_SETS: Final = 10
#: Answers of a set that count.
MOST: Final = 16
_DRAWS: Final = 400
#: Sets are put into this many random blocks, which the bootstrap draws.
_BLOCKS: Final = 2000


@dataclass(frozen=True, slots=True)
class AnswerSets:
    """Answers by set.

    Attributes:
        sets: shape ``[m]``, number of the set, ascending, 0 to k - 1.
        lengths: shape ``[m]``, tokens.
        rows: shape ``[m]``, the answer's row in the table; -1 for a row's further samples, which are no targets.
        model: shape ``[k]``, the set's model, as in the table.
        prompt_hash: shape ``[k]``.
        censored_share: of the answers that are rows of the trace.
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
        """Answers per set, shape ``[k]``."""
        return np.bincount(self.sets, minlength=len(self.model))

    def of_model(self, model: int) -> AnswerSets:
        """The sets of one model."""
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
    """The further samples of ``rows``, and the set of each."""
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
        icc=plain[0],
        icc_low=plain[1],
        icc_high=plain[2],
        icc_log=logarithmic[0],
        icc_log_low=logarithmic[1],
        icc_log_high=logarithmic[2],
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

    Attributes:
        by_one: by one other answer.
        by_mean: by the mean of all others; ``None`` where there is never more than one.
        by_median: mean error (tokens) of their median.
        own_median: mean error (tokens) of the set's median, the target included.
        true, one, mean: shape ``[t]``, each target's length, one other answer's, and the mean of all others.
        several: shape ``[t]``, whether that mean is of more than one.
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
    """Every target predicted by the other answers of its set."""
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
