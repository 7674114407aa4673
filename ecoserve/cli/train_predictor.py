"""``ecoserve train-predictor``: from a trace to a predictor's checkpoint."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ecoserve.cli.common import JsonOption, QuietOption, SeedOption, emit_json, progress_bar, stderr_console

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ecoserve.predictor.config import Backend, BoostingSettings, EncoderSettings
    from ecoserve.predictor.progress import Progress

#: Columns of the table, by the part of the data that was evaluated.
_COLUMNS = {"held_out": "held-out part of train", "dev": "dev", "constant_median": "constant median"}


def command(
    trace: Annotated[str, typer.Argument(metavar="TRACE", help="Trace: a file, or the id of a data set on the hub.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Folder for the checkpoint.")],
    backend: Annotated[
        str, typer.Option("--backend", metavar="encoder|lightgbm", help="What kind of predictor.")
    ] = "encoder",
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
    epochs: Annotated[float | None, typer.Option("--epochs", help="Encoder: passes over the rows [3].")] = None,
    rounds: Annotated[int | None, typer.Option("--rounds", help="LightGBM: boosting rounds at most.")] = None,
    max_rows: Annotated[
        int | None, typer.Option("--max-rows", min=1, help="Learn from at most so many rows, chosen at random.")
    ] = None,
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
    from ecoserve.predictor.threads import let_waiting_threads_sleep

    let_waiting_threads_sleep()
    if backend not in BACKENDS:
        raise ConfigError(f"no backend {backend!r}", where="--backend", fix=f"one of {', '.join(BACKENDS)}")
    console = stderr_console(quiet)
    settings = _settings(backend, encoder=encoder, epochs=epochs, rounds=rounds)
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
                resume=resume,
                progress=progress,
            )
    except KeyboardInterrupt:
        if backend == "encoder":
            console.print(f"stopped; the same command with --resume goes on with what is in {output}")
        raise
    config = predictor.config
    from ecoserve.cli.evaluate_predictor import metrics_table

    console.print(metrics_table({_COLUMNS[part]: metrics for part, metrics in config.metrics.items()}))
    console.print(f"{backend} predictor in {output}, {config.training_seconds:.0f} s of training")
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


def _settings(backend: Backend, *, encoder: str | None, epochs: float | None, rounds: int | None) -> Any:
    """The backend's hyperparameters; an option of the other backend is refused."""
    from pydantic import ValidationError

    from ecoserve.errors import ConfigError
    from ecoserve.predictor.config import BoostingSettings, EncoderSettings

    kind: type[EncoderSettings] | type[BoostingSettings] = EncoderSettings if backend == "encoder" else BoostingSettings
    given = {k: v for k, v in {"encoder": encoder, "epochs": epochs, "rounds": rounds}.items() if v is not None}
    for name in given:
        if name not in kind.model_fields:
            raise ConfigError(f"means nothing to the {backend} backend", where=f"--{name}", fix="leave it out")
    try:
        return kind(**given)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(first["msg"], where=f"--{first['loc'][0]}") from error


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
