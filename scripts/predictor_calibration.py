"""How much do stated quantiles cover, before and after calibration, by length of the prompt?

    python scripts/predictor_calibration.py ALPACA_JSON benchmarks/results/calibration_alpaca.json

LightGBM is trained on Alpaca's prompts with Vicuna-7B's lengths, three seeds. Choices were made by ``train_rows``: a
fifth of the train rows is kept apart and tested on. ``dev_rows`` is the same with all train rows and the dev rows.
Columns are the ways from one and the same logits to quantiles; ``bounds by band`` is what a checkpoint does.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ecoserve.data import Trace, load_trace, split_trace
from ecoserve.files import write_atomically
from ecoserve.predictor import train_predictor
from ecoserve.predictor.calibration import Calibration, cdf_of, fit_temperature
from ecoserve.predictor.calibration_fitting import fit_isotonic, pinball, quantiles
from ecoserve.predictor.examples import Examples, training_parts
from ecoserve.predictor.threads import let_waiting_threads_sleep

Array = npt.NDArray[np.float64]
FIELD: Final = "vicuna_7b_tokens"
SEEDS: Final = (0, 1, 2)
LEVELS: Final = np.array([0.5, 0.8, 0.9, 0.95])
#: Quarters of the prompts by their length.
QUARTERS: Final = ("shortest", "short", "long", "longest")


def measure(trace: Trace, test: Examples, seed: int, folder: Path) -> dict[str, dict[str, float]]:
    """Train on the trace's train rows, unless ``folder`` has that already; coverage of each way on unseen ``test``."""
    predictor = train_predictor(trace, backend="lightgbm", output_dir=folder, seed=seed, resume=True)
    held = training_parts(trace, seed=seed).held
    edges = np.asarray(predictor.config.edges, dtype=np.float64)
    logits, lengths = predictor.logits(held.views), np.asarray(held.lengths, dtype=np.float64)
    shipped = predictor.calibration
    one_hot = np.eye(len(edges) - 1)[predictor.config.bins.index(held.lengths)]
    new = predictor.logits(test.views)
    ways: dict[str, Callable[[], Array]] = {
        "softmax": lambda: Calibration().before_bounds(new),
        "temperature": lambda: fit_temperature(logits, one_hot).before_bounds(new),
        "isotonic": lambda: fit_isotonic(logits, lengths, edges).before_bounds(new),
        "bounds of all": lambda: cdf_of(shipped.probabilities(new, None, edges)),
        "bounds by band": lambda: cdf_of(shipped.probabilities(new, test.views, edges)),
    }
    return {name: _figures(way(), edges, test) for name, way in ways.items()}


def _figures(cdf: Array, edges: Array, test: Examples) -> dict[str, float]:
    lengths = np.asarray(test.lengths, dtype=np.float64)
    within = lengths[:, None] <= quantiles(cdf, edges, LEVELS)
    characters = np.asarray([len(v.prompt) for v in test.views])
    quarter = np.searchsorted(np.quantile(characters, [0.25, 0.5, 0.75]), characters)
    figures = {f"coverage_{round(100 * q)}": float(within[:, i].mean()) for i, q in enumerate(LEVELS)}
    figures |= {f"coverage_90_{name}": float(within[quarter == k, 2].mean()) for k, name in enumerate(QUARTERS)}
    figures["pinball_loss"] = float(pinball(cdf, edges, lengths).mean())
    figures["mae_tokens"] = float(np.abs(lengths - quantiles(cdf, edges, np.array([0.5]))[:, 0]).mean())
    return figures


def over_seeds(runs: list[dict[str, dict[str, float]]]) -> dict[str, Any]:
    """Mean and spread (standard deviation) over the seeds."""
    return {
        way: {
            key: {"mean": round(float(np.mean(x)), 4), "sd": round(float(np.std(x, ddof=1)), 4)}
            for key in runs[0][way]
            if (x := [run[way][key] for run in runs])
        }
        for way in runs[0]
    }


def inner_split(trace: Trace, train: Trace, seed: int) -> tuple[Trace, Examples]:
    """The train rows as a trace of its own, and a fifth of them to test on."""
    inner = split_trace(train.with_records(replace(r, split=None) for r in train.records), seed=seed)
    named = trace.with_records(replace(r, split=name) for name in inner for r in inner[name].records)
    return named, Examples.of(inner["dev"].records)


@contextmanager
def kept(folder: Path | None) -> Iterator[Path]:
    """``folder``, or a temporary one."""
    if folder is not None:
        yield folder
        return
    with tempfile.TemporaryDirectory() as temporary:
        yield Path(temporary)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--checkpoints", type=Path, help="keep the trained predictors here, and use those that are")
    parser.add_argument("--keep", action="store_true", help="measure only what OUTPUT does not have yet")
    arguments = parser.parse_args()
    let_waiting_threads_sleep()
    trace = load_trace(arguments.trace, length_field=f"{FIELD}[3]", sample_field=FIELD)
    parts = split_trace(trace)
    result: dict[str, Any] = {
        "command": "python scripts/predictor_calibration.py ALPACA_JSON benchmarks/results/calibration_alpaca.json",
        "trace": {"name": Path(trace.source).name, "sha256": trace.sha256, "lengths": trace.length_source},
        "seeds": list(SEEDS),
    }
    done = json.loads(arguments.output.read_text()) if arguments.keep and arguments.output.exists() else {}
    with kept(arguments.checkpoints) as folder:

        def train_rows(seed: int) -> dict[str, dict[str, float]]:
            inner, test = inner_split(trace, parts["train"], seed)
            return measure(inner, test, seed, folder / f"inner-{seed}")

        def dev_rows(seed: int) -> dict[str, dict[str, float]]:
            return measure(trace, Examples.of(parts["dev"].records), seed, folder / f"whole-{seed}")

        for name, run in {"train_rows": train_rows, "dev_rows": dev_rows}.items():
            result[name] = done[name] if name in done else over_seeds([run(seed) for seed in SEEDS])
            write_atomically(arguments.output, json.dumps(result, indent=1) + "\n")
            print(name)
            for way, figures in result[name].items():
                print(f"  {way:15s}", *(f"{k} {v['mean']:.4f}±{v['sd']:.4f}" for k, v in figures.items()))


if __name__ == "__main__":
    main()
