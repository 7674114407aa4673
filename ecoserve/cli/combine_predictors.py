"""``ecoserve combine-predictors``: several predictors of one trace, read together."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ecoserve.cli.common import JsonOption, QuietOption, emit_json, stderr_console, what_is_done


def command(
    trace: Annotated[str, typer.Argument(metavar="TRACE", help="The trace that they were trained on.")],
    checkpoints: Annotated[list[str], typer.Argument(metavar="CKPT CKPT...", help="Predictors: folders, or ids.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Folder for the new checkpoint.")],
    length_field: Annotated[
        str | None, typer.Option("--length-field", help="Field with the lengths in tokens, as in their training.")
    ] = None,
    sample_field: Annotated[
        str | None, typer.Option("--sample-field", help="Field with several answers' lengths, as in their training.")
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option("--tokenizer", help="Served model's tokenizer, as in their training.")
    ] = None,
    trace_format: Annotated[str, typer.Option("--format", help="Format of the trace.")] = "auto",
    json: JsonOption = None,
    quiet: QuietOption = False,
) -> None:
    """Combine predictors that were trained on the same rows of a trace into one, weighed and calibrated together.

    A request costs what it costs its members together.
    """
    from ecoserve.cli.evaluate_predictor import metrics_table
    from ecoserve.cli.train_predictor import COLUMNS
    from ecoserve.data import load_trace
    from ecoserve.predictor import combine_predictors
    from ecoserve.predictor.threads import let_waiting_threads_sleep

    let_waiting_threads_sleep()
    console = stderr_console(quiet)
    loaded = load_trace(
        trace, format=trace_format, length_field=length_field, sample_field=sample_field, tokenizer=tokenizer
    )
    console.print(f"{Path(loaded.source).name}: {loaded.report}; lengths from {loaded.length_source}")
    with what_is_done(quiet) as progress:
        predictor = combine_predictors(loaded, checkpoints, output_dir=output, progress=progress)
    config = predictor.config
    console.print(metrics_table({COLUMNS[part]: metrics for part, metrics in config.metrics.items()}))
    weights = config.model["weights"]
    said = ", ".join(f"{w:.0%} {c}" for w, c in zip(weights, checkpoints, strict=True))
    console.print(f"ensemble in {output}: {said}")
    emit_json(
        {
            "checkpoint": str(output),
            "backend": config.backend,
            "served_model": config.served_model,
            "weights": weights,
            "training_seconds": config.training_seconds,
            "seed": config.seed,
            **config.metrics,
        },
        json,
    )
