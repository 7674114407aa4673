"""The options of ``ecoserve profile --collect``, and what they do: no command of its own.

Rule: an option is defined once, here, and means the setting of the same name in
:class:`ecoserve.serving.collect.CollectSettings`.
"""

from __future__ import annotations

import json
import shlex
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ecoserve.cli.common import progress_bar, stderr_console

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ecoserve.serving.collect import CollectProgress, CollectResult, CollectSettings, Progress

#: Group of these options in ``--help``.
PANEL = "With --collect"
#: Seconds between two lines of progress where there is no terminal.
_LINE_S = 60.0

CollectOption = Annotated[
    Path | None,
    typer.Option(
        "--collect",
        metavar="FILE",
        help="Send the prompts to --url or --model, write the answers' lengths to FILE (.jsonl[.gz]), profile those.",
    ),
]
UrlOption = Annotated[str | None, typer.Option("--url", help="OpenAI-compatible server to ask.", rich_help_panel=PANEL)]
ModelOption = Annotated[
    str | None,
    typer.Option("--model", help="Instead: a model to serve with a vLLM server of our own.", rich_help_panel=PANEL),
]
ServedModelOption = Annotated[
    str | None,
    typer.Option(
        "--served-model",
        metavar="NAME",
        help="Name of the served model (else the first that is listed).",
        rich_help_panel=PANEL,
    ),
]
ServeFlagsOption = Annotated[
    str,
    typer.Option(
        "--serve-flags", metavar="FLAGS", help="vLLM's flags for --model, in one text.", rich_help_panel=PANEL
    ),
]
SamplesOption = Annotated[
    int, typer.Option("--samples", "-k", min=1, help="Answers to each prompt.", rich_help_panel=PANEL)
]
TemperatureOption = Annotated[
    float | None,
    typer.Option("--temperature", min=0, help="Of the samples (else the server's).", rich_help_panel=PANEL),
]
TopPOption = Annotated[
    float | None, typer.Option("--top-p", help="Nucleus sampling (else the server's).", rich_help_panel=PANEL)
]
MaxTokensOption = Annotated[
    int | None,
    typer.Option(
        "--max-tokens", min=1, help="Longest answer (else as the row says, or the server's).", rich_help_panel=PANEL
    ),
]
ConcurrencyOption = Annotated[
    int, typer.Option("--concurrency", min=1, help="Requests open at once.", rich_help_panel=PANEL)
]
RateOption = Annotated[float | None, typer.Option("--rate", help="Requests a second, at most.", rich_help_panel=PANEL)]
RetriesOption = Annotated[
    int, typer.Option("--retries", min=0, help="Repetitions of a request that fails.", rich_help_panel=PANEL)
]
TimeoutOption = Annotated[
    float, typer.Option("--timeout", metavar="SECONDS", help="Seconds to wait for one answer.", rich_help_panel=PANEL)
]
PatienceOption = Annotated[
    float,
    typer.Option(
        "--patience",
        metavar="SECONDS",
        help="Seconds to keep retrying while the server is unreachable.",
        rich_help_panel=PANEL,
    ),
]
ApiOption = Annotated[
    str, typer.Option("--api", metavar="chat|completions", help="What is asked.", rich_help_panel=PANEL)
]
ApiKeyOption = Annotated[
    str | None,
    typer.Option(
        "--api-key",
        envvar="VLLM_API_KEY",
        show_envvar=False,
        help="Bearer token (else VLLM_API_KEY of the environment).",
        rich_help_panel=PANEL,
    ),
]
BodyOption = Annotated[
    str | None,
    typer.Option(
        "--body", metavar="JSON", help="More fields of each request; null takes one out.", rich_help_panel=PANEL
    ),
]
TextOption = Annotated[bool, typer.Option("--text/--no-text", help="Keep the answers' texts.", rich_help_panel=PANEL)]
AllowMissingOption = Annotated[
    bool, typer.Option("--allow-missing", help="Write FILE without answers that failed.", rich_help_panel=PANEL)
]


def collect_trace(prompts: str, output: Path, *, quiet: bool = False, **options: Any) -> CollectResult:
    """Collect, with progress on stderr, and say what came of it.

    Args:
        prompts: TRACE of the command line.
        output: FILE of ``--collect``.
        quiet: no progress, no words.
        **options: by the name of their setting, but ``serve_flags`` (one text) for ``server_flags``, and ``body`` as
            text.

    Raises:
        EcoServeError: as :func:`ecoserve.serving.collect.collect`.
        typer.Exit: 130 or 143 after a signal; what to do next has been said.
    """
    from ecoserve.serving.collect import CollectInterrupted, collect

    settings = settings_of(prompts, output, options)
    console = stderr_console(quiet)
    if settings.temperature == 0 and settings.samples > 1:
        console.print("note: at temperature 0 all samples of a prompt are the same answer")
    try:
        with _shown(quiet) as progress:
            result = collect(settings, progress)
    except CollectInterrupted as stopped:
        # Not through the console: --quiet is no reason to keep this back.
        typer.echo(f"ecoserve: interrupted: {stopped}; the same command goes on", err=True)
        raise typer.Exit(128 + stopped.signal) from None
    console.print(in_words(result))
    return result


def settings_of(prompts: str, output: Path, options: dict[str, Any]) -> CollectSettings:
    """The settings that options mean.

    Raises:
        ConfigError: naming the option that is wrong.
    """
    from pydantic import ValidationError

    from ecoserve.errors import ConfigError
    from ecoserve.serving.collect import CollectSettings

    values = {**options, "prompts": prompts, "output": output}
    try:
        values["server_flags"] = tuple(shlex.split(values.pop("serve_flags", None) or ""))
    except ValueError as error:
        raise ConfigError(f"cannot be read ({error})", where="--serve-flags") from error
    body = values.pop("body", None)
    if body is not None:
        try:
            values["body"] = json.loads(body)
        except ValueError as error:
            what = f"is not JSON ({error})"
            raise ConfigError(what, where="--body", fix="""for example --body '{"top_k": 20}'""") from error
    try:
        return CollectSettings(**values)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        flag = _FLAGS.get(str(first["loc"][0]), str(first["loc"][0])) if first["loc"] else "collect"
        what = first["msg"].removeprefix("Value error, ")
        raise ConfigError(what, where=f"--{flag.replace('_', '-')}") from None


_FLAGS = {"output": "collect", "timeout_s": "timeout", "patience_s": "patience", "server_flags": "serve-flags"}


def in_words(result: CollectResult) -> str:
    """What came of a collection, on one line."""
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
