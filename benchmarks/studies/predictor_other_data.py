"""Predictors on ShareGPT (split by conversation) and AlpacaEval (models that were seen, prompts that were not).

    python benchmarks/studies/predictor_other_data.py ../shared/data benchmarks/results/predictor_other_data.json
    python benchmarks/studies/predictor_other_data.py ... --backends stacked --work CHECKPOINTS
    python benchmarks/studies/predictor_other_data.py ... --backends after --start-from alpaca=CHECKPOINT

Three seeds, each with a split of its own that keeps conversations and near-duplicate prompts on one side; all backends
have the same rows of each seed. ``lightgbm`` is trained on the spot. ``stacked`` is what ``train-predictor`` makes by
the trace's recipe (``recipes/sharegpt.yaml``, ``recipes/alpaca-eval.yaml``), ``after`` by the second stage of
``recipes/chat-after-alpaca.yaml``, from a checkpoint that has learned something else before. Their checkpoints lie in
the work folder: the same command goes on with what is there, and only evaluates what is finished.

- ShareGPT: with what went before in the conversation, and (LightGBM) with the question alone; first and later turns
  apart.
- AlpacaEval: nine models answer the same prompts. One predictor for all that does not know the model; one that
  knows the model's name (as the request's system message); with LightGBM one predictor per model too, and beside them
  the constant median of each model. Each is scored on all dev rows together and on each model's alone.

``found`` has the scores on dev, ``held_out`` those on the held-out part of train: choices are made by the latter.
Lengths are characters / 4, for neither trace names a tokenizer. LightGBM takes three minutes of CPU time on one core.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, TypeAlias

import common
import numpy as np
from predictor_data import asked, boosted, load, spread

from ecoserve.data import Message, Record, Trace, split_trace
from ecoserve.lengths import LengthDistribution
from ecoserve.predictor import Bins, ConstantMedian, LengthPredictor, train_predictor
from ecoserve.predictor.evaluation import score, scored_records, true_lengths
from ecoserve.predictor.examples import Examples, training_parts
from ecoserve.predictor.recipes import Recipe, read_recipe
from ecoserve.predictor.runtime import let_waiting_threads_sleep
from ecoserve.predictor.stacking import WEIGHT

#: From a trace's rows, the seed and a name for the checkpoint to a predictor.
Learns: TypeAlias = Callable[[Trace, int, str], LengthPredictor]
RECIPES: Final = common.ROOT / "recipes"
#: What is shown of each seed, beside the mean.
BY_SEED: Final = ("mae_tokens", "kendall_tau", "crps", "coverage_90")
#: Ways to read AlpacaEval; see the top.
WHO_KNOWS: Final = ("constant_per_model", "model_unknown", "model_named", "one_per_model")

#: Those of the ways to read each trace that are worth a fine-tuned encoder.
WAYS: Final = {"sharegpt": ("with_conversation",), "alpaca_eval": ("model_unknown", "model_named")}


def marked(trace: Trace, seed: int) -> Trace:
    """The trace with the split of ``seed`` written into its records."""
    parts = split_trace(trace, seed=seed)
    dev = {id(r) for r in parts["dev"].records}
    return trace.with_records(replace(r, split="dev" if id(r) in dev else "train") for r in trace.records)


def question_alone(record: Record) -> Record:
    """Without what went before."""
    return replace(record, messages=())


#: Ways to read ShareGPT.
CONTEXTS: Final[dict[str, Callable[[Record], Record] | None]] = {
    "with_conversation": None,
    "question_alone": question_alone,
}


def named(record: Record) -> Record:
    """With the name of the model that answers, in one word, as the system message."""
    name = re.sub(r"\W", "_", record.model or "")
    return replace(record, messages=(Message("system", name), Message("user", record.prompt or "")))


def of_trees(trace: Trace, seed: int, name: str) -> LengthPredictor:
    """A LightGBM predictor of the trace's train rows; the name is for those that are saved."""
    return boosted(training_parts(trace, seed=seed), seed)


@dataclass(frozen=True, slots=True)
class OfRecipe:
    """Predictors as ``train-predictor`` makes them by a recipe, each in a folder of ``work``.

    It is left to split the trace itself, so that its own command makes the very same checkpoint.
    """

    recipe: Recipe
    work: Path
    #: what each training reports
    trainings: list[dict[str, Any]] = field(default_factory=list)

    def __call__(self, trace: Trace, seed: int, name: str) -> LengthPredictor:
        plain = trace.with_records(replace(r, split=None) for r in trace.records)
        if [r.split for r in marked(plain, seed).records] != [r.split for r in trace.records]:
            raise SystemExit(f"{name}, seed {seed}: not the split of the other backends")
        predictor = train_predictor(
            plain,
            backend=self.recipe.backend,
            output_dir=self.work / f"{name}-seed{seed}",
            seed=seed,
            settings=self.recipe.made_settings(),
            bins=self.recipe.bins,
            served_model=self.recipe.served_model,
            max_rows=self.recipe.max_rows,
            held_out=self.recipe.held_out,
            resume=True,
        )
        config = predictor.config
        about = {"name": name, "seed": seed, "rows_trained": config.rows_trained, "rows_held_out": config.rows_held_out}
        self.trainings.append({**about, WEIGHT: config.model.get(WEIGHT)})
        print(*self.trainings[-1].values(), file=sys.stderr, flush=True)
        return predictor


