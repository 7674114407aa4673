"""``ecoserve replay``: drive a trace at a server, or at a vLLM engine in this process."""

from __future__ import annotations

import dataclasses
import os
from functools import partial
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from ecoserve.cli.common import (
    ApiKeyOption,
    JsonOption,
    QuietOption,
    SeedOption,
    emit_json,
    parsed_rate,
    progress_of,
    stderr_console,
)
from ecoserve.cli.options import takes
from ecoserve.errors import ConfigError, RunError
from ecoserve.files import write_atomically
from ecoserve.options import checked
from ecoserve.serving.client_run import SERVER, ClientRunSettings, run_client
from ecoserve.serving.engine_run import EngineRunSettings, engine_arguments, run_engine
from ecoserve.serving.length_source import LengthSource
from ecoserve.serving.workload import chosen_split

if TYPE_CHECKING:
    from ecoserve.serving.runs import RunResult

_ENGINE, _URL = "With --model (engines in this process)", "With --url"
#: Key of the summary, title and form of each column.
_TABLE = (
    ("policy", "policy", "{}"),
    ("lengths", "lengths", "{:.14}"),
    ("seed", "seed", "{}"),
    ("completed", "done", "{}"),
    ("throughput_rps", "req/s", "{:.1f}"),
    ("ttft_p50_ms", "TTFT", "{:.0f}"),
    ("e2el_mean_ms", "E2EL", "{:.0f}"),
    ("normalized_latency_mean_ms", "/token", "{:.1f}"),
    ("preemptions", "drop", "{}"),
    ("recomputed_tokens", "again", "{}"),
    ("pauses", "pause", "{}"),
)


@takes(EngineRunSettings, "requests length_field tokenizer format time_unit strict max_tokens")
@takes(ClientRunSettings, "replay concurrency", panel=_URL)
@takes(
    EngineRunSettings,
    "blocks block_size max_num_seqs max_num_batched_tokens max_model_len threads clock",
    panel=_ENGINE,
)
def command(
    trace: Annotated[str, typer.Argument(metavar="TRACE", help="A file, a data set on the hub, or synthetic[:N].")],
    *,
    url: Annotated[str | None, typer.Option("--url", help="Server to drive (see ecoserve serve --replay).")] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", help="Without --url: the model (folder) that engines in this process serve."),
    ] = None,
    rate: Annotated[
        str, typer.Option("--rate", metavar="R|inf|recorded", help="Requests per second, Poisson; inf: all at once.")
    ] = "recorded",
    policy: Annotated[
        str | None,
        typer.Option("--policy", help="Engine: policies, with commas; by default ecoserve. URL: the server's name."),
    ] = None,
    lengths: Annotated[
        str | None,
        typer.Option(
            "--lengths",
            metavar="KIND",
            help="Source of lengths: true, none, noise:SIGMA, predicted:CKPT, ... (docs/guides/sweep.md). "
            "By default true with an engine, as the server predicts with a URL.",
        ),
    ] = None,
    split: Annotated[
        str | None, typer.Option("--split", help="train, dev or all rows.", show_default="dev; recorded: all")
    ] = None,
    seed: SeedOption = 0,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Runs of each policy, with seeds counting up.")] = 1,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="DIR", help="Folder for summary.json and requests.jsonl.")
    ] = None,
    api_key: ApiKeyOption = None,
    json: JsonOption = None,
    quiet: QuietOption = False,
    **given: Any,
) -> None:
    """Replay TRACE: prompts arrive over time, responses have their recorded lengths, latencies are measured.

    With --url at a running server; with --model on vLLM engines in this process, one after another, one per policy.
    """
    # Threads of the engine that wait for each other shall sleep, not spin: other processes run here too.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if url is None and model is None:
        raise ConfigError("needs --url (a server) or --model (an engine in this process)", where="ecoserve replay")
    kind: type[ClientRunSettings] | type[EngineRunSettings] = EngineRunSettings if url is None else ClientRunSettings
    rate_rps = parsed_rate(rate)
    common = {name: value for name, value in given.items() if name in kind.model_fields}
    common |= {"trace": trace, "model": model, "rate_rps": rate_rps}
    common["split"] = chosen_split(split, recorded=rate_rps is None)
    policies: list[str | None] = [policy]
    if url is not None:
        common |= {"url": url, "api_key": api_key}
    else:
        policies = [name.strip() for name in (policy or "ecoserve").split(",") if name.strip()]
    if lengths is not None:
        common["lengths"] = lengths
    planned = [checked(kind, {**common, "policy": p, "seed": seed + i}) for i in range(repeats) for p in policies]
    for settings in planned:
        # Names are refused before a trace is read, which may be long.
        if isinstance(settings, EngineRunSettings):
            engine_arguments(settings)
        if settings.lengths != SERVER:
            LengthSource.parse(settings.lengths)
    for warning in planned[0].read_trace().report.warnings:
        stderr_console(quiet).print(f"note: {warning}")
    results = [_run(settings, quiet) for settings in planned]
    summaries = {"runs": [result.summary() for result in results]}
    if output is not None:
        _write(output, results, summaries)
    emit_json(summaries, json)
    _show(summaries["runs"], quiet)
    failed = sum(row.status == "failed" for result in results for row in result.rows)
    if failed:
        total = sum(len(result.rows) for result in results)
        first = next(row.error for result in results for row in result.rows if row.status == "failed")
        raise RunError(f"{failed} of {total} requests failed; the first: {first}", where="ecoserve replay")


def _run(settings: ClientRunSettings | EngineRunSettings, quiet: bool) -> RunResult:
    with progress_of(quiet) as progress:
        show = partial(progress, f"{settings.policy or 'server'}, seed {settings.seed}")
        show(0, settings.requests)
        return run_client(settings, show) if isinstance(settings, ClientRunSettings) else run_engine(settings, show)


def _write(folder: Path, results: list[RunResult], summaries: Any) -> None:
    emit_json(summaries, folder / "summary.json")
    rows = [
        dumps({"policy": r.policy, "lengths": r.lengths, "seed": r.seed, **dataclasses.asdict(row)})
        for r in results
        for row in r.rows
    ]
    write_atomically(folder / "requests.jsonl", "\n".join(rows) + "\n")


def _show(runs: list[dict[str, Any]], quiet: bool) -> None:
    table = Table(
        caption="TTFT: median, E2EL and E2EL per token: mean, in ms; preemptions, tokens computed again, pauses",
        box=None,
        pad_edge=False,
    )
    for _, title, _ in _TABLE:
        table.add_column(title, justify="left" if title in ("policy", "lengths") else "right", no_wrap=True)
    for run in runs:
        table.add_row(*(form.format(run[key]) if run[key] is not None else "-" for key, _, form in _TABLE))
    stderr_console(quiet).print(table)
