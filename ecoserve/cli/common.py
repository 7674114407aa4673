"""What every command shares: common options, JSON output, console, progress bar, and exit codes.

Results go to files or stdout, tables and progress to stderr; a summary is written whole or not at all; an error is one
line. Exit codes: 0 done, 1 failed while running, 2 bad input, 3 done but a stated bound was missed, 130 interrupted.
"""

from __future__ import annotations

import json
import math
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.exceptions import TyperException

from ecoserve.errors import ConfigError, EcoServeError, RunError
from ecoserve.files import write_atomically

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

#: set to anything but 0 or nothing, this prints the traceback of whatever ended the command
DEBUG_VARIABLE = "ECOSERVE_DEBUG"

#: Packages that some commands need, and the extra that brings them.
EXTRA_OF = {
    "torch": "encoder",
    "transformers": "encoder",
    "accelerate": "encoder",
    "aiconfigurator_core": "gpu-models",
    "datasets": "hub",
    "vllm": "cuda] or ecoserve[cpu",
}

EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130

OutputOption = Annotated[
    Path, typer.Option("-o", "--output", metavar="DIR", help="Folder for the results.", show_default=True)
]


def _place_for_json(target: str | None) -> str | None:
    if target is not None and target != "-" and Path(target).is_dir():
        raise ConfigError("is a folder", where=f"--json {target}", fix="give a file in it, or - for stdout")
    return target


JsonOption = Annotated[
    str | None,
    typer.Option(
        "--json",
        metavar="FILE|-",
        callback=_place_for_json,
        help="Write the summary as JSON to FILE, or to stdout with '-'.",
    ),
]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="Seed of everything random.")]
ApiKeyOption = Annotated[
    str | None,
    typer.Option(
        "--api-key",
        envvar="VLLM_API_KEY",
        show_envvar=False,
        help="Bearer token for --url.",
        show_default="VLLM_API_KEY of the environment",
    ),
]
QuietOption = Annotated[bool, typer.Option("--quiet", help="No progress and no tables on stderr.")]


def stderr_console(quiet: bool = False) -> Console:
    """A rich console on stderr that prints text as it is, brackets included; silent with ``quiet``."""
    from rich.console import Console

    return Console(stderr=True, quiet=quiet, highlight=False, markup=False, soft_wrap=True)


def progress_bar(quiet: bool = False) -> Progress:
    """A progress bar on stderr, for a ``with``; nothing is drawn with ``quiet`` or where stderr is no terminal."""
    from rich import progress

    console = stderr_console(quiet)
    return progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        progress.TimeRemainingColumn(),
        console=console,
        disable=quiet or not console.is_terminal,
        transient=True,
    )


@contextmanager
def progress_of(quiet: bool) -> Iterator[Callable[[str, int, int | None], None]]:
    """A progress bar of one line; gives a function that takes ``(what, done, total)``."""
    with progress_bar(quiet) as bar:
        task = bar.add_task("", total=None)
        doing = ""

        def show(what: str, done: int, total: int | None, /) -> None:
            nonlocal doing
            if what != doing:
                doing = what
                bar.reset(task, description=what, total=total)
            bar.update(task, completed=done, total=total)

        yield show


def emit_json(summary: Any, target: str | Path | None) -> None:
    """Write a summary as JSON to a file, replaced in one step, or to stdout for ``"-"``; None: nowhere.

    NumPy values, dataclasses and paths are taken too; NaN and infinities become null. A file that cannot be written is
    a RunError.
    """
    if target is None:
        return
    text = json_text(summary)
    if str(target) == "-":
        sys.stdout.write(text)
        sys.stdout.flush()
        return
    try:
        write_atomically(Path(target), text)
    except OSError as error:
        raise RunError(f"cannot be written ({error.strerror or error})", where=str(target)) from error


def json_text(summary: Any) -> str:
    from pydantic_core import to_jsonable_python

    def numpy_value(value: Any) -> Any:
        if hasattr(value, "tolist"):
            return value.tolist()
        raise TypeError(f"no JSON for {type(value).__name__}")

    plain = to_jsonable_python(summary, inf_nan_mode="null", fallback=numpy_value)
    return json.dumps(plain, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def guard(action: Callable[[], Any]) -> int:
    """Run a command; returns the exit code (the action's result if an integer), with at most one line on stderr."""
    try:
        result = action()
    except EcoServeError as error:
        return _stop(str(error), error.exit_code)
    except TyperException as error:  # wrong usage: an unknown option, a missing argument, a bad value
        context = getattr(error, "ctx", None)
        hint = f"see: {context.command_path} --help" if context is not None else None
        message = " ".join(getattr(error, "format_message", error.__str__)().split()).rstrip(".")
        return _stop(f"{message}; {hint}" if hint else message, getattr(error, "exit_code", EXIT_BAD_INPUT))
    except typer.Exit as done:
        return done.exit_code
    except (KeyboardInterrupt, typer.Abort):
        return _stop("interrupted", EXIT_INTERRUPTED, label="ecoserve")
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRA_OF:
            return _unexpected(error)
        return _stop(f"this needs {package}; pip install 'ecoserve[{EXTRA_OF[package]}]'", EXIT_BAD_INPUT)
    except BrokenPipeError:
        # The reader of our output has gone (`| head`). Python would complain once more while closing stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except Exception as error:  # noqa: BLE001 - the last line of defence: users get a line, not a traceback
        return _unexpected(error)
    return result if isinstance(result, int) else 0


def _unexpected(error: Exception) -> int:
    first = " ".join(str(error).split())[:300]
    what = f"{type(error).__name__}: {first}" if first else type(error).__name__
    return _stop(f"unexpected {what}; {DEBUG_VARIABLE}=1 shows the traceback", EXIT_FAILED)


def _stop(message: str, code: int, *, label: str = "error") -> int:
    if os.environ.get(DEBUG_VARIABLE, "0") not in ("", "0"):
        traceback.print_exc()
    sys.stdout.flush()
    print(f"{label}: {message}", file=sys.stderr)
    return code


def parsed_rate(text: str) -> float | None:
    """Requests a second; None for recorded arrivals."""
    if text == "recorded":
        return None
    try:
        rate = float(text)
    except ValueError:
        rate = math.nan
    if not rate > 0:
        raise ConfigError(f"{text!r} is no rate", where="--rate", fix="requests a second, inf, or recorded")
    return rate
