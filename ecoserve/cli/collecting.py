"""``ecoserve profile --collect``: its options, its progress, and its result in words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import typer

from ecoserve.cli.common import progress_bar, stderr_console
from ecoserve.cli.options import takes
from ecoserve.options import checked, flag
from ecoserve.serving.collect import (
    CollectInterrupted,
    CollectProgress,
    CollectResult,
    CollectSettings,
    Progress,
    collect,
)

#: Seconds between two lines of progress where there is no terminal.
_LINE_S = 60.0

#: The settings that are options with ``--collect`` only.
SETTINGS: Final = (
    "url model served_model server_flags api samples temperature top_p body keep_text "
    "concurrency rate retries timeout_s patience_s allow_missing"
)
#: Gives a command these options.
collects = takes(CollectSettings, SETTINGS, panel="With --collect")


def collect_trace(prompts: str, output: Path, *, quiet: bool = False, **options: Any) -> CollectResult:
    """Collect the lengths of responses to ``prompts`` into ``output``, with progress and the result on stderr.

    After a signal the exit code is 130 or 143; how to resume has been printed.
    """
    values = {**options, "prompts": prompts, "output": output}
    settings = checked(CollectSettings, values, lambda name: flag(name or "output", CollectSettings))
    console = stderr_console(quiet)
    if settings.temperature == 0 and settings.samples > 1:
        console.print("note: at temperature 0 all samples of a prompt are the same answer")
    try:
        with _shown(quiet) as progress:
            result = collect(settings, progress)
    except CollectInterrupted as stopped:
        # Not through the console: it is printed with --quiet too.
        typer.echo(f"ecoserve: interrupted: {stopped}; the same command goes on", err=True)
        raise typer.Exit(128 + stopped.signal) from None
    console.print(in_words(result))
    return result


def in_words(result: CollectResult) -> str:
    parts = [f"{result.rows:,} answers of {result.model} to {result.prompts:,} prompts in {result.output}"]
    if result.rows_earlier:
        parts.append(f"{result.rows_earlier:,} of them from earlier runs")
    parts.append(f"{result.tokens / result.rows:,.1f} tokens on average")
    for count, what in (
        (result.censored, "cut off"),
        (result.refused, "requests refused"),
        (result.missing, "missing"),
        (result.retries, "repetitions"),
    ):
        if count:
            parts.append(f"{count:,} {what}")
    return ", ".join(parts)


@contextmanager
def _shown(quiet: bool) -> Iterator[Progress]:
    """Progress: a bar on a terminal, else a line a minute."""
    console = stderr_console(quiet)
    if not console.is_terminal:
        last, ending = 0.0, False

        def line(state: CollectProgress) -> None:
            nonlocal last, ending
            if state.elapsed_s - last >= _LINE_S or state.ending > ending:
                last, ending = state.elapsed_s, state.ending
                console.print(_state_in_words(state, ahead=True))

        yield line
        return
    with progress_bar(quiet) as bar:
        task = bar.add_task("collecting", total=None)

        def draw(state: CollectProgress) -> None:
            bar.update(task, completed=state.settled, total=state.total or None, description=_state_in_words(state))

        yield draw


def _state_in_words(state: CollectProgress, ahead: bool = False) -> str:
    parts = []
    if ahead and state.total:
        parts.append(f"{state.settled:,} of {state.total:,}")
        parts += [f"{state.left_s / 60:,.0f} min left"] if state.left_s is not None else []
    if state.total:
        parts.append(f"{state.tokens_per_s:,.0f} tokens/s")
    parts += [f"{n:,} {what}" for n, what in ((state.retries, "retries"), (state.refused, "refused")) if n]
    parts += [f"{state.failed:,} failed"] if state.failed else []
    parts += [state.note] if state.note else []
    return ", ".join(parts) or "collecting"
