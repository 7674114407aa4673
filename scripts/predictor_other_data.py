"""Predictors on ShareGPT (split by conversation) and AlpacaEval (models that were seen, prompts that were not).

    python scripts/predictor_other_data.py ../shared/data benchmarks/results/predictor_other_data.json

LightGBM, three seeds, each with a split of its own that keeps conversations and near-duplicate prompts on one side.

- ShareGPT: with what went before in the conversation, and with the question alone; first and later turns apart.
- AlpacaEval: nine models answer the same prompts. One predictor for all that does not know who answers; one that is
  told the model's name (as the request's system message); one predictor per model; and beside them the constant median
  of each model. Each is scored on all dev rows together and on each model's alone.

Lengths are characters / 4, for neither trace names a tokenizer. Three minutes of CPU time on one core.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from predictor_data import asked, boosted, load, spread, write

from ecoserve.data import Message, Record, Trace, split_trace
from ecoserve.lengths import LengthDistribution
from ecoserve.predictor import Bins, ConstantMedian, LengthPredictor
from ecoserve.predictor.evaluation import score, scored_records, true_lengths
from ecoserve.predictor.examples import Examples, training_parts
from ecoserve.predictor.threads import let_waiting_threads_sleep


def marked(trace: Trace, seed: int) -> Trace:
    """The trace with the split of ``seed`` written into its records."""
    parts = split_trace(trace, seed=seed)
    dev = {id(r) for r in parts["dev"].records}
    return trace.with_records(replace(r, split="dev" if id(r) in dev else "train") for r in trace.records)


def question_alone(record: Record) -> Record:
    """Without what went before."""
    return replace(record, messages=())


def named(record: Record) -> Record:
    """With the name of the model that answers, in one word, as the system message."""
    name = re.sub(r"\W", "_", record.model or "")
    return replace(record, messages=(Message("system", name), Message("user", record.prompt or "")))


def learned(trace: Trace, seed: int) -> LengthPredictor:
    """A LightGBM predictor of the trace's train rows."""
    return boosted(training_parts(trace, seed=seed), seed)


def dev_rows(trace: Trace) -> list[Record]:
    return scored_records(r for r in trace.records if r.split == "dev")


def sharegpt(trace: Trace, seeds: Sequence[int]) -> dict[str, Any]:
    """What the conversation tells, as scores by name."""
    runs: dict[str, list[dict[str, float]]] = {}
    for seed in seeds:
        split = marked(trace, seed)
        for name, form in (("with_conversation", None), ("question_alone", question_alone)):
            data = split if form is None else split.with_records(map(form, split.records))
            rows = dev_rows(data)
            predicted, y = asked(learned(data, seed), rows), true_lengths(rows)
            turns = np.asarray([r.turn for r in rows])
            for part, chosen in (("", turns >= 0), ("_first_turn", turns == 0), ("_later_turns", turns > 0)):
                runs.setdefault(name + part, []).append(_score(predicted, y, chosen))
    return {name: spread(values) for name, values in runs.items()}


def alpaca_eval(trace: Trace, seeds: Sequence[int]) -> dict[str, Any]:
    """Who is told which model answers, as scores by name: of all rows, and of each model."""
    models = sorted({r.model or "" for r in trace.records})
    overall: dict[str, list[dict[str, float]]] = {}
    single: dict[str, dict[str, list[dict[str, float]]]] = {}
    for seed in seeds:
        split = marked(trace, seed)
        rows = dev_rows(split)
        y, of = true_lengths(rows), np.asarray([r.model for r in rows])
        told = split.with_records(map(named, split.records))
        ways = {
            "constant_per_model": _each(models, rows, lambda m, s=split: ConstantMedian.fit(*_train(s, m))),
            "model_unknown": asked(learned(split, seed), rows),
            "model_named": asked(learned(told, seed), [named(r) for r in rows]),
            "one_per_model": _each(models, rows, lambda m, s=split, n=seed: learned(_only(s, m), n)),
        }
        for way, predicted in ways.items():
            overall.setdefault(way, []).append(score(predicted, y))
            for model in models:
                single.setdefault(way, {}).setdefault(model, []).append(_score(predicted, y, of == model))
    by_model = {way: {m: spread(runs) for m, runs in found.items()} for way, found in single.items()}
    within = {way: float(np.mean([v["kendall_tau"] for v in found.values()])) for way, found in by_model.items()}
    return {
        way: {**spread(runs), "kendall_tau_within_models": round(within[way], 5), "models": by_model[way]}
        for way, runs in overall.items()
    }


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


def main(arguments: list[str]) -> None:
    """Measure both traces, write the file, print the gist."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("data", type=Path, help="folder with the traces")
    parser.add_argument("out", type=Path)
    parser.add_argument("--traces", nargs="+", choices=["sharegpt", "alpaca_eval"], default=["sharegpt", "alpaca_eval"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    given = parser.parse_args(arguments)
    let_waiting_threads_sleep()
    content: dict[str, Any] = json.loads(given.out.read_text(encoding="utf-8")) if given.out.exists() else {}
    seeds = " ".join(map(str, given.seeds))
    for name in given.traces:
        trace = load(given.data, name)
        measure = {"sharegpt": sharegpt, "alpaca_eval": alpaca_eval}[name]
        command = (
            f"python scripts/predictor_other_data.py ../shared/data {given.out.name} --traces {name} --seeds {seeds}"
        )
        content[name] = {"command": command, "sha256": trace.sha256, "length_source": trace.length_source}
        content[name]["found"] = measure(trace, given.seeds)
        for way, values in content[name]["found"].items():
            print(name, way, *(f"{k} {values[k]:.3f}" for k in ("rows", "mae_tokens", "kendall_tau", "coverage_90")))
        write(given.out, content)


if __name__ == "__main__":
    main(sys.argv[1:])
