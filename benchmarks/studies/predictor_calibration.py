"""How much do stated quantiles cover, before and after calibration, by length of the prompt?

    python benchmarks/studies/predictor_calibration.py ALPACA_JSON benchmarks/results/calibration_alpaca.json

LightGBM is trained on Alpaca's prompts with Vicuna-7B's lengths. Choices were made by ``train_rows``, five seeds: a
fifth of the train rows is kept apart and tested on. ``dev_rows``, three seeds, is the same with all train rows and the
dev rows. Columns are the ways from one and the same logits to quantiles, fitted on the same held-out rows:

- ``softmax``: as they are;
- ``temperature``: one temperature, the likeliest of the served answers;
- ``isotonic``: isotonic regression of "response length <= edge" on the CDF at that edge;
- ``whole map``: a map of levels through the scores of the served answers, which does not give way;
- ``no control``: a temperature by coverage of all answers, then the map that gives way;
- ``shipped``: the same, the rows weighed by what trees that have not seen them know
(``ecoserve.predictor.calibration_fitting``); - ``bounds``: ``upper_bounds`` at 0.9, which stand beside the
distribution.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import common
import numpy as np
import numpy.typing as npt

from ecoserve.data import Trace, load_trace, split_trace
from ecoserve.predictor import train_predictor
from ecoserve.predictor.calibration import Calibration, LevelMap, cdf_of, likeliest_temperature, softmax
from ecoserve.predictor.calibration_fitting import LEVELS, Answers, fit_calibration, pinball, quantiles
from ecoserve.predictor.conformal import GroupBounds
from ecoserve.predictor.examples import Examples, training_parts
from ecoserve.predictor.runtime import let_waiting_threads_sleep

Array = npt.NDArray[np.float64]
FIELD: Final = "vicuna_7b_tokens"
SEEDS: Final = (0, 1, 2)
TRAIN_SEEDS: Final = (0, 1, 2, 3, 4)
COVERED: Final = np.array([0.5, 0.8, 0.9, 0.95])
#: Quarters of the prompts by their length.
QUARTERS: Final = ("shortest", "short", "long", "longest")
_POINTS: Final = 33
#: Weight of the straight line in the isotonic map: where regression is flat, no length may become impossible.
_STRAIGHT: Final = 0.02


def measure(trace: Trace, test: Examples, seed: int, folder: Path) -> dict[str, dict[str, float]]:
    """Train on the trace's train rows, unless ``folder`` has that already; coverage of each way on unseen ``test``."""
    predictor = train_predictor(trace, backend="lightgbm", output_dir=folder, seed=seed, resume=True)
    held = training_parts(trace, seed=seed).held
    edges = np.asarray(predictor.config.edges, dtype=np.float64)
    logits, lengths = predictor.logits(held.views), np.asarray(held.lengths, dtype=np.float64)
    one_hot = np.eye(len(edges) - 1)[predictor.config.bins.index(held.lengths)]
    new = predictor.logits(test.views)
    shipped = predictor.calibration
    likeliest = Calibration(temperature=likeliest_temperature(logits, one_hot)[0])
    plain, plain_new = Calibration().cdf(logits), Calibration().cdf(new)
    spans = Answers.of([[n] for n in held.lengths]).spans(plain, edges)
    ways: dict[str, Array] = {
        "softmax": plain_new,
        "temperature": likeliest.cdf(new),
        "isotonic": isotonic(plain, edges, lengths).apply(plain_new),
        "whole map": LevelMap.through((s, q) for q in LEVELS if (s := spans.score_at(q)) is not None).apply(plain_new),
        "no control": fit_calibration(logits, held.answers, edges, held.views).cdf(new),
        "shipped": shipped.cdf(new),
    }
    found = {name: _figures(way, edges, test) for name, way in ways.items()}
    assert isinstance(shipped.bounds, GroupBounds)
    bounds = np.asarray(shipped.bounds.upper(cdf_of(softmax(new)), edges, test.views, 0.9))
    found["shipped"] |= {"temperature": shipped.temperature}
    # What the fit had to go by: it cannot know better than these rows do.
    every = Answers.of(held.answers)
    within = every.length <= quantiles(plain, edges, COVERED)[every.row, 2]
    found["softmax"] |= {"coverage_90_held_out": float(every.weight @ within)}
    found["bounds"] = _at_90(np.asarray(test.lengths) <= bounds, test) | {"mean_tokens_90": float(bounds.mean())}
    return found


