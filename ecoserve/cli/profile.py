"""``ecoserve profile``: response lengths of a trace, whether predicting them pays, how two traces differ.

A trace is streamed into a compact table. Only a predictor needs the trace in memory: it reads texts, and the rows held
out of its training are found by splitting the whole.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import typer
from pydantic import BaseModel, Field
from rich.console import Console

from ecoserve.cli import collecting
from ecoserve.cli.common import ApiKeyOption, JsonOption, QuietOption, SeedOption, emit_json, stderr_console
from ecoserve.cli.options import taken, takes
from ecoserve.cli.predictors import READING, reads_a_trace
from ecoserve.data import Trace, load_trace, split_trace, stream_trace
from ecoserve.data.loading import reading_bar
from ecoserve.data.profiling import QUANTILES, Predictions, TraceTable, compare_traces, profile_trace, read_table
from ecoserve.errors import ConfigError, RunError, TraceError
from ecoserve.files import write_atomically
from ecoserve.options import flag
from ecoserve.predictor import LengthPredictor, load_predictor
from ecoserve.predictor.evaluation import predict_all
from ecoserve.predictor.runtime import let_waiting_threads_sleep
from ecoserve.predictor.text import asked_of, read_record
from ecoserve.serving.collect import CollectSettings

_COMPARE = "With --compare"
#: Most requests that are predicted: an encoder takes some 10 ms for each.
PREDICTED: Final = 2000


@dataclass(frozen=True, slots=True)
class Source:
    """A trace and how to read it; the names are those of :func:`~ecoserve.data.load_trace`."""

    path: str
    format: str = "auto"
    length_field: str | None = None
    sample_field: str | None = None
    tokenizer: str | None = None
    time_unit: str | None = None
    strict: bool = False
    limit: int | None = None
    sample: int | None = None
    seed: int = 0

    def options(self) -> dict[str, Any]:
        names = ("format", "length_field", "sample_field", "tokenizer", "time_unit", "strict", "limit")
        return {name: getattr(self, name) for name in names}


class ProfileOptions(BaseModel):
    """What the command takes besides how traces are read and collected."""

    output: Path | None = Field(
        None,
        description="write profile.json and profile.html into this folder",
        json_schema_extra={"short": "-o", "metavar": "DIR"},
    )
    compare: str | None = Field(
        None,
        description="another trace, to see if a predictor of TRACE would serve it",
        json_schema_extra={"metavar": "OTHER"},
    )
    predictor: str | None = Field(
        None, description="checkpoint whose accuracy and savings are shown", json_schema_extra={"metavar": "CKPT"}
    )
    limit: int | None = Field(None, ge=1, description="only the first N records")
    sample: int | None = Field(None, ge=1, description="only N records, drawn by the seed")
    max_tokens: int | None = Field(
        None, ge=1, description="longest answer that a request allows, if TRACE does not say; with --collect, sent"
    )
    collect: Path | None = Field(
        None, description=str(CollectSettings.model_fields["output"].description), json_schema_extra={"metavar": "FILE"}
    )
    compare_length_field: str | None = Field(
        None, description="--length-field of OTHER, if another; none for its own lengths"
    )
    compare_format: str = Field("auto", description="format of OTHER")


@reads_a_trace
@takes(ProfileOptions, "output compare predictor limit sample max_tokens collect")
@takes(ProfileOptions, "compare_length_field compare_format", panel=_COMPARE)
@collecting.collects
def command(
    trace: Annotated[
        str, typer.Argument(metavar="TRACE", help="A file, or a data set on the hub; with --collect, the prompts.")
    ],
    *,
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
    from ecoserve.cli.profile_tables import show_comparison, show_profile

    options = taken(ProfileOptions, given)
    output, limit, sample = options.output, options.limit, options.sample
    if output is not None and output.exists() and not output.is_dir():
        raise ConfigError("is a file", where=f"-o {output}", fix="give a folder")
    reading = {name: given.pop(name) for name in READING if name in given}
    if options.compare is None and (options.compare_length_field or options.compare_format != "auto"):
        name = "--compare-length-field" if options.compare_length_field else "--compare-format"
        raise ConfigError("is an option of --compare, which is not given", where=name, fix="add --compare OTHER")
    if options.collect is not None:
        if unfit := next((name for name in reading if name != "format"), None):
            what = "is for a trace with lengths; collected lengths are the model's own"
            raise ConfigError(what, where=flag(unfit), fix="leave it out with --collect")
        part = {"limit": limit, "sample": sample, "seed": seed, "max_tokens": options.max_tokens}
        collecting.collect_trace(trace, options.collect, quiet=quiet, api_key=api_key, **part, **reading, **given)
        source = Source(str(options.collect), seed=seed)
    else:
        if name := next(iter(given), ""):
            what = "is an option of --collect, which is not given"
            raise ConfigError(what, where=flag(name, CollectSettings), fix="add --collect FILE")
        source = Source(trace, **reading, limit=limit, sample=sample, seed=seed)
    # All input is read, and refused, before anything is computed, shown or written.
    table, predictions = _read(source, options.predictor, quiet=quiet)
    other = None
    if options.compare is not None:
        named = options.compare_length_field
        field = None if named == "none" else named or source.length_field
        # OTHER needs no sample field: the noise of sampling is estimated from TRACE.
        also = replace(source, path=options.compare, format=options.compare_format, length_field=field)
        also = replace(also, sample_field=None)
        other, _ = _read(also, None, quiet=quiet)
    console = stderr_console(quiet)
    with _working("computing the profile", quiet):
        profile = profile_trace(table, predictions=predictions, max_tokens=options.max_tokens, seed=seed)
    show_profile(profile, console)
    if other is None:
        emit_json(profile.model_dump(mode="json"), json)
    else:
        with _working("comparing", quiet):
            comparison = compare_traces(table, other, seed=seed)
        show_comparison(comparison, console)
        emit_json(comparison.model_dump(mode="json"), json)
    if output is not None:
        from ecoserve.data.profiling.reporting import render_comparison, render_profile

        commands = _command_line()
        _write(output, "profile", profile.model_dump_json(indent=1), render_profile(profile, commands), console)
        if other is not None:
            page = render_comparison(comparison, commands)
            _write(output, "comparison", comparison.model_dump_json(indent=1), page, console)


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


def _read(source: Source, predictor: str | None, *, quiet: bool) -> tuple[TraceTable, Predictions | None]:
    """The table of a trace, and a predictor's predictions for it."""
    if predictor is not None:
        let_waiting_threads_sleep()
        # Before the trace, so that a wrong checkpoint is refused at once.
        checkpoint = load_predictor(predictor)
        trace = _load(source, quiet)
        return read_table(trace, seed=source.seed), _predict(checkpoint, predictor, trace, source.seed, quiet=quiet)
    if source.sample is not None:
        return read_table(_load(source, quiet), seed=source.seed), None
    with _bar(source, quiet) as progress:
        stream = stream_trace(source.path, **source.options(), progress=progress)
        return read_table(stream, seed=source.seed), None


