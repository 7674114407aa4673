"""``ecoserve train-predictor``: from a trace to a predictor's checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from ecoserve.cli.common import JsonOption, QuietOption, emit_json, progress_of, stderr_console
from ecoserve.cli.options import Command, takes
from ecoserve.cli.predictors import READING, read_trace, reads_a_trace, show_metrics, summary
from ecoserve.data import Trace
from ecoserve.errors import ConfigError
from ecoserve.predictor import LengthPredictor, combine_predictors, train_predictor
from ecoserve.predictor.base import backend_class, trained_backends
from ecoserve.predictor.config import BackendSettings
from ecoserve.predictor.recipes import Recipe, read_recipe
from ecoserve.predictor.runtime import first, let_waiting_threads_sleep


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


@takes(Recipe, "backend")
@reads_a_trace
@takes(Recipe, "served_model max_rows held_out seed")
@_with_hyperparameters
def command(
    trace: Annotated[
        str | None, typer.Argument(metavar="TRACE", help="Trace: a file, or the id of a data set on the hub.")
    ] = None,
    *,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Folder for the checkpoint.")],
    recipe: Annotated[
        Path | None, typer.Option("--recipe", metavar="FILE", help="YAML with all of this; options given here win.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the interrupted run in DIR.")] = False,
    json: JsonOption = None,
    quiet: QuietOption = False,
    **given: Any,
) -> None:
    """Train a predictor of response lengths and evaluate it on the trace's dev rows.

    A trace with a split of its own is used as it says; otherwise a fifth of the conversations is held out as dev.
    """
    let_waiting_threads_sleep()
    # Of several processes (torchrun, accelerate) one writes to the terminal.
    quiet = quiet or not first()
    console = stderr_console(quiet)
    if "encoder" in given and "start_from" in given:
        raise ConfigError("starts from a checkpoint's encoder already", where="--start-from", fix="leave out --encoder")
    if trace is not None:
        given["trace"] = trace
    wanted = (Recipe() if recipe is None else read_recipe(recipe)).with_options(given)
    try:
        predictor = _made(wanted, output, resume=resume, quiet=quiet)
    except KeyboardInterrupt:
        if backend_class(wanted.backend).resumable:
            console.print(f"stopped; the same command with --resume goes on with what is in {output}")
        raise
    config = predictor.config
    show_metrics(config, console)
    console.print(f"{config.backend} predictor in {output}, {config.training_seconds:.0f} s of training")
    if not first():
        return
    rows = {"rows_trained": config.rows_trained, "rows_held_out": config.rows_held_out}
    emit_json({**summary(output, config), **rows}, json)


def _made(wanted: Recipe, output: Path, *, resume: bool, quiet: bool) -> LengthPredictor:
    """What a recipe makes; its first stage and its members are runs of their own, in folders beside ``output``."""
    if wanted.members:
        folders = [output.with_name(f"{output.name}-member{n}") for n in range(1, len(wanted.members) + 1)]
        for member, folder in zip(wanted.of_each_member(), folders, strict=True):
            _made(member, folder, resume=True, quiet=quiet)
        with progress_of(quiet) as progress:
            return combine_predictors(
                _trace(wanted, stderr_console(True)), folders, output_dir=output, resume=resume, progress=progress
            )
    if wanted.first is not None:
        earlier = output.with_name(f"{output.name}-first")
        _made(wanted.first, earlier, resume=True, quiet=quiet)
        wanted = wanted.started_from(earlier)
    return _train(wanted, output, resume=resume, quiet=quiet)


def _train(wanted: Recipe, output: Path, *, resume: bool, quiet: bool) -> LengthPredictor:
    loaded = _trace(wanted, stderr_console(quiet))
    with progress_of(quiet) as progress:
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


def _trace(wanted: Recipe, console: Console) -> Trace:
    if wanted.trace is None:
        raise ConfigError("no trace to learn from", where="TRACE", fix="give a file, or the id of a data set")
    return read_trace(wanted.trace, {name: getattr(wanted, name) for name in READING}, console)
