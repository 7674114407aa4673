"""``ecoserve evaluate-predictor``: how good a predictor is on rows that it has not seen, beside the constant median."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from ecoserve.cli.common import JsonOption, QuietOption, emit_json, stderr_console

if TYPE_CHECKING:
    from rich.table import Table


def command(
    checkpoint: Annotated[str, typer.Argument(metavar="CKPT", help="Predictor: a folder, or an id on the hub.")],
    trace: Annotated[str, typer.Argument(metavar="TRACE", help="Trace: a file, or the id of a data set on the hub.")],
    split: Annotated[
        str, typer.Option("--split", metavar="dev|train|all", help="Which rows; 'all' for a trace nobody trained on.")
    ] = "dev",
    length_field: Annotated[
        str | None, typer.Option("--length-field", help="Field with the lengths in tokens, as lengths[3].")
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option("--tokenizer", help="Served model's tokenizer, to count the answers' tokens.")
    ] = None,
    trace_format: Annotated[str, typer.Option("--format", help="Format of the trace.")] = "auto",
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, help="Seed of the split, if the trace has none [the training's].")
    ] = None,
    json: JsonOption = None,
    quiet: QuietOption = False,
) -> None:
    """Evaluate a predictor on a trace, beside the constant median of the lengths it was trained on.

    Where the trace has no split of its own, the seed of the training says which rows are dev: those it has not learned.
    """
    from ecoserve.data import load_trace, split_trace
    from ecoserve.errors import ConfigError, TraceError
    from ecoserve.predictor import ConstantMedian, evaluate_predictor, load_predictor
    from ecoserve.predictor.threads import let_waiting_threads_sleep

    let_waiting_threads_sleep()
    if split not in ("dev", "train", "all"):
        raise ConfigError(f"no split {split!r}", where="--split", fix="one of dev, train, all")
    predictor = load_predictor(checkpoint)
    loaded = load_trace(trace, format=trace_format, length_field=length_field, tokenizer=tokenizer)
    split_seed = predictor.config.seed if seed is None else seed
    records = loaded.records if split == "all" else split_trace(loaded, seed=split_seed)[split].records
    if not records:
        raise TraceError(f"has no {split} rows", where=trace, fix="give another --split")
    metrics = evaluate_predictor(predictor, records)
    constant = evaluate_predictor(ConstantMedian.of(predictor.config), records)
    stderr_console(quiet).print(metrics_table({predictor.config.backend: metrics, "constant median": constant}))
    emit_json({**metrics, "constant_median": constant, "split": split, "length_source": loaded.length_source}, json)


def metrics_table(columns: Mapping[str, Mapping[str, float]]) -> Table:
    """A table of the evaluation's keys, one column per predictor or part of the data."""
    from rich.table import Table

    table = Table("", *columns)
    for column in table.columns[1:]:
        column.justify = "right"
    for key in next(iter(columns.values())):
        table.add_row(key, *(_shown(key, values[key]) for values in columns.values()))
    return table


def _shown(key: str, value: float) -> str:
    if key == "rows":
        return f"{value:,.0f}"
    if key.startswith(("within", "coverage", "bin_")):
        return f"{100 * value:.1f} %"
    return f"{value:.3f}" if key == "kendall_tau" else f"{value:.2f}"
