"""``ecoserve evaluate-predictor``: a predictor's metrics on held-out rows, beside baselines."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from ecoserve.cli.common import JsonOption, QuietOption, emit_json, stderr_console
from ecoserve.cli.predictors import CheckpointArgument, metric_text, metrics_table, read_trace, reads_a_trace
from ecoserve.data import Trace, split_trace
from ecoserve.errors import ConfigError, TraceError
from ecoserve.predictor import ConstantMedian, LengthPredictor, evaluate_predictor, load_predictor
from ecoserve.predictor.baselines import Embed, side_by_side
from ecoserve.predictor.encoder.predictor import FrozenEncoder
from ecoserve.predictor.encoder.settings import PACKAGED_IDS, find_encoder, is_here
from ecoserve.predictor.examples import training_parts
from ecoserve.predictor.runtime import let_waiting_threads_sleep

#: Columns of the comparison, which have to fit a terminal: key of the evaluation, and what stands above it.
_COMPARED = {
    "mae_tokens": "MAE",
    "within_50": "in 50",
    "within_100": "in 100",
    "kendall_tau": "tau",
    "pinball_loss": "pinball",
    "crps": "CRPS",
    "ece": "ECE",
    "coverage_90": "in q90",
}


@reads_a_trace
def command(
    checkpoint: CheckpointArgument,
    trace: Annotated[str, typer.Argument(metavar="TRACE", help="Trace: a file, or the id of a data set on the hub.")],
    *,
    split: Annotated[
        str, typer.Option("--split", metavar="dev|train|all", help="Which rows; all for a trace not trained on.")
    ] = "dev",
    baselines: Annotated[
        bool, typer.Option("--baselines", help="Add baselines without training, and the upper bound.")
    ] = False,
    beside: Annotated[
        list[str] | None,
        typer.Option("--beside", metavar="CKPT", help="Another predictor for the same table; repeatable."),
    ] = None,
    encoder: Annotated[
        str | None,
        typer.Option(
            "--encoder",
            metavar="ID_OR_PATH",
            help="For the nearest neighbours; by default all-MiniLM-L6-v2, if it is on this machine.",
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option("--seed", min=0, help="Seed of the split, if the trace has none.", show_default="the training's"),
    ] = None,
    json: JsonOption = None,
    quiet: QuietOption = False,
    **reading: Any,
) -> None:
    """Evaluate a predictor on a trace, beside the constant median of the lengths it was trained on.

    Where the trace has no split of its own, the seed of the training gives the dev rows, which it was not trained on.
    """
    let_waiting_threads_sleep()
    if split not in ("dev", "train", "all"):
        raise ConfigError(f"no split {split!r}", where="--split", fix="one of dev, train, all")
    if baselines and split != "dev":
        raise ConfigError("would be tested on the rows they learn from", where="--baselines", fix="leave out --split")
    if encoder is not None and not baselines:
        raise ConfigError("is for the nearest neighbours", where="--encoder", fix="give --baselines too")
    predictor = load_predictor(checkpoint)
    named: dict[str, LengthPredictor] = {}
    for place, each in ((checkpoint, predictor), *((p, load_predictor(p)) for p in beside or ())):
        name = f"{each.config.backend} ({Path(place).name})"
        named[place if name in named else name] = each
    own = next(iter(named))
    console = stderr_console(quiet)
    loaded = read_trace(trace, reading, console)
    split_seed = predictor.config.seed if seed is None else seed
    records = loaded.records if split == "all" else split_trace(loaded, seed=split_seed)[split].records
    if not records:
        raise TraceError(f"has no {split} rows", where=trace, fix="give another --split")
    summary: dict[str, Any] = {"split": split, "length_source": loaded.length_source}
    if baselines:
        rows = _with_baselines(loaded, predictor, named, split_seed, encoder, console)
        constant = rows["constant_median"]
        console.print(comparison_table(rows))
        summary["table"] = rows
    else:
        rows = {name: evaluate_predictor(each, records) for name, each in named.items()}
        constant = evaluate_predictor(ConstantMedian.of(predictor.config), records)
        console.print(metrics_table({**rows, "constant median": constant}))
        if beside:
            summary["table"] = rows
    emit_json({**rows[own], "constant_median": constant, **summary}, json)


def _with_baselines(
    trace: Trace,
    predictor: LengthPredictor,
    named: Mapping[str, LengthPredictor],
    seed: int,
    encoder: str | None,
    console: Console,
) -> dict[str, dict[str, float]]:
    """The whole table; baselines learn from the training rows of ``predictor``, over its bins."""
    used = predictor.config.hyperparameters
    parts = training_parts(trace, seed=seed, max_rows=used.get("max_rows"), held_out=float(used.get("held_out", 0.1)))
    embed = _embedder(encoder)
    if embed is None:
        console.print("no nearest neighbours: the default encoder is not on this machine; --encoder names one")
    with console.status("") as status:
        return side_by_side(
            parts,
            parts.dev_records,
            predictor.config.bins,
            trained=named,
            embed=embed,
            progress=lambda what, done, total: status.update(what),
        )


def _embedder(encoder: str | None) -> Embed | None:
    if encoder is None and not is_here(PACKAGED_IDS[0]):
        return None
    return FrozenEncoder(find_encoder(encoder or PACKAGED_IDS[0])[0])


def comparison_table(rows: Mapping[str, Mapping[str, float]]) -> Table:
    """A table of many predictors, a line each; metrics that a row does not have stay empty."""
    table = Table(
        "", box=SIMPLE, padding=(0, 1, 0, 0), caption="errors in tokens; in q90: not longer than it, 90 % is right"
    )
    for heading in _COMPARED.values():
        table.add_column(heading, justify="right", no_wrap=True)
    for name, values in rows.items():
        cells = [metric_text(key, values[key]) if key in values else "" for key in _COMPARED]
        table.add_row(name.replace("_", " "), *cells)
    return table
