"""Of a response that is still running after g tokens: can more be known than its prediction, truncated at g?

    python benchmarks/studies/predictor_refinement.py ALPACA_JSON benchmarks/results/predictor_refinement.json

LightGBM, Alpaca's prompts with Vicuna-7B's lengths, three seeds. Every way is learned on the held-out rows and tested
on dev rows, among those longer than g tokens; the ways were thought out on train rows. Ways to P(length |
response length > g, request):

- ``truncation``: the prediction given length > g (``LengthDistribution.given_longer_than``), what the
scheduler does;
- ``history``: how all training answers longer than g are spread, the same for every request;
- ``mixed at the start``: a share of the history in every prediction before it is truncated. Bayes' rule then gives the
  history more weight, the less likely the prediction held it that the response would still run. The share is the
  likeliest on the held-out rows (``learned``), or fixed;
- ``weight by survival``: truncation and history mixed by a weight of its own for each range of the predicted survival
  S(g), the likeliest on the held-out rows;
- ``conditional map``: the truncated CDF corrected by a map of levels of its own for each range of S(g).

``shifted`` is a prediction that is wrong: LightGBM of text-davinci-003's lengths (characters / 4) asked about
Vicuna-7B's. There the history is of Vicuna's answers, which a scheduler sees as they end; and for comparison the
predictor is adapted to the same 1,000 answers (``ecoserve adapt-predictor``) and truncated.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from predictor_adaptation import Remembered
from predictor_calibration import FIELD, SEEDS, kept

from ecoserve.data import Trace, load_trace, split_trace
from ecoserve.files import write_atomically
from ecoserve.predictor import LengthPredictor, train_predictor
from ecoserve.predictor.adaptation_fitting import fit_adaptation
from ecoserve.predictor.calibration import LevelMap, cdf_of
from ecoserve.predictor.calibration_fitting import LEVELS, pinball, quantiles
from ecoserve.predictor.conformal import scores_of
from ecoserve.predictor.examples import Examples, training_parts
from ecoserve.predictor.threads import let_waiting_threads_sleep

Array = npt.NDArray[np.float64]
GENERATED: Final = (16, 32, 64, 128, 256)
#: At which the ways are learned.
LEARNED_AT: Final = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 320)
#: Ranges of the predicted survival.
RANGES: Final = np.array([0.0, 0.05, 0.15, 0.3, 0.5, 0.75, 1.0001])
SHARES: Final = (0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)
WEIGHTS: Final = np.linspace(0.0, 1.0, 21)


class Alive:
    """Those of some rows that are still running after ``g`` tokens, and what two predictions say of them."""

    def __init__(self, cdf: Array, history: Array, edges: Array, lengths: Array, g: int) -> None:
        """``cdf`` of shape ``[n, K + 1]`` at ``edges``, ``history`` of shape ``[K + 1]``, true ``lengths`` ``[n]``."""
        rows = lengths > g
        self.lengths = lengths[rows]
        self.edges = np.concatenate([[g], edges[edges > g]])
        self.survival = 1.0 - scores_of(cdf[rows], edges, np.full(rows.sum(), g + 1.0))
        self.truncated = self._given(cdf[rows], edges, g)
        self.history = np.repeat(self._given(history[None], edges, g), rows.sum(), axis=0)
        self.range = np.searchsorted(RANGES, self.survival, side="right") - 1

    @staticmethod
    def _given(cdf: Array, edges: Array, g: int) -> Array:
        at = scores_of(cdf, edges, np.full(len(cdf), g + 1.0))[:, None]
        left = np.concatenate([at, cdf[:, edges > g]], axis=1)
        # A prediction that has been outlived says nothing of the rest: even over what is left.
        even = (np.concatenate([[g], edges[edges > g]]) - g) / max(edges[-1] - g, 1.0)
        out = np.where(1.0 - at > 1e-9, (left - at) / np.maximum(1.0 - at, 1e-9), even)
        out[:, -1] = 1.0
        return np.asarray(out)

    def likelihood(self, cdf: Array) -> Array:
        """Probability of the bin that holds each length, shape ``[n]``."""
        k = np.clip(np.searchsorted(self.edges, self.lengths, side="left") - 1, 0, len(self.edges) - 2)
        rows = np.arange(len(cdf))
        return np.maximum(cdf[rows, k + 1] - cdf[rows, k], 1e-9)


def learn_share(cdf: Array, history: Array, edges: Array, lengths: Array) -> float:
    """The likeliest share of the history in every prediction."""
    at_start = Alive(cdf, history, edges, lengths, 0)
    own, other = at_start.likelihood(at_start.truncated), at_start.likelihood(at_start.history)
    return max(SHARES, key=lambda a: float(np.log((1 - a) * own + a * other).mean()))


def learn_by_survival(cdf: Array, history: Array, edges: Array, lengths: Array) -> tuple[Array, list[LevelMap]]:
    """For each range of survival the likeliest weight of the history, and the map of the truncated CDF."""
    count = len(RANGES) - 1
    gain, scores = np.zeros((count, len(WEIGHTS))), [[np.empty(0)] for _ in range(count)]
    for g in LEARNED_AT:
        alive = Alive(cdf, history, edges, lengths, g)
        own, other = alive.likelihood(alive.truncated)[:, None], alive.likelihood(alive.history)[:, None]
        log = np.log((1 - WEIGHTS) * own + WEIGHTS * other)
        score = scores_of(alive.truncated, alive.edges, alive.lengths)
        for r in range(count):
            gain[r] += log[alive.range == r].sum(axis=0)
            scores[r].append(score[alive.range == r])
    joined = [np.concatenate(s) for s in scores]
    passed = [np.quantile(s, LEVELS) if len(s) >= 50 else [] for s in joined]
    maps = [LevelMap.through((float(s), q) for s, q in zip(one, LEVELS, strict=False)) for one in passed]
    return WEIGHTS[gain.argmax(axis=1)], maps


def measure(held: tuple[Array, Array], test: tuple[Array, Array], history: Array, edges: Array) -> dict[str, Any]:
    """Figures of each way at each g; ``held`` and ``test`` are CDFs and true lengths."""
    cdf, lengths = held
    share = learn_share(cdf, history, edges, lengths)
    weights, maps = learn_by_survival(cdf, history, edges, lengths)
    out: dict[str, Any] = {"learned share": share, "learned weights": weights.tolist()}
    for g in GENERATED:
        alive = Alive(test[0], history, edges, test[1], g)
        w = weights[alive.range][:, None]
        mapped = alive.truncated.copy()
        for r, one in enumerate(maps):
            mapped[alive.range == r] = one.apply(alive.truncated[alive.range == r])
        ways = {"truncation": alive.truncated, "history": alive.history}
        for name, a in (("learned", share), ("0.05", 0.05), ("0.2", 0.2)):
            mixed = Alive((1 - a) * test[0] + a * history, history, edges, test[1], g)
            ways[f"mixed at the start, {name}"] = mixed.truncated
        ways["weight by survival"] = (1 - w) * alive.truncated + w * alive.history
        ways["conditional map"] = mapped
        out[f"after {g}"] = {"rows": len(alive.lengths)} | {name: _figures(way, alive) for name, way in ways.items()}
    return out


def _figures(cdf: Array, alive: Alive) -> dict[str, float]:
    median, high = quantiles(cdf, alive.edges, np.array([0.5, 0.9])).T
    return {
        "pinball_loss": float(pinball(cdf, alive.edges, alive.lengths).mean()),
        "mae_tokens": float(np.abs(alive.lengths - median).mean()),
        "coverage_90": float((alive.lengths <= high).mean()),
    }


def predicted(predictor: LengthPredictor | Remembered, rows: Examples) -> tuple[Array, Array]:
    """CDFs and true lengths of rows."""
    return predictor.calibration.cdf(predictor.logits(rows.views)), np.asarray(rows.lengths, dtype=np.float64)


def in_distribution(trace: Trace, test: Examples, seed: int, folder: Path) -> dict[str, Any]:
    """Train on the trace's train rows, unless ``folder`` has that; learn on held-out rows, test on ``test``."""
    predictor = train_predictor(trace, backend="lightgbm", output_dir=folder, seed=seed, resume=True)
    history = cdf_of(np.asarray([predictor.config.prior]))[0]
    held = training_parts(trace, seed=seed).held
    edges = np.asarray(predictor.config.edges, dtype=np.float64)
    return measure(predicted(predictor, held), predicted(predictor, test), history, edges)


