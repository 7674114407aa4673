"""``ecoserve profile``: response lengths of a trace, whether predicting them pays, how two traces differ."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from ecoserve.cli import collecting
from ecoserve.cli.common import ApiKeyOption, JsonOption, QuietOption, SeedOption, emit_json, stderr_console
from ecoserve.cli.predictors import READING, reads_a_trace
from ecoserve.errors import ConfigError
from ecoserve.options import flag
from ecoserve.serving.collect import CollectSettings

_COMPARE = "With --compare"


@reads_a_trace
@collecting.collects
def command(
    trace: Annotated[
        str,
        typer.Argument(metavar="TRACE", help="A file, or a data set on the hub; with --collect, the prompts."),
    ],
    *,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="DIR", help="Write profile.json and profile.html into this folder."),
    ] = None,
    compare: Annotated[
        str | None,
        typer.Option("--compare", metavar="OTHER", help="Another trace: would a predictor of TRACE serve it?"),
    ] = None,
    predictor: Annotated[
        str | None, typer.Option("--predictor", metavar="CKPT", help="Predictor: its accuracy and savings here.")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Only the first N records.")] = None,
    sample: Annotated[int | None, typer.Option("--sample", min=1, help="Only N records, drawn by the seed.")] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            "--max-tokens",
            min=1,
            help="Longest answer that a request allows, if the trace does not state it; with --collect, sent.",
        ),
    ] = None,
    compare_length_field: Annotated[
        str | None,
        typer.Option(
            "--compare-length-field",
            help="--length-field of OTHER, if another; none for its own lengths.",
            rich_help_panel=_COMPARE,
        ),
    ] = None,
    compare_format: Annotated[
        str, typer.Option("--compare-format", help="Format of OTHER.", rich_help_panel=_COMPARE)
    ] = "auto",
    collect: Annotated[
        Path | None,
        typer.Option(
            "--collect",
            metavar="FILE",
            help="Send the prompts to --url or --model, write the answers' lengths to FILE (.jsonl[.gz]), profile "
            "those.",
        ),
    ] = None,
    api_key: ApiKeyOption = None,
    json: JsonOption = None,
    seed: SeedOption = 0,
    quiet: QuietOption = False,
    **given: Any,
) -> None:
    """Profile the response lengths of a trace: percentiles, tail, predictability, waste, drift.

    With --compare, two traces side by side. With --collect, a model's own lengths are collected first, k samples of
    each prompt of TRACE, and those are profiled.
    """
    from ecoserve.cli import profile_run as run
    from ecoserve.cli.profile_tables import show_comparison, show_profile
    from ecoserve.data.profiling import compare_traces, profile_trace

    if output is not None and output.exists() and not output.is_dir():
        raise ConfigError("is a file", where=f"-o {output}", fix="give a folder")
    reading = {name: given.pop(name) for name in READING if name in given}
    if compare is None and (compare_length_field or compare_format != "auto"):
        name = "--compare-length-field" if compare_length_field else "--compare-format"
        raise ConfigError("is an option of --compare, which is not given", where=name, fix="add --compare OTHER")
    if collect is not None:
        if unfit := next((name for name in reading if name != "format"), None):
            what = "is for a trace with lengths; collected lengths are the model's own"
            raise ConfigError(what, where=flag(unfit), fix="leave it out with --collect")
        part = {"limit": limit, "sample": sample, "seed": seed, "max_tokens": max_tokens}
        collecting.collect_trace(trace, collect, quiet=quiet, api_key=api_key, **part, **reading, **given)
        source = run.Source(str(collect), seed=seed)
    else:
        if name := next(iter(given), ""):
            what = "is an option of --collect, which is not given"
            raise ConfigError(what, where=flag(name, CollectSettings), fix="add --collect FILE")
        source = run.Source(trace, **reading, limit=limit, sample=sample, seed=seed)
    # All input is read, and refused, before anything is computed, shown or written.
    table, predictions = run.read(source, predictor, quiet=quiet)
    other = None
    if compare is not None:
        field = None if compare_length_field == "none" else compare_length_field or source.length_field
        # OTHER needs no sample field: the noise of sampling is estimated from TRACE.
        also = run.Source(compare, compare_format, field, None, source.tokenizer, limit, sample, seed)
        other, _ = run.read(also, None, quiet=quiet)
    console = stderr_console(quiet)
    with run.working("computing the profile", quiet):
        profile = profile_trace(table, predictions=predictions, max_tokens=max_tokens, seed=seed)
    show_profile(profile, console)
    if other is None:
        emit_json(profile.model_dump(mode="json"), json)
    else:
        with run.working("comparing", quiet):
            comparison = compare_traces(table, other, seed=seed)
        show_comparison(comparison, console)
        emit_json(comparison.model_dump(mode="json"), json)
    if output is not None:
        run.write_profile(output, profile, _command_line(), console)
        if other is not None:
            run.write_comparison(output, comparison, _command_line(), console)


def _command_line() -> list[str]:
    """The command line, for the page; options that may hold a server's key are left out."""
    words = list(sys.argv[1:])
    for i, word in enumerate(words):
        name, given, _ = word.partition("=")
        if name in ("--api-key", "--body"):
            if given:
                words[i] = f"{name}=..."
            elif i + 1 < len(words):
                words[i + 1] = "..."
    return [shlex.join(["ecoserve", *words])]
