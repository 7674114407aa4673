"""The same prompts answered by several models: are the same prompts long?

A model's length for a prompt is the geometric mean of its answers. Variance shares (the prompt's, the model's, the
rest) are those of the two-way layout prompt x model on log length (Searle, Casella and McCulloch 1992, method of
moments), over the prompts that all compared models have answered.
"""

from __future__ import annotations

import itertools
from typing import Final

import numpy as np
import numpy.typing as npt

from ecoserve.data.profiling.accuracy import tau
from ecoserve.data.profiling.model import AcrossModels, ModelPair
from ecoserve.data.profiling.summaries import Z95
from ecoserve.data.profiling.table import TraceTable

MOST_MODELS: Final = 10
FEWEST_PROMPTS: Final = 20

Floats = npt.NDArray[np.float64]


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