def shifted(path: Path, vicuna: Trace, test: Examples, folder: Path) -> list[dict[str, Any]]:
    """A predictor of another model's lengths; what is learned is learned on 1,000 of Vicuna's answers."""
    davinci = load_trace(path)
    asked = {r.prompt for r in vicuna.records}
    rows = [r for r in davinci.records if r.prompt not in asked and r.split is None]
    trained = train_predictor(
        davinci.with_records(rows),
        backend="lightgbm",
        output_dir=folder,
        served_model="text-davinci-003",
        resume=True,
    )
    predictor = Remembered(trained)
    edges = np.asarray(predictor.config.edges, dtype=np.float64)
    train = split_trace(vicuna)["train"].records
    out = []
    for seed in SEEDS:
        chosen = np.random.default_rng(seed).choice(len(train), size=1000, replace=False)
        held = Examples.of(train[i] for i in chosen)
        history = cdf_of(predictor.config.bins.shares(held.lengths)[None])[0]
        found = measure(predicted(predictor, held), predicted(predictor, test), history, edges)
        adapted = fit_adaptation(predictor, held, seed=seed)
        cdf, lengths = predicted(adapted, test)
        for g in GENERATED:
            alive = Alive(cdf, cdf[0], np.asarray(adapted.config.edges, dtype=np.float64), lengths, g)
            found[f"after {g}"]["adapted, then truncation"] = _figures(alive.truncated, alive)
        out.append(found)
    return out