def on_held_out(predictor: LengthPredictor, trace: Trace, seed: int) -> dict[str, float]:
    """The scores on the held-out part of train, by which the predictor was chosen and calibrated."""
    known = predictor.config.metrics.get("held_out")
    if known is not None:
        return known
    rows = scored_records(training_parts(trace, seed=seed).held_records)
    return score(asked(predictor, rows), true_lengths(rows))


def over_seeds(runs: Sequence[dict[str, float]]) -> dict[str, Any]:
    """The mean and its spread, and the gist of each seed: seeds have rows of their own, so compare seed by seed."""
    return {**spread(runs), "by_seed": {key: [round(run[key], 3) for run in runs] for key in BY_SEED}}


def dev_rows(trace: Trace) -> list[Record]:
    return scored_records(r for r in trace.records if r.split == "dev")


def sharegpt(
    trace: Trace, seeds: Sequence[int], learned: Learns = of_trees, ways: Sequence[str] = tuple(CONTEXTS)
) -> dict[str, Any]:
    """What the conversation tells, as scores by name: on dev, and on the held-out part of train."""
    runs: dict[str, list[dict[str, float]]] = {}
    held: dict[str, list[dict[str, float]]] = {}
    for seed in seeds:
        split = marked(trace, seed)
        for name in ways:
            form = CONTEXTS[name]
            data = split if form is None else split.with_records(map(form, split.records))
            predictor, rows = learned(data, seed, f"sharegpt-{name}"), dev_rows(data)
            held.setdefault(name, []).append(on_held_out(predictor, data, seed))
            predicted, y = asked(predictor, rows), true_lengths(rows)
            turns = np.asarray([r.turn for r in rows])
            for part, chosen in (("", turns >= 0), ("_first_turn", turns == 0), ("_later_turns", turns > 0)):
                runs.setdefault(name + part, []).append(_score(predicted, y, chosen))
    return {
        "found": {name: over_seeds(values) for name, values in runs.items()},
        "held_out": {name: over_seeds(values) for name, values in held.items()},
    }


def alpaca_eval(
    trace: Trace, seeds: Sequence[int], learned: Learns = of_trees, ways: Sequence[str] = WHO_KNOWS
) -> dict[str, Any]:
    """Who knows which model answers, as scores by name: of all dev rows and of each model's; and of held-out rows."""
    models = sorted({r.model or "" for r in trace.records})
    overall: dict[str, list[dict[str, float]]] = {}
    held: dict[str, list[dict[str, float]]] = {}
    single: dict[str, dict[str, list[dict[str, float]]]] = {}
    for seed in seeds:
        split = marked(trace, seed)
        rows = dev_rows(split)
        y, of = true_lengths(rows), np.asarray([r.model for r in rows])
        for way in ways:
            if way == "constant_per_model":
                predicted = _each(models, rows, lambda m, s=split: ConstantMedian.fit(*_train(s, m)))
            elif way == "one_per_model":
                predicted = _each(models, rows, lambda m, s=split, n=seed: learned(_only(s, m), n, f"alpaca_eval-{m}"))
            else:
                form = named if way == "model_named" else _as_it_is
                data = split.with_records(map(form, split.records))
                predictor = learned(data, seed, f"alpaca_eval-{way}")
                held.setdefault(way, []).append(on_held_out(predictor, data, seed))
                predicted = asked(predictor, [form(r) for r in rows])
            overall.setdefault(way, []).append(score(predicted, y))
            for model in models:
                single.setdefault(way, {}).setdefault(model, []).append(_score(predicted, y, of == model))
    by_model = {way: {m: spread(runs) for m, runs in found.items()} for way, found in single.items()}
    within = {way: float(np.mean([v["kendall_tau"] for v in found.values()])) for way, found in by_model.items()}
    return {
        "found": {
            way: {**over_seeds(runs), "kendall_tau_within_models": round(within[way], 5), "models": by_model[way]}
            for way, runs in overall.items()
        },
        "held_out": {way: over_seeds(runs) for way, runs in held.items()},
    }


def _as_it_is(record: Record) -> Record:
    return record


