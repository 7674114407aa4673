"""What commands about predictors share: how a trace is read, common options, and tables of evaluations."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from ecoserve.cli.options import takes
from ecoserve.predictor.recipes import Recipe

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from ecoserve.data import Trace
    from ecoserve.predictor.config import PredictorConfig

CheckpointArgument = Annotated[str, typer.Argument(metavar="CKPT", help="Predictor: a folder, or an id on the hub.")]
CheckpointFolder = Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Folder for the new checkpoint.")]

#: Columns of a table of metrics, by what was evaluated.
_COLUMNS: Final = {
    "held_out": "held-out part of train",
    "unadapted": "not adapted",
    "constant_median": "constant median",
}


#: How a trace is read; the names are those of :func:`ecoserve.data.load_trace`.
READING: Final = ("length_field", "sample_field", "tokenizer", "format")
#: Gives a command these options; they come as keyword arguments.
reads_a_trace = takes(Recipe, " ".join(READING))


def read_trace(source: str, options: Mapping[str, Any], console: Console) -> Trace:
    """Load a trace and say what is in it."""
    from ecoserve.data import load_trace

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
    from rich.table import Table

    table = Table("", *columns)
    for column in table.columns[1:]:
        column.justify = "right"
    for key in next(iter(columns.values())):
        table.add_row(key, *(metric_text(key, values[key]) if key in values else "" for values in columns.values()))
    return table


def metric_text(key: str, value: float) -> str:
    """A metric of an evaluation as tables show it."""
    if key == "rows":
        return f"{value:,.0f}"
    if key.startswith(("within", "coverage", "bin_")):
        return f"{100 * value:.1f} %"
    return f"{value:.3f}" if key in ("kendall_tau", "ece") else f"{value:.2f}"