def over_seeds(runs: list[Any]) -> Any:
    """Means over the seeds, and the spread of figures, in the shape of one run."""
    if isinstance(runs[0], dict):
        return {key: over_seeds([run[key] for run in runs]) for key in runs[0]}
    if isinstance(runs[0], list):
        return [round(float(x), 3) for x in np.mean(runs, axis=0)]
    return round(float(np.mean(runs)), 4)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--checkpoints", type=Path, help="keep the trained predictors here, and use those that are")
    arguments = parser.parse_args()
    let_waiting_threads_sleep()
    trace = load_trace(arguments.trace, length_field=f"{FIELD}[3]", sample_field=FIELD)
    parts = split_trace(trace)
    runs: dict[str, list[dict[str, Any]]] = {}
    with kept(arguments.checkpoints) as folder:
        test = Examples.of(parts["dev"].records)
        runs["in_distribution"] = [in_distribution(trace, test, seed, folder / f"whole-{seed}") for seed in SEEDS]
        runs["shifted"] = shifted(arguments.trace, trace, test, folder / "davinci")
    result = {
        "command": "python benchmarks/studies/predictor_refinement.py ALPACA_JSON predictor_refinement.json",
        "trace": {"name": Path(trace.source).name, "sha256": trace.sha256, "lengths": trace.length_source},
        "seeds": list(SEEDS),
        **{name: over_seeds(found) for name, found in runs.items()},
    }
    write_atomically(arguments.output, json.dumps(result, indent=1) + "\n")
    for name in runs:
        for g in GENERATED:
            for way, figures in result[name][f"after {g}"].items():
                print(f"{name:16s} {g:4d} {way:30s} {figures}")


if __name__ == "__main__":
    main()
