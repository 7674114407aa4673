"""``ecoserve profile``: what response lengths are like, whether predicting them pays, how two traces differ."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from ecoserve.cli import collecting
from ecoserve.cli.common import JsonOption, QuietOption, SeedOption, emit_json, stderr_console

_COMPARE = "With --compare"


def command(
    trace: Annotated[
        str,
        typer.Argument(metavar="TRACE", help="A file, or a data set on the hub; with --collect, the prompts."),
    ],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="DIR", help="Write profile.json and profile.html into this folder."),
    ] = None,
    compare: Annotated[
        str | None,
        typer.Option("--compare", metavar="OTHER", help="Another trace: would a predictor of TRACE serve it?"),
    ] = None,
    predictor: Annotated[
        str | None, typer.Option("--predictor", metavar="CKPT", help="Predictor: what it would tell and save here.")
    ] = None,
    length_field: Annotated[
        str | None, typer.Option("--length-field", help="Field with the lengths in tokens, as lengths[3].")
    ] = None,
    sample_field: Annotated[
        str | None, typer.Option("--sample-field", help="Field with the lengths of several answers to the prompt.")
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option("--tokenizer", help="Served model's tokenizer, to count tokens of texts.")
    ] = None,
    trace_format: Annotated[str, typer.Option("--format", help="Format of the trace.")] = "auto",
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Only the first N records.")] = None,
    sample: Annotated[int | None, typer.Option("--sample", min=1, help="Only N records, drawn by the seed.")] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            "--max-tokens",
            min=1,
            help="Longest answer a request allows, if the trace does not say; with --collect, sent.",
        ),
    ] = None,
    compare_length_field: Annotated[
        str | None,
        typer.Option(
            "--compare-length-field",
            help="--length-field of OTHER, if another; 'none' for its own lengths.",
            rich_help_panel=_COMPARE,
        ),
    ] = None,
    compare_format: Annotated[
        str, typer.Option("--compare-format", help="Format of OTHER.", rich_help_panel=_COMPARE)
    ] = "auto",
    collect: collecting.CollectOption = None,
    url: collecting.UrlOption = None,
    model: collecting.ModelOption = None,
    served_model: collecting.ServedModelOption = None,
    serve_flags: collecting.ServeFlagsOption = "",
    samples: collecting.SamplesOption = 1,
    temperature: collecting.TemperatureOption = None,
    top_p: collecting.TopPOption = None,
    concurrency: collecting.ConcurrencyOption = 16,
    rate: collecting.RateOption = None,
    retries: collecting.RetriesOption = 8,
    timeout: collecting.TimeoutOption = 600.0,
    patience: collecting.PatienceOption = 600.0,
    api: collecting.ApiOption = "chat",
    api_key: collecting.ApiKeyOption = None,
    body: collecting.BodyOption = None,
    text: collecting.TextOption = True,
    allow_missing: collecting.AllowMissingOption = False,
    json: JsonOption = None,
    seed: SeedOption = 0,
    quiet: QuietOption = False,
) -> None:
    """Profile the response lengths of a trace: percentiles, tail, predictability, waste, drift.

    With --compare, two traces side by side. With --collect, a model's own lengths are collected first, k samples of
    each prompt of TRACE, and those are profiled.
    """
    from ecoserve.cli import profile_run as run
    from ecoserve.cli.profile_tables import show_comparison, show_profile
    from ecoserve.data.profiling import compare_traces, profile_trace

    if output is not None:
        run.check_folder(output)
    if compare is None:
        run.refuse_without(
            "--compare OTHER",
            compare_length_field=compare_length_field,
            compare_format=None if compare_format == "auto" else compare_format,
        )
    if collect is not None:
        run.refuse_with_collect(length_field=length_field, sample_field=sample_field, tokenizer=tokenizer)
        collecting.collect_trace(
            trace,
            collect,
            quiet=quiet,
            format=trace_format,
            limit=limit,
            sample=sample,
            seed=seed,
            url=url,
            model=model,
            served_model=served_model,
            serve_flags=serve_flags,
            samples=samples,
            temperature=temperature,
            top_p=top_p,
            max_tokens=max_tokens,
            concurrency=concurrency,
            rate=rate,
            retries=retries,
            timeout_s=timeout,
            patience_s=patience,
            api=api,
            api_key=api_key,
            body=body,
            keep_text=text,
            allow_missing=allow_missing,
        )
        source = run.Source(str(collect), seed=seed)
    else:
        run.refuse_without(
            "--collect FILE",
            url=url, model=model, served_model=served_model, serve_flags=serve_flags, body=body, rate=rate,
            temperature=temperature, top_p=top_p, samples=None if samples == 1 else samples,
            allow_missing=allow_missing or None,
        )  # fmt: skip
        source = run.Source(trace, trace_format, length_field, sample_field, tokenizer, limit, sample, seed)
    # Everything that can be wrong is read before anything is worked out, shown or written.
    table, predictions = run.read(source, predictor, quiet=quiet)
    other = None
    if compare is not None:
        field = None if compare_length_field == "none" else compare_length_field or source.length_field
        # Of OTHER no further answers are looked at: what chance leaves is told by those of TRACE.
        options = (compare_format, field, None, tokenizer, limit, sample, seed)
        other, _ = run.read(run.Source(compare, *options), None, quiet=quiet)
    console = stderr_console(quiet)
    with run.working("working out the profile", quiet):
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
    """What was typed, for the page; what may hold a key to a server is left out."""
    words = list(sys.argv[1:])
    for i, word in enumerate(words):
        name, given, _ = word.partition("=")
        if name in ("--api-key", "--body"):
            if given:
                words[i] = f"{name}=..."
            elif i + 1 < len(words):
                words[i + 1] = "..."
    return [shlex.join(["ecoserve", *words])]
