"""``ecoserve train-predictor``: from a trace to a predictor's checkpoint."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ecoserve.cli.common import JsonOption, QuietOption, SeedOption, emit_json, progress_bar, stderr_console

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ecoserve.predictor.config import Backend
    from ecoserve.predictor.progress import Progress

#: Columns of the table, by the part of the data that was evaluated.
_COLUMNS = {"held_out": "held-out part of train", "dev": "dev", "constant_median": "constant median"}


def command(
    trace: Annotated[str, typer.Argument(metavar="TRACE", help="Trace: a file, or the id of a data set on the hub.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Folder for the checkpoint.")],
    backend: Annotated[
        str, typer.Option("--backend", metavar="stacked|encoder|lightgbm", help="What kind; stacked is both others.")
    ] = "stacked",
    length_field: Annotated[
        str | None, typer.Option("--length-field", help="Field with the lengths in tokens, as lengths[3].")
    ] = None,
    sample_field: Annotated[
        str | None, typer.Option("--sample-field", help="Field with lengths of several answers to each prompt.")
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option("--tokenizer", help="Served model's tokenizer, to count the answers' tokens.")
    ] = None,
    trace_format: Annotated[str, typer.Option("--format", help="Format of the trace.")] = "auto",
    served_model: Annotated[
        str | None, typer.Option("--served-model", help="The model that gave the answers, if the trace does not say.")
    ] = None,
    encoder: Annotated[
        str | None, typer.Option("--encoder", metavar="ID_OR_PATH", help="Pretrained encoder [all-MiniLM-L6-v2].")
    ] = None,
    start_from: Annotated[
        str | None,
        typer.Option("--start-from", metavar="DIR_OR_ID", help="Encoder of this checkpoint, trained on another trace."),
    ] = None,
    epochs: Annotated[float | None, typer.Option("--epochs", help="Encoder: passes over the rows [3].")] = None,
    body_lr: Annotated[
        float | None, typer.Option("--body-lr", help="Encoder: learning rate of the pretrained body [1e-4].")
    ] = None,
    ranking: Annotated[
        float | None, typer.Option("--ranking", help="Encoder: weight of a loss for wrongly ordered pairs [0].")
    ] = None,
    max_length: Annotated[
        int | None, typer.Option("--max-length", help="Encoder: tokens read of a request [128].")
    ] = None,
    rounds: Annotated[int | None, typer.Option("--rounds", help="LightGBM: boosting rounds at most.")] = None,
    max_rows: Annotated[
        int | None, typer.Option("--max-rows", min=1, help="Learn from at most so many rows, chosen at random.")
    ] = None,
    held_out: Annotated[
        float, typer.Option("--held-out", help="Share of the train rows kept apart to choose and calibrate on.")
    ] = 0.1,
    seed: SeedOption = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the interrupted run in DIR.")] = False,
    json: JsonOption = None,
    quiet: QuietOption = False,
) -> None:
    """Train a predictor of response lengths and evaluate it on the trace's dev rows.

    A trace with a split of its own is used as it says; else a fifth of the conversations is kept apart as dev.
    """
    from ecoserve.data import load_trace
    from ecoserve.errors import ConfigError
    from ecoserve.predictor import train_predictor
    from ecoserve.predictor.config import BACKENDS
    from ecoserve.predictor.processes import first
    from ecoserve.predictor.threads import let_waiting_threads_sleep

    let_waiting_threads_sleep()
    if backend not in BACKENDS:
        raise ConfigError(f"no backend {backend!r}", where="--backend", fix=f"one of {', '.join(BACKENDS)}")
    # Of several processes (torchrun, accelerate) one talks.
    quiet = quiet or not first()
    console = stderr_console(quiet)
    if encoder is not None and start_from is not None:
        raise ConfigError("starts from a checkpoint's encoder already", where="--start-from", fix="leave out --encoder")
    settings = _settings(
        backend,
        encoder=encoder,
        start_from=start_from,
        epochs=epochs,
        body_lr=body_lr,
        ranking=ranking,
        max_length=max_length,
        rounds=rounds,
    )
    loaded = load_trace(
        trace, format=trace_format, length_field=length_field, sample_field=sample_field, tokenizer=tokenizer
    )
    console.print(f"{Path(loaded.source).name}: {loaded.report}; lengths from {loaded.length_source}")
    try:
        with _progress(quiet) as progress:
            predictor = train_predictor(
                loaded,
                backend=backend,
                output_dir=output,
                seed=seed,
                settings=settings,
                served_model=served_model,
                max_rows=max_rows,
                held_out=held_out,
                resume=resume,
                progress=progress,
            )
    except KeyboardInterrupt:
        if backend != "lightgbm":
            console.print(f"stopped; the same command with --resume goes on with what is in {output}")
        raise
    config = predictor.config
    from ecoserve.cli.evaluate_predictor import metrics_table

    console.print(metrics_table({_COLUMNS[part]: metrics for part, metrics in config.metrics.items()}))
    console.print(f"{backend} predictor in {output}, {config.training_seconds:.0f} s of training")
    if not first():
        return
    emit_json(
        {
            "checkpoint": str(output),
            "backend": backend,
            "served_model": config.served_model,
            "rows_trained": config.rows_trained,
            "rows_held_out": config.rows_held_out,
            "training_seconds": config.training_seconds,
            "seed": seed,
            **config.metrics,
        },
        json,
    )


def _settings(backend: Backend, **options: Any) -> Any:
    """The backend's hyperparameters; an option that means nothing to it is refused."""
    from pydantic import BaseModel, ValidationError

    from ecoserve.errors import ConfigError
    from ecoserve.predictor.config import SETTINGS, BoostingSettings, EncoderSettings, StackedSettings

    given = {k: v for k, v in options.items() if v is not None}
    stacked = backend == "stacked"
    parts: list[type[BaseModel]] = [EncoderSettings, BoostingSettings] if stacked else [SETTINGS[backend]]
    for name in given:
        if not any(name in part.model_fields for part in parts):
            option = "--" + name.replace("_", "-")
            raise ConfigError(f"means nothing to the {backend} backend", where=option, fix="leave it out")
    try:
        made = [part(**{k: v for k, v in given.items() if k in part.model_fields}) for part in parts]
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(first["msg"], where="--" + str(first["loc"][0]).replace("_", "-")) from error
    return StackedSettings.model_validate({"encoder": made[0], "lightgbm": made[1]}) if stacked else made[0]


@contextmanager
def _progress(quiet: bool) -> Iterator[Progress]:
    """A progress bar whose one line says what is being done."""
    with progress_bar(quiet) as bar:
        task = bar.add_task("", total=None)
        doing = ""

        def show(what: str, done: int, total: int, /) -> None:
            nonlocal doing
            if what != doing:
                doing = what
                bar.reset(task, description=what, total=total)
            bar.update(task, completed=done, total=total)

        yield show
