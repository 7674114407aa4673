"""What predicts response lengths without a model, on Alpaca's dev rows: the columns beside the trained predictors.

Run: python benchmarks/predictor_baselines.py alpaca.json.gz --json benchmarks/results/predictor_alpaca_baselines.json
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from ecoserve.cli.common import emit_json
from ecoserve.cli.evaluate_predictor import metrics_table
from ecoserve.data import load_trace, split_trace
from ecoserve.lengths import LengthDistribution
from ecoserve.predictor import ConstantMedian, PromptLength, evaluate_predictor
from ecoserve.predictor.evaluation import score
from ecoserve.predictor.examples import Examples


def main(trace: Path, json: Annotated[str | None, typer.Option("--json")] = None) -> None:
    """Evaluate the constant median, the prompt's length, and one's own other samples (the noise floor)."""
    parts = split_trace(load_trace(trace, length_field="vicuna_7b_tokens[3]", sample_field="vicuna_7b_tokens"))
    fit, dev = Examples.of(parts["train"].records), parts["dev"].records
    rows = [r for r in dev if r.sample_tokens and r.response_tokens is not None]
    others = [LengthDistribution.point(round(float(np.mean(r.sample_tokens)))) for r in rows]
    floor = score(others, [r.response_tokens or 0 for r in rows])
    found = {
        "constant_median": evaluate_predictor(ConstantMedian.fit(fit), dev),
        "prompt_length": evaluate_predictor(PromptLength.fit(fit), dev),
        # A point, not a distribution: only its median means anything.
        "other_samples_mean": {k: floor[k] for k in ("rows", "mae_tokens", "within_50", "within_100", "kendall_tau")},
    }
    shared = {name: {k: values[k] for k in found["other_samples_mean"]} for name, values in found.items()}
    from rich.console import Console

    Console(stderr=True).print(metrics_table(shared))
    command = f"python benchmarks/predictor_baselines.py {trace.name} --json predictor_alpaca_baselines.json"
    emit_json({"command": command, **found}, json)


if __name__ == "__main__":
    typer.run(main)
