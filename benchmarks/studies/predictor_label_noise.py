"""How much of a predictor's error is the sampler's dice, and what near-duplicates are worth: parts of the study.

Imported by ``predictor_study.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from predictor_data import asked, boosted, spread
from scipy.stats import kendalltau

from ecoserve.data import Record, Trace
from ecoserve.data.splitting import shingles, similar_pairs
from ecoserve.lengths import LengthDistribution
from ecoserve.predictor import ConstantMedian
from ecoserve.predictor.evaluation import score, scored_records, true_lengths
from ecoserve.predictor.examples import Examples, training_parts

Array = npt.NDArray[np.float64]
#: Temperatures of the four answers, in the order of their field; the last is what is predicted.
TEMPERATURES: Final = (0.0, 0.3, 0.5, 0.7)


def samples_of(records: Sequence[Record]) -> Array:
    """Lengths (tokens) of all answers to ``n`` prompts, the one that is predicted last, shape ``[n, samples]``."""
    return np.asarray([[*r.sample_tokens, r.response_tokens] for r in records], dtype=np.float64)


def label_noise(
    records: Sequence[Record], predicted: Sequence[LengthDistribution], temperatures: Sequence[float] = TEMPERATURES
) -> dict[str, Any]:
    """What several answers to the same prompt say about the error of ``predicted``, made without seeing the rows.

    Two answers at neighbouring temperatures are taken for two draws from the same law. Half their mean squared
    difference is then the squared error that even the law's own mean would make: the noise.
    """
    x = samples_of(records)
    own, before = x[:, -1], x[:, -2]
    cap = float(x.max())
    medians = np.asarray([d.quantile(0.5) for d in predicted], dtype=np.float64)
    means = np.asarray([d.mean() for d in predicted])
    noise = float(((own - before) ** 2).mean() / 2.0)
    squared = float(((own - means) ** 2).mean())
    others = x[:, :-1].mean(axis=1)
    floor = float(np.abs(own - others).mean())
    error = float(np.abs(own - medians).mean())
    # The mean of m others is itself off by 1/m of the noise. Were errors normal, the law's own centre would be nearer
    # by the root of m / (m + 1).
    m = x.shape[1] - 1
    cut = own >= cap - 2
    whole = ~cut
    return {
        "rows": len(x),
        "temperatures": [
            {
                "temperature": t,
                "mean_tokens": _r(column.mean()),
                "p50_tokens": _r(np.median(column)),
                "p90_tokens": _r(np.quantile(column, 0.9)),
                "share_cut_off": _r((column >= cap - 2).mean(), 4),
                "mae_to_own_tokens": _r(np.abs(column - own).mean()),
                "tau_to_own": _r(kendalltau(column, own).statistic, 4),
            }
            for t, column in zip(temperatures, x.T, strict=True)
        ],
        "same_prompt_sd_tokens": _r(x.std(axis=1, ddof=1).mean()),
        "same_prompt_sd_of_log": _r(np.log1p(x).std(axis=1, ddof=1).mean(), 3),
        "variance_within_prompts": _r(x.var(axis=1, ddof=1).mean() / x.var(), 3),
        "predictor_mae_tokens": _r(error),
        "others_mean_mae_tokens": _r(floor),
        "law_centre_mae_tokens": _r(floor * np.sqrt(m / (m + 1.0))),
        "noise_share_of_absolute_error": [_r(floor * np.sqrt(m / (m + 1.0)) / error, 3), _r(floor / error, 3)],
        "predictor_rms_tokens": _r(np.sqrt(squared)),
        "noise_rms_tokens": _r(np.sqrt(noise)),
        "noise_share_of_squared_error": _r(noise / squared, 3),
        "cut_off": {
            "share": _r(cut.mean(), 4),
            "any_answer_share": _r((x >= cap - 2).any(axis=1).mean(), 4),
            "mae_tokens": _r(np.abs(own - medians)[cut].mean() if cut.any() else np.nan),
            "mae_of_the_others_tokens": _r(np.abs(own - medians)[whole].mean()),
            "predicted_cut_off": _r(
                np.mean([d.survival(cap - 3) for d, c in zip(predicted, cut, strict=True) if c])
                if cut.any()
                else np.nan,
                3,
            ),
        },
    }


def near_duplicates(texts: Sequence[str], known: Sequence[str]) -> list[list[int]]:
    """For each of ``texts`` the places in ``known`` of its near-duplicates (:mod:`ecoserve.data.splitting`)."""
    distinct: dict[frozenset[str], int] = {}
    which = [distinct.setdefault(shingles(t), len(distinct)) for t in (*texts, *known)]
    of_known: dict[int, list[int]] = {}
    for place, number in enumerate(which[len(texts) :]):
        of_known.setdefault(number, []).append(place)
    near: dict[int, set[int]] = {}
    for pairs in similar_pairs(list(distinct)):
        for i, j in pairs.tolist():
            near.setdefault(i, set()).add(j)
            near.setdefault(j, set()).add(i)
    return [
        sorted(place for other in {number, *near.get(number, ())} for place in of_known.get(other, ()))
        for number in which[: len(texts)]
    ]


def duplicates_across(trace: Trace, seeds: Sequence[int]) -> dict[str, Any]:
    """Near-duplicates of dev prompts in train: how many, and what a LightGBM predictor gains by having seen them.

    Three predictors per seed: of all train rows, of those without a near-duplicate in dev, and, as a control, without
    as many rows chosen at random.
    """
    train = [r for r in trace.records if r.split == "train"]
    dev = scored_records(r for r in trace.records if r.split != "train")
    near = near_duplicates([r.prompt or "" for r in dev], [r.prompt or "" for r in train])
    has = np.asarray([bool(places) for places in near])
    theirs = sorted({place for places in near for place in places})
    y = true_lengths(dev)
    means = [np.mean([train[p].response_tokens or 0 for p in places]) for places in near if places]
    runs: dict[str, list[dict[str, float]]] = {}
    for seed in seeds:
        random = np.random.default_rng(seed).choice(len(train), size=len(theirs), replace=False)
        for name, without in (("all_of_train", ()), ("without_duplicates", theirs), ("as_many_at_random", random)):
            left_out = set(map(int, without))
            rows = [r for i, r in enumerate(train) if i not in left_out]
            parts = training_parts(trace.with_records([*rows, *dev]), seed=seed)
            predicted = asked(boosted(parts, seed), dev)
            for part, here in (("with", has), ("other", ~has)):
                chosen = [d for d, h in zip(predicted, here, strict=True) if h]
                runs.setdefault(f"{name}_{part}", []).append(score(chosen, y[here]))
    constant = ConstantMedian.fit(Examples.of(train)).distribution
    return {
        "dev_rows": len(dev),
        "dev_rows_with_a_duplicate": int(has.sum()),
        "train_rows_with_a_duplicate": len(theirs),
        "constant_median_mae_tokens": {
            part: _r(score([constant] * int(here.sum()), y[here])["mae_tokens"])
            for part, here in (("with", has), ("other", ~has))
        },
        "duplicates_mean_mae_tokens": _r(np.abs(np.asarray(means) - y[has]).mean()),
        "found": {name: spread(values) for name, values in runs.items()},
    }


def out_of_fold(trace: Trace, folds: int, seed: int) -> tuple[list[Record], list[LengthDistribution]]:
    """Rows of train, and what a LightGBM predictor that has not learned from them says of each."""
    rows = scored_records(r for r in trace.records if r.split == "train")
    fold = np.random.default_rng(seed).permutation(len(rows)) % folds
    predicted: dict[int, LengthDistribution] = {}
    for k in range(folds):
        split = [replace(r, split="dev" if f == k else "train") for r, f in zip(rows, fold, strict=True)]
        at = np.flatnonzero(fold == k).tolist()
        model = boosted(training_parts(trace.with_records(split), seed=seed), seed)
        predicted |= dict(zip(at, asked(model, [rows[i] for i in at]), strict=True))
    return rows, [predicted[i] for i in range(len(rows))]


def _r(value: Any, digits: int = 2) -> float | None:
    number = round(float(value), digits)
    return number if np.isfinite(number) else None
