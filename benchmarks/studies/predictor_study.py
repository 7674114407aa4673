"""Where a predictor's error comes from: near-duplicates, label noise, learning curve, kinds of prompts.

    python benchmarks/studies/predictor_study.py ../shared/data benchmarks/results/predictor_study.json \\
        --checkpoint encoder=DIR --embeddings FILE.npz

Alpaca prompts with Vicuna-7B's lengths. Only the part about near-duplicates looks at dev, for it is about dev; all else
is measured on rows of train that the predictor in question has not learned from: LightGBM out of five folds, the
learning curve on a tenth of train, checkpoints on the rows that were held out of their training. ``--parts`` makes some
parts only and leaves the others in the file as they are. Seven minutes of CPU time on one core.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import common
import numpy as np
from predictor_data import Remembered, asked, boosted, load, scored_on_dev, spread
from predictor_label_noise import Array, duplicates_across, label_noise, out_of_fold, samples_of
from scipy.stats import kendalltau

from ecoserve.data import Record, Trace, split_trace
from ecoserve.lengths import LengthDistribution
from ecoserve.predictor import load_predictor
from ecoserve.predictor.baselines import POINT_KEYS
from ecoserve.predictor.boosting.features import NAMES, request_features
from ecoserve.predictor.evaluation import score, scored_records, true_lengths
from ecoserve.predictor.examples import training_parts
from ecoserve.predictor.runtime import let_waiting_threads_sleep
from ecoserve.predictor.text import read_record

PARTS: Final = ("duplicates", "noise", "curve", "errors")
SIZES: Final = (500, 1000, 2000, 4000, 9000)
FOLDS: Final = 5
#: Fewer rows of a kind than this say nothing about it.
_KIND_ROWS: Final = 100


def learning_curve(trace: Trace, sizes: Sequence[int], seeds: Sequence[int], embed: Remembered) -> dict[str, Any]:
    """Errors on a tenth of train by the number of other train rows: LightGBM, and a ridge regression on embeddings.

    The regression, from the frozen encoder's embedding to the mean log length, stands in for the encoder: it shows what
    more rows bring to a predictor that reads meaning, at a hundredth of a fine-tune's cost.
    """
    found: dict[str, dict[str, list[dict[str, float]]]] = {"lightgbm": {}, "ridge_on_embeddings": {}}
    for seed in seeds:
        data = tenth_apart(trace, seed)
        for size in sizes:
            parts = training_parts(data, seed=seed, max_rows=size)
            found["lightgbm"].setdefault(str(size), []).append(scored_on_dev(boosted(parts, seed), parts))
            views = [*parts.fit.views, *parts.held.views]
            lengths = [*zip(parts.fit.lengths, parts.fit.samples, strict=True)]
            lengths += [*zip(parts.held.lengths, parts.held.samples, strict=True)]
            target = np.asarray([np.log1p([own, *more]).mean() for own, more in lengths])
            rows = scored_records(parts.dev_records)
            x, new = embed(views), embed([view for r in rows if (view := read_record(r)) is not None])
            points = [LengthDistribution.point(max(1, round(n))) for n in ridge(x, target, new).tolist()]
            scored = score(points, true_lengths(rows))
            found["ridge_on_embeddings"].setdefault(str(size), []).append({k: scored[k] for k in POINT_KEYS})
    return {name: {size: spread(runs) for size, runs in by_size.items()} for name, by_size in found.items()}


def ridge(x: Any, target: Array, new: Any) -> Array:
    """Lengths (tokens) from a ridge regression of mean log lengths on embeddings; the penalty by leaving one out."""
    from sklearn.linear_model import RidgeCV

    model = RidgeCV(alphas=np.logspace(-2, 3, 11)).fit(x.astype(np.float64), target)
    return np.asarray(np.expm1(np.clip(model.predict(new.astype(np.float64)), 0.0, 12.0)))


def tenth_apart(trace: Trace, seed: int) -> Trace:
    """The train rows of a trace, a tenth of them called dev: by near-duplicate groups, as the product splits."""
    own = trace.with_records(replace(r, split=None) for r in trace.records if r.split == "train")
    dev = {r.conversation for r in split_trace(own, dev=0.1, seed=seed)["dev"].records}
    return own.with_records(replace(r, split="dev" if r.conversation in dev else "train") for r in own.records)


def error_by_kind(records: Sequence[Record], predicted: Sequence[LengthDistribution]) -> dict[str, Any]:
    """Errors by kind of prompt and by length, beside what noise alone would make (the mean of the other answers).

    ``avoidable_tokens`` is a kind's error beyond that, and ``share_of_avoidable`` what it makes up of all of it: where
    a better predictor could gain. Kinds overlap.
    """
    y = true_lengths(records)
    medians = np.asarray([d.quantile(0.5) for d in predicted], dtype=np.float64)
    views = [view for r in records if (view := read_record(r)) is not None]
    features = dict(zip(NAMES, request_features(views).T, strict=True))
    kinds = {name: values > 0 for name, values in features.items() if name.startswith("asks_")}
    kinds["asks_nothing_known"] = ~np.any(list(kinds.values()), axis=0)
    kinds["has_input"] = features["lines"] > 0
    kinds["without_input"] = features["lines"] == 0
    kinds["names_a_number"] = features["numbers"] > 0
    kinds["code_marks"] = features["brackets"] >= 2
    kinds["other_script"] = features["other_script_share"] > 0.05
    kinds["short_prompt"] = features["words"] <= 7
    kinds["long_prompt"] = features["words"] >= 30
    bands = dict(zip(("true", "predicted"), (_bands(y), _bands(medians)), strict=True))
    others = samples_of(records)[:, :-1].mean(axis=1)
    rows = {name: _kind(here, y, medians, others) for name, here in kinds.items() if here.sum() >= _KIND_ROWS}
    avoidable = float((np.abs(y - medians) - np.abs(y - others)).sum())
    for row in rows.values():
        its = row["avoidable_tokens"] * row["rows"]
        row["share_of_avoidable"] = round(its / avoidable, 3) if avoidable > 0 else 0.0
    worst_first = sorted(rows.items(), key=lambda item: -item[1]["avoidable_tokens"])
    lengths = {
        f"{of}_length": {name: _kind(here, y, medians, others) for name, here in parts.items()}
        for of, parts in bands.items()
    }
    everything = _kind(np.ones(len(y), dtype=bool), y, medians, others)
    return {"all": everything, "kinds": dict(worst_first), **lengths}


def _bands(x: Array) -> dict[str, Any]:
    """Fifths of ``x`` by name: the lengths (tokens) between which they lie."""
    cuts = [0, *np.quantile(x, [0.2, 0.4, 0.6, 0.8]).astype(int).tolist(), int(x.max())]
    return {f"{a + 1}-{b}": (x > a) & (x <= b) for a, b in pairwise(cuts) if a < b}


def _kind(here: Any, y: Array, medians: Array, others: Array) -> dict[str, float]:
    own, predicted, rest = y[here], medians[here], others[here]
    error, noise = float(np.abs(own - predicted).mean()), float(np.abs(own - rest).mean())
    varies = np.ptp(predicted) > 0 and np.ptp(own) > 0
    return {
        "rows": int(here.sum()),
        "mean_tokens": round(float(own.mean()), 1),
        "mae_tokens": round(error, 2),
        "bias_tokens": round(float((predicted - own).mean()), 2),
        "others_mean_mae_tokens": round(noise, 2),
        "avoidable_tokens": round(error - noise, 2),
        "kendall_tau": round(float(kendalltau(predicted, own).statistic), 3) if varies else 0.0,
    }


def held_out(trace: Trace, folder: str) -> tuple[list[Record], list[LengthDistribution]]:
    """The train rows that a checkpoint's training held out, and what it says of them."""
    predictor = load_predictor(folder)
    used = predictor.config.hyperparameters
    share = float(used.get("held_out", 0.1))
    parts = training_parts(trace, seed=predictor.config.seed, max_rows=used.get("max_rows"), held_out=share)
    rows = list(parts.held_records)
    return rows, asked(predictor, rows)


