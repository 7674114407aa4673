"""``ecoserve adapt-predictor``: one model's lengths from a predictor of another's and a few answers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ecoserve.cli.common import JsonOption, QuietOption, SeedOption, emit_json, progress_bar, stderr_console


def command(
    checkpoint: Annotated[str, typer.Argument(metavar="CKPT", help="Predictor: a folder, or an id on the hub.")],
    trace: Annotated[
        str, typer.Argument(metavar="TRACE", help="Trace with the new model's answers, or their lengths.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Folder for the new checkpoint.")],
    rows: Annotated[
        int | None, typer.Option("--rows", min=1, help="Adapt from at most so many rows, chosen at random.")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="The new model; of several models' answers, its own are taken.")
    ] = None,
    length_field: Annotated[
        str | None, typer.Option("--length-field", help="Field with the lengths in tokens, as lengths[3].")
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option("--tokenizer", help="New model's tokenizer, to count the answers' tokens.")
    ] = None,
    trace_format: Annotated[str, typer.Option("--format", help="Format of the trace.")] = "auto",
    seed: SeedOption = 0,
    json: JsonOption = None,
    quiet: QuietOption = False,
) -> None:
    """Adapt a predictor to another served model from some hundred of its answers, in seconds.

    Give answers to prompts that the predictor has not learned from: about those it is too sure.

    A trace with a split of its own is used as it says; else a fifth of the conversations is kept apart as dev, to say
    how good the result is.
    """
    from ecoserve.cli.evaluate_predictor import metrics_table
    from ecoserve.data import load_trace
    from ecoserve.predictor import adapt_predictor
    from ecoserve.predictor.threads import let_waiting_threads_sleep

    let_waiting_threads_sleep()
    console = stderr_console(quiet)
    loaded = load_trace(trace, format=trace_format, length_field=length_field, tokenizer=tokenizer)
    console.print(f"{Path(loaded.source).name}: {loaded.report}; lengths from {loaded.length_source}")
    with progress_bar(quiet) as bar:
        task = bar.add_task("")
        adapted = adapt_predictor(
            checkpoint,
            loaded,
            output_dir=output,
            rows=rows,
            served_model=model,
            seed=seed,
            progress=lambda what, done, total: bar.update(task, description=what, completed=done, total=total),
        )
    config = adapted.config
    kind = config.hyperparameters["kind"]
    if config.metrics:
        console.print(metrics_table({_COLUMNS[part]: metrics for part, metrics in config.metrics.items()}))
    said = "the base stays as it is: nothing was clearly better" if kind == "none" else f"{kind} map of the base"
    console.print(f"adapted from {config.rows_trained} rows in {output}: {said}")
    emit_json(
        {
            "checkpoint": str(output),
            "base_sha256": config.model["base"]["sha256"],
            "served_model": config.served_model,
            "kind": kind,
            "rows_adapted": config.rows_trained,
            "seconds": config.training_seconds,
            "seed": seed,
            **config.metrics,
        },
        json,
    )


#: Columns of the table, by what was evaluated on the dev rows.
_COLUMNS = {"dev": "adapted", "unadapted": "not adapted", "constant_median": "constant median"}