def _each(models: Iterable[str], rows: Sequence[Record], fitted: Any) -> list[LengthDistribution]:
    """What the predictor of each row's own model says of it, in the order of ``rows``."""
    found: dict[int, LengthDistribution] = {}
    for model in models:
        at = [i for i, r in enumerate(rows) if r.model == model]
        found |= dict(zip(at, asked(fitted(model), [rows[i] for i in at]), strict=True))
    return [found[i] for i in range(len(rows))]


def _only(trace: Trace, model: str) -> Trace:
    return trace.with_records(r for r in trace.records if r.model == model)


def _train(trace: Trace, model: str) -> tuple[Examples, Bins]:
    examples = Examples.of(r for r in trace.records if r.model == model and r.split == "train")
    return examples, Bins.fit(examples.all_lengths())


def _score(predicted: Sequence[LengthDistribution], y: Any, chosen: Any) -> dict[str, float]:
    return score([d for d, here in zip(predicted, chosen, strict=True) if here], y[chosen])


def measured(
    name: str,
    backend: str,
    trace: Trace,
    seeds: Sequence[int],
    work: Path | None,
    start: str | None,
    ways: Sequence[str] = (),
) -> dict[str, Any]:
    """What one backend does on one trace; ``start`` is ``NAME=CHECKPOINT`` for the backend ``after``.

    ``ways`` are those in which the trace is read by ``stacked`` and ``after``, all of :data:`WAYS` by default.
    """
    measure = {"sharegpt": sharegpt, "alpaca_eval": alpaca_eval}[name]
    if backend == "lightgbm":
        return measure(trace, seeds)
    if work is None:
        raise SystemExit("--work FOLDER: where the checkpoints of stacked and after go")
    if backend == "after":
        if start is None:
            raise SystemExit("--start-from NAME=CHECKPOINT: what after starts from")
        label, _, folder = start.partition("=")
        file = RECIPES / "chat-after-alpaca.yaml"
        recipe, place = read_recipe(file).started_from(Path(folder)), work / f"after-{label}"
    else:
        file = RECIPES / f"{name.replace('_', '-')}.yaml"
        recipe, place = read_recipe(file), work / "stacked"
    train = OfRecipe(recipe, place)
    found = measure(trace, seeds, train, [w for w in WAYS[name] if not ways or w in ways])
    return {"recipe": file.name, **found, "trainings": train.trainings}


def shown_command(given: argparse.Namespace, name: str, backend: str) -> str:
    """The command of one part of the file, without the places of this machine."""
    words = ["python benchmarks/studies/predictor_other_data.py ../shared/data", given.out.name, "--traces", name]
    words += ["--seeds", *map(str, given.seeds)]
    if backend != "lightgbm":
        words += ["--backends", backend]
        if given.ways:
            words += ["--ways", *given.ways]
        if backend == "after":
            label, _, folder = given.start_from.partition("=")
            words += ["--start-from", f"{label}={Path(folder).name}"]
        words += ["--work", given.work.name]
    return " ".join(words)


def main(arguments: list[str]) -> None:
    """Measure, write each part into the file as it is done, print the gist."""
    parser = common.arguments_of(__doc__)
    parser.add_argument("data", type=Path, help="folder with the traces")
    parser.add_argument("out", type=Path)
    parser.add_argument("--traces", nargs="+", choices=["sharegpt", "alpaca_eval"], default=["sharegpt", "alpaca_eval"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--backends", nargs="+", choices=["lightgbm", "stacked", "after"], default=["lightgbm"])
    parser.add_argument("--ways", nargs="+", choices=sum(WAYS.values(), ()), help="only these of stacked and after")
    parser.add_argument("--work", type=Path, help="folder for the checkpoints of stacked and after")
    parser.add_argument("--start-from", metavar="NAME=CHECKPOINT", help="what after starts from")
    given = parser.parse_args(arguments)
    let_waiting_threads_sleep()
    for name in given.traces:
        trace = load(given.data, name)
        for backend in given.backends:
            part = measured(name, backend, trace, given.seeds, given.work, given.start_from, given.ways or ())
            part = {"command": shown_command(given, name, backend), **part}
            content: dict[str, Any] = common.read(given.out.resolve())
            section = content.setdefault(name, {})
            section |= {"sha256": trace.sha256, "length_source": trace.length_source}
            if backend == "lightgbm":
                section |= part
            else:
                key = backend if backend == "stacked" else f"stacked_after_{given.start_from.partition('=')[0]}"
                section[key] = part
            for way, values in part["found"].items():
                gist = (f"{k} {values[k]:.3f}" for k in ("rows", "mae_tokens", "kendall_tau", "coverage_90"))
                print(name, backend, way, *gist)
            common.write(given.out, content)


if __name__ == "__main__":
    main(sys.argv[1:])
