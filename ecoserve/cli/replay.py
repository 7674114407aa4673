"""``ecoserve replay``: drive a trace at a server, or at a vLLM engine in this process."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ecoserve.cli.common import (
    JsonOption,
    QuietOption,
    SeedOption,
    emit_json,
    parsed_rate,
    progress_bar,
    stderr_console,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ecoserve.serving.client_run import ClientRunSettings
    from ecoserve.serving.engine_run import EngineRunSettings
    from ecoserve.serving.runs import RunResult

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


def command(
    trace: Annotated[str, typer.Argument(metavar="TRACE", help="A file, a data set on the hub, or synthetic[:N].")],
    url: Annotated[str | None, typer.Option("--url", help="Server to drive (see ecoserve serve --replay).")] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", help="Without --url: the model (folder) an engine in this process serves."),
    ] = None,
    rate: Annotated[
        str, typer.Option("--rate", metavar="R|inf|recorded", help="Requests a second, Poisson; inf: all at once.")
    ] = "recorded",
    requests: Annotated[int, typer.Option("--requests", min=1, help="Requests of a run.")] = 200,
    policy: Annotated[
        str | None, typer.Option("--policy", help="Engine: policies, with commas [ecoserve]. URL: the server's name.")
    ] = None,
    lengths: Annotated[
        str | None,
        typer.Option(
            "--lengths",
            metavar="KIND",
            help="What the scheduler is told: true, none, noise:SIGMA, predicted:CKPT, ... (docs/sweep.md) "
            "[engine: true; URL: what the server predicts].",
        ),
    ] = None,
    length_field: Annotated[
        str | None, typer.Option("--length-field", help="Field with the lengths in tokens, as lengths[3].")
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option("--tokenizer", help="Counts tokens where the trace does not.")
    ] = None,
    split: Annotated[
        str | None, typer.Option("--split", help="train, dev or all rows [dev; with recorded arrivals: all].")
    ] = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="The same for every request.")] = 512,
    replay: Annotated[
        bool, typer.Option("--replay/--no-replay", help="URL: force the recorded lengths on the responses.")
    ] = True,
    concurrency: Annotated[int, typer.Option("--concurrency", min=1, help="URL: connections at most.")] = 512,
    api_key: Annotated[
        str | None, typer.Option("--api-key", envvar="VLLM_API_KEY", show_envvar=False, help="URL: bearer token.")
    ] = None,
    blocks: Annotated[int | None, typer.Option("--kv-blocks", min=2, help="Engine: usable KV blocks.")] = None,
    block_size: Annotated[int | None, typer.Option("--block-size", min=1, help="Engine: tokens a block.")] = None,
    max_num_seqs: Annotated[int, typer.Option("--max-num-seqs", min=1, help="Engine: requests at once.")] = 64,
    max_num_batched_tokens: Annotated[
        int, typer.Option("--max-num-batched-tokens", min=1, help="Engine: tokens a step.")
    ] = 2048,
    max_model_len: Annotated[
        int | None, typer.Option("--max-model-len", min=2, help="Engine: prompt and response, at most.")
    ] = None,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="Engine on a CPU: threads.")] = None,
    clock: Annotated[
        str, typer.Option("--clock", metavar="wall|cpu", help="Engine on a CPU: cpu leaves other processes out.")
    ] = "wall",
    seed: SeedOption = 0,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Runs of each policy, with seeds counting up.")] = 1,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="DIR", help="Folder for summary.json and requests.jsonl.")
    ] = None,
    json: JsonOption = None,
    quiet: QuietOption = False,
) -> None:
    """Replay TRACE: its prompts arrive in time, its responses have their recorded lengths, latencies are measured.

    With --url at a running server; with --model at vLLM engines in this process, one after another, one per policy.
    """
    # Threads of the engine that wait for each other shall sleep, not spin: other processes run here too.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from ecoserve.errors import ConfigError, RunError

    if url is None and model is None:
        raise ConfigError("needs --url (a server) or --model (an engine in this process)", where="ecoserve replay")
    common: dict[str, Any] = {
        "model": model,
        "trace": trace,
        "length_field": length_field,
        "tokenizer": tokenizer,
        "split": None if (split or ("all" if rate == "recorded" else "dev")) == "all" else split or "dev",
        "rate_rps": parsed_rate(rate),
        "requests": requests,
        "max_tokens": max_tokens,
    }
    planned: list[EngineRunSettings | ClientRunSettings]
    if url is not None:
        own: dict[str, Any] = {"url": url, "policy": policy, "replay": replay, "concurrency": concurrency}
        own |= {"api_key": api_key, "lengths": lengths or "server"}
        planned = [_client({**common, **own, "seed": seed + i}) for i in range(repeats)]
    else:
        own = {"blocks": blocks, "block_size": block_size, "max_num_seqs": max_num_seqs, "threads": threads}
        own |= {"max_num_batched_tokens": max_num_batched_tokens, "max_model_len": max_model_len, "clock": clock}
        own["lengths"] = lengths or "true"
        names = [name.strip() for name in (policy or "ecoserve").split(",") if name.strip()]
        planned = [_engine({**common, **own, "policy": p, "seed": seed + i}) for i in range(repeats) for p in names]
    results = [*_run(planned, quiet)]
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


def _client(values: dict[str, Any]) -> ClientRunSettings:
    from ecoserve.serving.client_run import ClientRunSettings

    settings: ClientRunSettings = _checked(ClientRunSettings, values)
    return settings


def _engine(values: dict[str, Any]) -> EngineRunSettings:
    from ecoserve.serving.engine_run import EngineRunSettings

    settings: EngineRunSettings = _checked(EngineRunSettings, values)
    return settings


def _checked(kind: Any, values: dict[str, Any]) -> Any:
    from pydantic import ValidationError

    from ecoserve.errors import ConfigError

    try:
        return kind(**values)
    except ValidationError as error:
        first = error.errors()[0]
        flag = str(first["loc"][0]).replace("_", "-") if first["loc"] else "settings"
        raise ConfigError(first["msg"], where=f"--{flag}") from None


def _run(planned: list[EngineRunSettings | ClientRunSettings], quiet: bool) -> Iterator[RunResult]:
    from ecoserve.serving.engine_run import EngineRunSettings

    for settings in planned:
        name = f"{settings.policy or 'server'}, seed {settings.seed}"
        with progress_bar(quiet) as bar:
            task = bar.add_task(name, total=settings.requests)

            def progress(done: int, total: int, bar: Any = bar, task: Any = task) -> None:
                bar.update(task, completed=done, total=total)

            if isinstance(settings, EngineRunSettings):
                from ecoserve.serving.engine_run import run_engine

                yield run_engine(settings, progress)
            else:
                from ecoserve.serving.client_run import run_client

                yield run_client(settings, progress)


def _write(folder: Path, results: list[RunResult], summaries: Any) -> None:
    import dataclasses
    from json import dumps

    from ecoserve.files import write_atomically

    emit_json(summaries, folder / "summary.json")
    rows = [
        dumps({"policy": r.policy, "lengths": r.lengths, "seed": r.seed, **dataclasses.asdict(row)})
        for r in results
        for row in r.rows
    ]
    write_atomically(folder / "requests.jsonl", "\n".join(rows) + "\n")


def _show(runs: list[dict[str, Any]], quiet: bool) -> None:
    from rich.table import Table

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
