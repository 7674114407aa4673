"""``ecoserve combine-predictors``: several predictors of one trace in an ensemble."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ecoserve.cli.common import JsonOption, QuietOption, emit_json, progress_of, stderr_console
from ecoserve.cli.predictors import CheckpointFolder, read_trace, reads_a_trace, show_metrics, summary


@reads_a_trace
def command(
    trace: Annotated[str, typer.Argument(metavar="TRACE", help="The trace that they were trained on.")],
    checkpoints: Annotated[list[str], typer.Argument(metavar="CKPT CKPT...", help="Predictors: folders, or ids.")],
    *,
    output: CheckpointFolder,
    json: JsonOption = None,
    quiet: QuietOption = False,
    **reading: Any,
) -> None:
    """Combine predictors that were trained on the same rows of a trace into one, weighted and calibrated together.

    Read the trace with the options of their training. A request costs as much as its members together.
    """
    from ecoserve.predictor import combine_predictors
    from ecoserve.predictor.runtime import let_waiting_threads_sleep

    let_waiting_threads_sleep()
    console = stderr_console(quiet)
    loaded = read_trace(trace, reading, console)
    with progress_of(quiet) as progress:
        predictor = combine_predictors(loaded, checkpoints, output_dir=output, progress=progress)
    config = predictor.config
    show_metrics(config, console)
    weights = config.model["weights"]
    shares = ", ".join(f"{w:.0%} {c}" for w, c in zip(weights, checkpoints, strict=True))
    console.print(f"ensemble in {output}: {shares}")
    emit_json({**summary(output, config), "weights": weights}, json)