def isotonic(cdf: Array, edges: Array, lengths: Array) -> LevelMap:
    """Isotonic regression of "response length <= edge" on the CDF, over all rows and inner edges."""
    from sklearn.isotonic import IsotonicRegression

    within = lengths[:, None] <= edges[None, 1:-1]
    found = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip").fit(cdf[:, 1:-1].ravel(), within.ravel())
    x = np.linspace(0.0, 1.0, _POINTS)[1:-1]
    y = (1.0 - _STRAIGHT) * found.predict(x) + _STRAIGHT * x
    return LevelMap(levels=tuple(y.tolist()), scores=tuple(x.tolist()))


def _figures(cdf: Array, edges: Array, test: Examples) -> dict[str, float]:
    lengths = np.asarray(test.lengths, dtype=np.float64)
    predicted = quantiles(cdf, edges, COVERED)
    within = lengths[:, None] <= predicted
    figures = {f"coverage_{round(100 * q)}": float(within[:, i].mean()) for i, q in enumerate(COVERED)}
    figures |= _at_90(within[:, 2], test) | {"mean_tokens_90": float(predicted[:, 2].mean())}
    figures["pinball_loss"] = float(pinball(cdf, edges, lengths).mean())
    figures["mae_tokens"] = float(np.abs(lengths - predicted[:, 0]).mean())
    return figures


def _at_90(within: npt.NDArray[np.bool_], test: Examples) -> dict[str, float]:
    """Coverage of all and of each quarter."""
    characters = np.asarray([len(v.prompt) for v in test.views])
    quarter = np.searchsorted(np.quantile(characters, [0.25, 0.5, 0.75]), characters)
    by_quarter = {f"coverage_90_{name}": float(within[quarter == k].mean()) for k, name in enumerate(QUARTERS)}
    return {"coverage_90": float(within.mean()), **by_quarter}


def over_seeds(runs: list[dict[str, dict[str, float]]]) -> dict[str, Any]:
    """Mean and spread (standard deviation) over the seeds, and each seed's coverage at 0.9."""
    found: dict[str, Any] = {way: {} for way in runs[0]}
    for way, figures in found.items():
        for key in runs[0][way]:
            x = [run[way][key] for run in runs]
            figures[key] = {"mean": round(float(np.mean(x)), 4), "sd": round(float(np.std(x, ddof=1)), 4)}
            if key in ("coverage_90", "coverage_90_held_out", "temperature"):
                figures[key]["each"] = [round(one, 4) for one in x]
    return found


def inner_split(trace: Trace, train: Trace, seed: int) -> tuple[Trace, Examples]:
    """The train rows as a trace of its own, and a fifth of them to test on."""
    inner = split_trace(train.with_records(replace(r, split=None) for r in train.records), seed=seed)
    named = trace.with_records(replace(r, split=name) for name in inner for r in inner[name].records)
    return named, Examples.of(inner["dev"].records)


def main() -> None:
    """Measure and write."""
    parser = common.arguments_of(__doc__)
    parser.add_argument("trace", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--checkpoints", type=Path, help="keep the trained predictors here, and use those that are")
    parser.add_argument("--keep", action="store_true", help="measure only what OUTPUT does not have yet")
    arguments = parser.parse_args()
    let_waiting_threads_sleep()
    trace = load_trace(arguments.trace, length_field=f"{FIELD}[3]", sample_field=FIELD)
    parts = split_trace(trace)
    result: dict[str, Any] = {
        "command": "python benchmarks/studies/predictor_calibration.py ALPACA_JSON calibration_alpaca.json",
        "trace": {"name": Path(trace.source).name, "sha256": trace.sha256, "lengths": trace.length_source},
        "seeds": {"train_rows": list(TRAIN_SEEDS), "dev_rows": list(SEEDS)},
    }
    done = common.read(arguments.output.resolve()) if arguments.keep else {}
    with common.kept(arguments.checkpoints) as folder:

        def train_rows(seed: int) -> dict[str, dict[str, float]]:
            inner, test = inner_split(trace, parts["train"], seed)
            return measure(inner, test, seed, folder / f"inner-{seed}")

        def dev_rows(seed: int) -> dict[str, dict[str, float]]:
            return measure(trace, Examples.of(parts["dev"].records), seed, folder / f"whole-{seed}")

        for name, run, seeds in (("train_rows", train_rows, TRAIN_SEEDS), ("dev_rows", dev_rows, SEEDS)):
            result[name] = done[name] if name in done else over_seeds([run(seed) for seed in seeds])
            common.write(arguments.output, result)
            print(name)
            for way, figures in result[name].items():
                print(f"  {way:12s}", *(f"{k} {v['mean']:.4f}±{v['sd']:.4f}" for k, v in figures.items()))


if __name__ == "__main__":
    main()
