"""``ecoserve adapt-predictor``: one model's lengths from a predictor of another's and a few answers."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ecoserve.cli.common import JsonOption, QuietOption, SeedOption, emit_json, progress_of, stderr_console
from ecoserve.cli.predictors import (
    CheckpointArgument,
    CheckpointFolder,
    read_trace,
    reads_a_trace,
    show_metrics,
    summary,
)


@reads_a_trace
def command(
    checkpoint: CheckpointArgument,
    trace: Annotated[
        str, typer.Argument(metavar="TRACE", help="Trace with the new model's answers, or their lengths.")
    ],
    *,
    output: CheckpointFolder,
    rows: Annotated[
        int | None, typer.Option("--rows", min=1, help="Adapt from at most this many rows, chosen at random.")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="The new model; of several models' answers, its own are taken.")
    ] = None,
    seed: SeedOption = 0,
    json: JsonOption = None,
    quiet: QuietOption = False,
    **reading: Any,
) -> None:
    """Adapt a predictor to another served model from a few hundred of its answers, in seconds.

    Give answers to prompts that the predictor was not trained on: on its training prompts it is overconfident.

    A trace with a split of its own is used as it says; otherwise a fifth of the conversations is held out as dev, to
    evaluate the result.
    """
    from ecoserve.predictor import adapt_predictor
    from ecoserve.predictor.runtime import let_waiting_threads_sleep

    let_waiting_threads_sleep()
    console = stderr_console(quiet)
    loaded = read_trace(trace, reading, console)
    with progress_of(quiet) as progress:
        adapted = adapt_predictor(
            checkpoint, loaded, output_dir=output, rows=rows, served_model=model, seed=seed, progress=progress
        )
    config = adapted.config
    kind = config.hyperparameters["kind"]
    show_metrics(config, console, dev="adapted")
    result = "the base is unchanged: nothing was clearly better" if kind == "none" else f"{kind} map of the base"
    console.print(f"adapted from {config.rows_trained} rows in {output}: {result}")
    more = {"base_sha256": config.model["base"]["sha256"], "kind": kind, "rows_adapted": config.rows_trained}
    emit_json({**summary(output, config), **more, "seconds": config.training_seconds}, json)
