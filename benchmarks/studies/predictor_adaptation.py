"""What does adapting a predictor to another model bring, by the number of answers it is adapted from?

    python benchmarks/studies/predictor_adaptation.py ALPACA_JSON ALPACA_EVAL_JSON OUT.json \\
        --encoder CHECKPOINT --lightgbm CHECKPOINT

All tested on prompts that neither the base nor the adaptation has seen:

- ``leave_one_model_out``: AlpacaEval, 9 models' answers to 678 prompts. LightGBM learns from 8 models, pooled, and is
  adapted to the ninth from its answers to the prompts that the base has learned from, too.
- ``leave_one_model_out_new_prompts``: the base learns from half of the prompts only, the adaptation from the others.
- ``davinci_to_vicuna``: Alpaca. LightGBM learns text-davinci-003's lengths on the rows without Vicuna's, and is adapted
  to Vicuna-7B from ``train`` rows; tested on ``dev``. Beside it LightGBM trained on those rows alone.
- ``vicuna_to_others_...``: the checkpoints given, trained on Alpaca with Vicuna-7B's lengths, adapted to each of
  AlpacaEval's models.

AlpacaEval's and davinci's lengths are characters / 4. Rows are drawn anew for each of three seeds.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import common
import numpy as np

from ecoserve.data import Record, Trace, load_trace, split_trace
from ecoserve.predictor import LengthPredictor, load_predictor, train_predictor
from ecoserve.predictor.adaptation_fitting import fit_adaptation
from ecoserve.predictor.baselines import ConstantMedian
from ecoserve.predictor.evaluation import score
from ecoserve.predictor.examples import Examples
from ecoserve.predictor.runtime import let_waiting_threads_sleep
from ecoserve.predictor.text import RequestView

SEEDS: Final = (0, 1, 2)
#: Share of AlpacaEval's prompts that are tested on.
TESTED: Final = 0.2
KEYS: Final = ("kendall_tau", "mae_tokens", "pinball_loss", "coverage_90", "coverage_50")
FIELD: Final = "vicuna_7b_tokens"

Runs = dict[str, list[dict[str, float]]]


class Remembered:
    """A predictor that reads each request once."""

    backend = "remembered"

    def __init__(self, base: LengthPredictor) -> None:
        self.base, self.config, self.calibration = base, base.config, base.calibration
        self._known: dict[RequestView, Any] = {}

    def logits(self, views: Sequence[RequestView]) -> Any:
        new = [v for v in dict.fromkeys(views) if v not in self._known]
        if new:
            self._known.update(zip(new, self.base.logits(new), strict=True))
        return np.stack([self._known[v] for v in views])

    def predict(self, requests: Sequence[Any]) -> Any:
        return LengthPredictor.predict(self, requests)  # type: ignore[arg-type]


def measured(predictor: Any, test: Sequence[Record]) -> dict[str, float]:
    found = score(predictor.predict([r.prompt for r in test]), [r.response_tokens for r in test])
    return {key: found[key] for key in KEYS}


def adapt(
    runs: Runs, name: str, base: Any, rows: Sequence[Record], test: Sequence[Record], counts: Sequence[int]
) -> None:
    """Measure the base, then adaptations from each number of ``rows``, on ``test``."""
    runs[f"{name}, 0 rows"].append(measured(base, test))
    for count in counts:
        for seed in SEEDS:
            chosen = np.random.default_rng(seed).choice(len(rows), size=min(count, len(rows)), replace=False)
            examples = Examples.of(rows[i] for i in chosen)
            started = time.process_time()
            adapted = fit_adaptation(base, examples, seed=seed)
            seconds = time.process_time() - started
            runs[f"{name}, {count} rows"].append(measured(adapted, test) | {"fit_cpu_s": seconds})
            kinds = runs[f"{name}, {count} rows"][-1]
            kinds |= {f"kind_{kind}": float(adapted.adaptation.kind == kind) for kind in ("none", "affine", "ridge")}
    constant = ConstantMedian.fit(Examples.of(rows))
    runs[f"{name}, constant of all rows"].append(measured(constant, test))


def trained(trace: Trace, records: Iterable[Record]) -> LengthPredictor:
    with tempfile.TemporaryDirectory() as folder:
        return train_predictor(trace.with_records(records), backend="lightgbm", output_dir=folder)


def alpaca_eval(trace: Trace) -> tuple[dict[str, dict[str, Record]], list[str], list[str]]:
    """Records by model and prompt; prompts to learn from and to test on."""
    parts = split_trace(trace, dev=TESTED)
    by_model: dict[str, dict[str, Record]] = defaultdict(dict)
    for record in trace.records:
        by_model[str(record.model)][record.conversation] = record
    seen, tested = (sorted({r.conversation for r in parts[name].records}) for name in ("train", "dev"))
    return dict(by_model), seen, tested


def leave_one_model_out(trace: Trace, *, new_prompts: bool) -> Runs:
    runs: Runs = defaultdict(list)
    by_model, seen, tested = alpaca_eval(trace)
    learned, given, counts = seen, seen, (100, 500)
    if new_prompts:
        order = [str(p) for p in np.random.default_rng(0).permutation(seen)]
        learned, given, counts = order[: len(order) // 2], order[len(order) // 2 :], (100, 250)
    for held, answers in sorted(by_model.items()):
        others = [by_model[m] for m in sorted(by_model) if m != held]
        rows = [replace(a[p], split="train") for p in learned for a in others]
        # Two dev rows are enough for training to be content; what is measured is measured here.
        base = trained(trace, rows + [replace(others[0][p], split="dev") for p in tested[:2]])
        runs["the 8 models learned from"].append(measured(base, [a[p] for a in others for p in tested]))
        test = [answers[p] for p in tested]
        adapt(runs, "the ninth", Remembered(base), [answers[p] for p in given], test, counts)
        print(held, file=sys.stderr, flush=True)
    return runs


def davinci_to_vicuna(path: Path) -> Runs:
    runs: Runs = defaultdict(list)
    vicuna = load_trace(path, length_field=f"{FIELD}[3]")
    davinci = load_trace(path)
    asked = {r.prompt for r in vicuna.records}
    base = trained(davinci, (r for r in davinci.records if r.prompt not in asked and r.split is None))
    parts = split_trace(vicuna)
    rows, test = parts["train"].records, parts["dev"].records
    adapt(runs, "adapted", Remembered(base), rows, test, (100, 500, 2000))
    for count in (100, 500, 2000):
        for seed in SEEDS:
            chosen = np.random.default_rng(seed).choice(len(rows), size=count, replace=False)
            # Two dev rows are enough for training to be content; what is measured is measured here.
            learned = trained(vicuna, [*(rows[i] for i in chosen), *test[:2]])
            runs[f"trained on {count} rows alone"].append(measured(learned, test))
    return runs


def vicuna_to_others(trace: Trace, name: str, checkpoint: str) -> Runs:
    runs: Runs = defaultdict(list)
    by_model, seen, tested = alpaca_eval(trace)
    base = Remembered(load_predictor(checkpoint))
    for answers in by_model.values():
        adapt(runs, name, base, [answers[p] for p in seen], [answers[p] for p in tested], (100, 500))
    return runs


def summary(runs: Runs) -> dict[str, dict[str, float]]:
    """Means over models and seeds, and the standard deviation of tau and MAE."""
    out = {}
    for name, measured_runs in runs.items():
        row: dict[str, float] = {"runs": len(measured_runs)}
        for key in measured_runs[0]:
            x = [run[key] for run in measured_runs]
            row[key] = round(float(np.mean(x)), 4)
            if key in ("kendall_tau", "mae_tokens") and len(x) > 1:
                row[f"{key}_sd"] = round(float(np.std(x, ddof=1)), 4)
        out[name] = row
    return out


def main() -> None:
    """Measure and write."""
    parser = common.arguments_of(__doc__)
    parser.add_argument("alpaca", type=Path)
    parser.add_argument("alpaca_eval", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--encoder", help="checkpoint trained on Alpaca with Vicuna's lengths")
    parser.add_argument("--lightgbm", help="the same of LightGBM")
    parser.add_argument("--keep", action="store_true", help="measure only what OUTPUT does not have yet")
    parser.add_argument("--tokenizer", help="count AlpacaEval's answers with it")
    arguments = parser.parse_args()
    let_waiting_threads_sleep()
    trace = load_trace(arguments.alpaca_eval, tokenizer=arguments.tokenizer)
    parts: dict[str, Callable[[], Runs]] = {
        "davinci_to_vicuna": lambda: davinci_to_vicuna(arguments.alpaca),
        "leave_one_model_out": lambda: leave_one_model_out(trace, new_prompts=False),
        "leave_one_model_out_new_prompts": lambda: leave_one_model_out(trace, new_prompts=True),
    }
    for name in ("lightgbm", "encoder"):
        if checkpoint := getattr(arguments, name):
            parts[f"vicuna_to_others_{name}"] = partial(vicuna_to_others, trace, name, checkpoint)
    result: dict[str, Any] = {
        "command": "python benchmarks/studies/predictor_adaptation.py ALPACA_JSON ALPACA_EVAL_JSON "
        "benchmarks/results/predictor_adaptation.json --encoder CHECKPOINT --lightgbm CHECKPOINT",
        "seeds": list(SEEDS),
        "alpaca_eval": {"sha256": trace.sha256, "lengths": trace.length_source},
    }
    done = common.read(arguments.output.resolve())
    result |= {name: done[name] for name in parts if name in done and arguments.keep}
    for name, measure in parts.items():
        if name in result:
            continue
        result[name] = summary(measure())
        common.write(arguments.output, result)
        for row, figures in result[name].items():
            print(f"{name:32s} {row:35s}", " ".join(f"{k}={v:g}" for k, v in figures.items()), flush=True)


if __name__ == "__main__":
    main()