def _load(source: Source, quiet: bool) -> Trace:
    with _bar(source, quiet) as progress:
        return load_trace(source.path, **source.options(), sample=source.sample, seed=source.seed, progress=progress)


def _bar(source: Source, quiet: bool) -> Any:
    # Without a function, load_trace shows a bar of its own.
    return nullcontext(lambda read, size: None) if quiet else reading_bar(f"reading {Path(source.path).name}")


def _predict(checkpoint: LengthPredictor, name: str, trace: Trace, seed: int, *, quiet: bool) -> Predictions:
    """Predict at most :data:`PREDICTED` rows of ``trace`` that the predictor was not trained on."""
    rows, held_out = _unseen(checkpoint, trace)
    rows = [i for i in rows if read_record(trace.records[i]) is not None]
    if not rows:
        what = "has no prompts with texts, which a predictor reads"
        raise TraceError(what, where=trace.source, fix="give a trace with texts, or leave out --predictor")
    chosen = np.sort(np.random.default_rng(seed).permutation(len(rows))[:PREDICTED])
    picked = [rows[i] for i in chosen.tolist()]
    with _working(f"predicting {len(picked):,} lengths", quiet):
        predicted = predict_all(checkpoint, [asked_of(trace.records[i]) or "" for i in picked])
    quantiles = {q: np.asarray([d.quantile(q) for d in predicted], dtype=np.int64) for q in QUANTILES}
    return Predictions(name, np.asarray(picked, dtype=np.int64), quantiles, held_out)


def _unseen(checkpoint: LengthPredictor, trace: Trace) -> tuple[list[int], bool]:
    """Rows that the checkpoint was not trained on, and whether they were held out of this trace."""
    labelled = {r.split for r in trace.records}
    trained_here = checkpoint.config.trace_sha256 == trace.sha256
    if not trained_here and not ("train" in labelled and len(labelled) > 1):
        return list(range(len(trace))), False
    row_of: dict[int, int] = {id(record): i for i, record in enumerate(trace.records)}
    dev = split_trace(trace, seed=checkpoint.config.seed)["dev"].records
    return [row_of[id(record)] for record in dev], True


@contextmanager
def _working(what: str, quiet: bool) -> Iterator[None]:
    """A spinner that says what is being done, on a terminal only."""
    console = stderr_console(quiet)
    with console.status(what) if console.is_terminal and not quiet else nullcontext():
        yield


def _write(folder: Path, name: str, summary: str, page: str, console: Console) -> None:
    try:
        write_atomically(folder / f"{name}.json", summary + "\n")
        written = write_atomically(folder / f"{name}.html", page)
    except OSError as error:
        raise RunError(f"cannot be written ({error.strerror or error})", where=str(folder)) from error
    console.print(f"{written}")
