"""``ecoserve train-predictor``: from a trace to a predictor's checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ecoserve.cli.common import JsonOption, QuietOption, SeedOption, emit_json, stderr_console, what_is_done
from ecoserve.cli.options import Command, takes
from ecoserve.predictor.base import DEFAULT_BACKEND, backend_class, trained_backends
from ecoserve.predictor.config import BackendSettings

if TYPE_CHECKING:
    from ecoserve.data import Trace
    from ecoserve.predictor import LengthPredictor
    from ecoserve.predictor.recipes import Recipe

#: Columns of the table, by the part of the data that was evaluated.
COLUMNS = {"held_out": "held-out part of train", "dev": "dev", "constant_median": "constant median"}


#: Parameters of the command that decide nothing about the training.
_ABOUT_THE_RUN = frozenset(("output", "recipe", "resume", "json", "quiet"))


def _with_hyperparameters(command: Command) -> Command:
    """Give the command an option for each hyperparameter of each backend."""
    backends: dict[type[BackendSettings], list[str]] = {}
    for backend, settings in trained_backends().items():
        for part in settings.parts().values():
            backends.setdefault(part, []).append(backend)
    known: set[str] = set()
    for part, names in backends.items():
        options = [name for name in part.options() if name not in known]
        command = takes(part, " ".join(options), panel=f"Hyperparameters ({', '.join(names)})")(command)
        known |= set(options)
    return command


@_with_hyperparameters
def command(
    context: typer.Context,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Folder for the checkpoint.")],
    trace: Annotated[
        str | None, typer.Argument(metavar="TRACE", help="Trace: a file, or the id of a data set on the hub.")
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option("--recipe", metavar="FILE", help="YAML with all of this; options given here win.")
    ] = None,
    backend: Annotated[
        str,
        typer.Option("--backend", metavar="|".join(trained_backends()), help="What learns."),
    ] = DEFAULT_BACKEND,
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
    **hyperparameters: Any,
) -> None:
    """Train a predictor of response lengths and evaluate it on the trace's dev rows.

    A trace with a split of its own is used as it says; else a fifth of the conversations is kept apart as dev.
    """
    from ecoserve.errors import ConfigError
    from ecoserve.predictor.recipes import Recipe, read_recipe
    from ecoserve.predictor.runtime import first, let_waiting_threads_sleep

    let_waiting_threads_sleep()
    # Of several processes (torchrun, accelerate) one writes to the terminal.
    quiet = quiet or not first()
    console = stderr_console(quiet)
    if hyperparameters.get("encoder") and hyperparameters.get("start_from"):
        raise ConfigError("starts from a checkpoint's encoder already", where="--start-from", fix="leave out --encoder")
    wanted = (Recipe() if recipe is None else read_recipe(recipe)).with_options(_given(context))
    try:
        predictor = _made(wanted, output, resume=resume, quiet=quiet)
    except KeyboardInterrupt:
        if backend_class(wanted.backend).resumable:
            console.print(f"stopped; the same command with --resume goes on with what is in {output}")
        raise
    config = predictor.config
    from ecoserve.cli.predictors import metrics_table

    console.print(metrics_table({COLUMNS[part]: metrics for part, metrics in config.metrics.items()}))
    console.print(f"{config.backend} predictor in {output}, {config.training_seconds:.0f} s of training")
    if not first():
        return
    emit_json(
        {
            "checkpoint": str(output),
            "backend": config.backend,
            "served_model": config.served_model,
            "rows_trained": config.rows_trained,
            "rows_held_out": config.rows_held_out,
            "training_seconds": config.training_seconds,
            "seed": config.seed,
            **config.metrics,
        },
        json,
    )


def _given(context: typer.Context) -> dict[str, Any]:
    """The options given on the command line, by the names of a recipe's fields."""
    given = {
        name: value
        for name, value in context.params.items()
        if name not in _ABOUT_THE_RUN
        and value is not None
        and getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"
    }
    return {"format" if name == "trace_format" else name: value for name, value in given.items()}


def _made(wanted: Recipe, output: Path, *, resume: bool, quiet: bool) -> LengthPredictor:
    """What a recipe makes.

    Its first stage and its members are runs of their own, in folders beside ``output``; what has ended before is only
    loaded.
    """
    if wanted.members:
        from ecoserve.predictor import combine_predictors

        folders = [output.with_name(f"{output.name}-member{n}") for n in range(1, len(wanted.members) + 1)]
        for member, folder in zip(wanted.of_each_member(), folders, strict=True):
            _made(member, folder, resume=True, quiet=quiet)
        with what_is_done(quiet) as progress:
            return combine_predictors(_trace(wanted), folders, output_dir=output, resume=resume, progress=progress)
    if wanted.first is not None:
        earlier = output.with_name(f"{output.name}-first")
        _made(wanted.first, earlier, resume=True, quiet=quiet)
        wanted = wanted.started_from(earlier)
    return _train(wanted, output, resume=resume, quiet=quiet)


def _train(wanted: Recipe, output: Path, *, resume: bool, quiet: bool) -> LengthPredictor:
    """One training, from its trace to its checkpoint."""
    from ecoserve.predictor import train_predictor

    loaded = _trace(wanted)
    source = f"{Path(loaded.source).name}: {loaded.report}; lengths from {loaded.length_source}"
    stderr_console(quiet).print(source)
    with what_is_done(quiet) as progress:
        return train_predictor(
            loaded,
            backend=wanted.backend,
            output_dir=output,
            seed=wanted.seed,
            settings=wanted.made_settings(),
            bins=wanted.bins,
            served_model=wanted.served_model,
            max_rows=wanted.max_rows,
            held_out=wanted.held_out,
            resume=resume,
            progress=progress,
        )


def _trace(wanted: Recipe) -> Trace:
    """The trace to learn from."""
    from ecoserve.data import load_trace
    from ecoserve.errors import ConfigError

    if wanted.trace is None:
        raise ConfigError("no trace to learn from", where="TRACE", fix="give a file, or the id of a data set")
    return load_trace(
        wanted.trace,
        format=wanted.format,
        length_field=wanted.length_field,
        sample_field=wanted.sample_field,
        tokenizer=wanted.tokenizer,
    )
