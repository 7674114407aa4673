"""``ecoserve``: a table of the commands, most of them a file of this package each.

Only the module of the command that is called is imported; the table below is enough for ``ecoserve --help``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Annotated, Any

import typer

from ecoserve.cli.common import EXIT_BAD_INPUT, guard
from ecoserve.deprecations import CLI_OPTIONS, renamed


@dataclass(frozen=True, slots=True)
class Entry:
    """One command: its name, its line in ``--help``, and whether options it does not know are passed on (to vLLM)."""

    name: str
    summary: str
    passes_options_on: bool = False
    #: module and function in this package; by default ``command`` in the module of the command's name
    at: str = ""

    def load(self) -> Callable[..., Any]:
        module, _, function = (self.at or f"{self.name.replace('-', '_')}:command").partition(":")
        found: Callable[..., Any] = getattr(import_module(f"ecoserve.cli.{module}"), function)
        return found

    @property
    def context_settings(self) -> dict[str, Any]:
        if not self.passes_options_on:
            return {}
        return {"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": True}


COMMANDS: tuple[Entry, ...] = (
    Entry("doctor", "Check the installation and the machine."),
    Entry("profile", "Response lengths of a trace, and if prediction pays."),
    Entry("train-predictor", "Learn response lengths from a trace."),
    Entry("evaluate-predictor", "Evaluate a predictor."),
    Entry("adapt-predictor", "Adapt a predictor to another model's answers.", at="predictors:adapt"),
    Entry("combine-predictors", "Combine predictors of one trace in an ensemble.", at="predictors:combine"),
    Entry("predict", "Predict the lengths of answers to prompts."),
    Entry("predict-server", "Predict lengths over HTTP, for gateways."),
    Entry("push-predictor", "Publish a predictor on the Hugging Face hub.", at="predictors:push"),
    Entry("serve", "Serve a model, scheduled by predicted lengths.", passes_options_on=True),
    Entry("deploy", "Serve a model by replicas on a Ray cluster."),
    Entry("try", "Is it worth it here? vLLM and ours on one engine.", passes_options_on=True, at="trial:try_here"),
    Entry("replay", "Replay a trace at a URL or on an engine here."),
    Entry("simulate", "Run a trace on modelled GPUs, in virtual time."),
    Entry("plan", "How many GPUs a load needs for its SLO."),
    Entry("calibrate-forward", "Find the forward size at which a GPU saturates."),
    Entry("sweep", "Run policies x rates x lengths x seeds."),
    Entry("report", "Rebuild or compare the reports of result folders."),
)


def _show_version(show: bool) -> None:
    if show:
        from importlib.metadata import version

        typer.echo(f"ecoserve {version('ecoserve')}")
        raise typer.Exit


def _top(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Cheaper LLM serving from predicted response lengths: a length predictor, and a vLLM scheduler that uses it."""


def build_app(called: str | None) -> typer.Typer:
    """The command line with one command really loaded (if it is one of ours) and the others by their summary only."""
    app = typer.Typer(name="ecoserve", add_completion=False, pretty_exceptions_enable=False)
    app.callback()(_top)
    for entry in COMMANDS:
        if entry.name == called:
            function = entry.load()
            # Paragraphs wrap at the terminal's width, not where they do in the source.
            text = "\n\n".join(" ".join(part.split()) for part in (function.__doc__ or "").split("\n\n"))
            app.command(entry.name, help=text, context_settings=entry.context_settings)(function)
        else:
            app.command(entry.name, help=entry.summary)(_never_called)
    return app


def _never_called() -> None:
    raise AssertionError("a command that was not loaded was called")


def _renamed(arguments: Sequence[str]) -> list[str]:
    """The arguments with the options' present names, without options that are gone and their values."""
    given, left = [], iter(arguments)
    for argument in left:
        name, equals, value = argument.partition("=")
        present = renamed({name: ""}, CLI_OPTIONS, "option")
        given += [f"{new}{equals}{value}" for new in present]
        if not present and not equals:
            next(left, None)
    return given


def main(arguments: Sequence[str]) -> int:
    """Run one command line (without the program's name); returns the exit code."""
    arguments = _renamed(arguments)
    called = next((argument for argument in arguments if not argument.startswith("-")), None)

    def call() -> Any:
        word = next((a.partition("=")[2] for a in arguments if a.startswith("--help=")), "")
        if called == "serve" and word:
            import_module("ecoserve.cli.serve").show_help(word.lower().replace("_", "-"))
            return 0
        app = build_app(called)
        return app(arguments or ["--help"], prog_name="ecoserve", standalone_mode=False)

    code = guard(call)
    return code if arguments else EXIT_BAD_INPUT


def run() -> None:
    """The entry point of the installed ``ecoserve`` script."""
    sys.exit(main(sys.argv[1:]))


if __name__ == "__main__":
    run()