def main(arguments: list[str]) -> None:
    """Make the parts asked for and write the file."""
    parser = common.arguments_of(__doc__)
    parser.add_argument("data", type=Path, help="folder with the traces")
    parser.add_argument("out", type=Path, help="result file, made or updated")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--checkpoint", action="append", default=[], metavar="NAME=DIR")
    parser.add_argument("--embeddings", type=Path, help="file that keeps the prompts' embeddings (.npz)")
    given = parser.parse_args(arguments)
    let_waiting_threads_sleep()
    trace = load(given.data, "alpaca")
    content: dict[str, Any] = common.read(given.out.resolve())
    folders = dict(c.split("=", 1) for c in given.checkpoint)
    options = "".join(f" --checkpoint {name}={Path(folder).name}" for name, folder in folders.items())
    seeds = " ".join(map(str, given.seeds))
    content["trace_sha256"] = trace.sha256
    predictions: dict[str, tuple[list[Record], list[LengthDistribution]]] = {}
    if {"noise", "errors"} & set(given.parts):
        predictions["lightgbm"] = out_of_fold(trace, FOLDS, given.seeds[0])
        predictions |= {name: held_out(trace, folder) for name, folder in folders.items()}
    for part in given.parts:
        command = "python benchmarks/studies/predictor_study.py ../shared/data"
        command += f" {given.out.name} --parts {part} --seeds {seeds}"
        content[part] = {"command": command}
        if part == "duplicates":
            content[part] |= duplicates_across(trace, given.seeds)
        elif part == "curve":
            content[part] |= learning_curve(trace, SIZES, given.seeds, Remembered(given.embeddings))
        else:
            content[part]["command"] += options
            study = label_noise if part == "noise" else error_by_kind
            content[part] |= {name: study(*rows) for name, rows in predictions.items()}
        common.write(given.out, content)
        print(part, "done", file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1:])
