"""Commands about predictors: what they share, and those that adapt, combine and publish them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.table import Table

from ecoserve.cli.common import JsonOption, QuietOption, SeedOption, emit_json, progress_of, stderr_console
from ecoserve.cli.options import takes
from ecoserve.data import Trace, load_trace
from ecoserve.predictor import PredictorConfig, adapt_predictor, combine_predictors
from ecoserve.predictor.hub import push as push_checkpoint
from ecoserve.predictor.recipes import Recipe
from ecoserve.predictor.runtime import let_waiting_threads_sleep

CheckpointArgument = Annotated[str, typer.Argument(metavar="CKPT", help="Predictor: a folder, or an id on the hub.")]
CheckpointFolder = Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Folder for the new checkpoint.")]

#: Columns of a table of metrics, by what was evaluated.
_COLUMNS: Final = {
    "held_out": "held-out part of train",
    "unadapted": "not adapted",
    "constant_median": "constant median",
}


#: How a trace is read; the names are those of :func:`ecoserve.data.load_trace`.
READING: Final = ("length_field", "sample_field", "tokenizer", "format", "time_unit", "strict")
#: Gives a command these options; they come as keyword arguments.
reads_a_trace = takes(Recipe, " ".join(READING))


def read_trace(source: str, options: Mapping[str, Any], console: Console) -> Trace:
    """Load a trace and say what is in it."""
    trace = load_trace(source, **options)
    console.print(f"{Path(trace.source).name}: {trace.report}; lengths from {trace.length_source}")
    return trace


def show_metrics(config: PredictorConfig, console: Console, **columns: str) -> None:
    """Print the metrics in a checkpoint; ``columns`` are titles of their own for some of them."""
    titles = {**_COLUMNS, **columns}
    if config.metrics:
        console.print(metrics_table({titles.get(part, part): metrics for part, metrics in config.metrics.items()}))


def summary(output: Path, config: PredictorConfig) -> dict[str, Any]:
    """What ``--json`` says of every new checkpoint."""
    return {
        "checkpoint": str(output),
        "backend": config.backend,
        "served_model": config.served_model,
        "training_seconds": config.training_seconds,
        "seed": config.seed,
        **config.metrics,
    }


def metrics_table(columns: Mapping[str, Mapping[str, float]]) -> Table:
    """A table of the evaluation's keys, one column per predictor or part of the data."""
    table = Table("", *columns)
    for column in table.columns[1:]:
        column.justify = "right"
    for key in next(iter(columns.values())):
        table.add_row(key, *(metric_text(key, values[key]) if key in values else "" for values in columns.values()))
    return table


def metric_text(key: str, value: float) -> str:
    if key == "rows":
        return f"{value:,.0f}"
    if key.startswith(("within", "coverage", "bin_")):
        return f"{100 * value:.1f} %"
    return f"{value:.3f}" if key in ("kendall_tau", "ece") else f"{value:.2f}"


@reads_a_trace
def adapt(
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


@reads_a_trace
def combine(
    trace: Annotated[str, typer.Argument(metavar="TRACE", help="The trace that they were trained on.")],
    checkpoints: Annotated[list[str], typer.Argument(metavar="CKPT", help="Predictors: folders, or ids.")],
    *,
    output: CheckpointFolder,
    json: JsonOption = None,
    quiet: QuietOption = False,
    **reading: Any,
) -> None:
    """Combine predictors that were trained on the same rows of a trace into one, weighted and calibrated together.

    Read the trace with the options of their training. A request costs as much as its members together.
    """
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


def push(
    checkpoint: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the predictor.")],
    repository: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Model repository on the hub.")],
    private: Annotated[bool, typer.Option("--private", help="If the repository is new: for its owner only.")] = False,
    message: Annotated[str | None, typer.Option("--message", help="Message of the commit.")] = None,
    json: JsonOption = None,
    quiet: QuietOption = False,
) -> None:
    """Publish a predictor: its weights, config, calibration, tokenizer and model card, in one commit.

    The token is that of huggingface_hub: HF_TOKEN, or what `hf auth login` has stored.
    """
    address, files = push_checkpoint(checkpoint, repository, private=private, message=message)
    stderr_console(quiet).print(f"{checkpoint} is at {address} ({', '.join(files)})")
    emit_json({"repository": repository, "address": address, "files": files}, json)
