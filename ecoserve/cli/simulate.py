"""``ecoserve simulate``: what would this trace do on those GPUs, under these policies?"""

from __future__ import annotations

import math
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ecoserve.cli.common import JsonOption, QuietOption, SeedOption, emit_json, progress_bar, stderr_console

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    from ecoserve.serving.simulate.run import SimulateSettings
    from ecoserve.sweep.simulations import Simulations
    from ecoserve.sweep.summary import RunRow

#: Key of the summary, title, factor and form of each column; values are means over the seeds.
_TABLE = (
    ("completed", "done", 1, "{:.0f}"),
    ("throughput_rps", "req/s", 1, "{:.2f}"),
    ("output_tokens_per_s", "tok/s", 1, "{:.0f}"),
    ("ttft_p50_ms", "TTFT", 1, "{:.0f}"),
    ("ttft_p99_ms", "p99", 1, "{:.0f}"),
    ("tpot_mean_ms", "TPOT", 1, "{:.1f}"),
    ("e2el_mean_ms", "E2EL", 1, "{:.0f}"),
    ("normalized_latency_mean_ms", "/token", 1, "{:.1f}"),
    ("kvc_used_mean", "KVC", 100, "{:.0f}%"),
    ("preemptions", "drop", 1, "{:.0f}"),
    ("pauses", "pause", 1, "{:.0f}"),
    ("slo_attainment", "SLO", 100, "{:.0f}%"),
)
#: DESIGN's words: below this share of the KVC nobody has to wait, and above the other somebody surely has.
_NO_PRESSURE, _PRESSURE = 0.7, 1.3


def command(
    trace: Annotated[
        str, typer.Option("--trace", metavar="FILE", help="A file, a data set on the hub, or synthetic[:N].")
    ],
    gpu: Annotated[
        str, typer.Option("--gpu", metavar="NAME", help="As h100_sxm; or linear: a step cost of no GPU in particular.")
    ] = "linear",
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="NAME|DIR", help="Served model, or a folder with its config.json."),
    ] = None,
    tp: Annotated[int, typer.Option("--tp", min=1, help="GPUs of one replica, tensor parallel.")] = 1,
    rate: Annotated[
        str, typer.Option("--rate", metavar="R,...|inf|recorded", help="Requests a second, Poisson; inf: all at once.")
    ] = "recorded",
    policy: Annotated[str, typer.Option("--policy", metavar="A,B,...", help="Policies.")] = "vllm,ecoserve",
    lengths: Annotated[
        str,
        typer.Option("--lengths", metavar="true|none|noise:SIGMA|predicted:CKPT,...", help="What policies are told."),
    ] = "true",
    requests: Annotated[int, typer.Option("--requests", min=1, help="Requests of a run.")] = 400,
    seed: SeedOption = 0,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Runs of each setting, with seeds counting up.")] = 1,
    length_field: Annotated[
        str | None, typer.Option("--length-field", help="Field with the lengths in tokens, as lengths[3].")
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option("--tokenizer", help="Counts tokens where the trace does not.")
    ] = None,
    split: Annotated[
        str | None, typer.Option("--split", help="train, dev or all rows [dev; with recorded arrivals: all].")
    ] = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="The same for every request.")] = 2000,
    max_model_len: Annotated[
        int | None, typer.Option("--max-model-len", min=2, help="Prompt and answer, at most [what the trace needs].")
    ] = None,
    max_num_seqs: Annotated[int, typer.Option("--max-num-seqs", min=1, help="Requests at once.")] = 256,
    max_num_batched_tokens: Annotated[
        int, typer.Option("--max-num-batched-tokens", min=1, help="Tokens a step.")
    ] = 2048,
    kv_blocks: Annotated[
        int | None, typer.Option("--kv-blocks", min=2, help="Usable KVC blocks [what the GPU's memory holds].")
    ] = None,
    block_size: Annotated[int, typer.Option("--block-size", min=1, help="Tokens a block.")] = 16,
    gpu_memory_utilization: Annotated[
        float, typer.Option("--gpu-memory-utilization", min=0.01, max=1, help="vLLM's share of the GPU's memory.")
    ] = 0.9,
    prefix_caching: Annotated[
        bool, typer.Option("--prefix-caching/--no-prefix-caching", help="Prompts that begin alike share KVC.")
    ] = True,
    depth: Annotated[
        int, typer.Option("--depth", min=1, max=2, help="Steps in flight: 2 is vLLM's asynchronous scheduling.")
    ] = 2,
    charge_scheduler: Annotated[
        str,
        typer.Option("--charge-scheduler", metavar="model|measured|none", help="What scheduling costs the host."),
    ] = "model",
    replicas: Annotated[int, typer.Option("--replicas", min=1, help="Engines behind a router.")] = 1,
    router: Annotated[
        str, typer.Option("--router", metavar="round-robin|least-requests|least-tokens", help="Who gets a request.")
    ] = "least-tokens",
    scheduler: Annotated[
        list[str] | None, typer.Option("--scheduler", metavar="KEY=VALUE", help="A knob of our scheduler; repeatable.")
    ] = None,
    slo_ttft_ms: Annotated[float | None, typer.Option("--slo-ttft-ms", help="SLO: time to first token.")] = None,
    slo_tpot_ms: Annotated[float | None, typer.Option("--slo-tpot-ms", help="SLO: time per further token.")] = None,
    slo_scale: Annotated[
        float | None, typer.Option("--slo-scale", help="SLO: so many times what an idle engine needs for the request.")
    ] = None,
    min_attainment: Annotated[
        float | None,
        typer.Option("--min-attainment", min=0, max=1, help="Exit code 3 if a run meets the SLO for fewer [0.9]."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="DIR", help="Folder for summary.json and every request.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on in that folder; finished runs are not run again.")
    ] = False,
    trace_out: Annotated[
        Path | None, typer.Option("--trace-out", metavar="FILE", help="Picture for ui.perfetto.dev (.json, .json.gz).")
    ] = None,
    trace_requests: Annotated[
        int, typer.Option("--trace-requests", min=1, help="Draw only the first so many requests of each run.")
    ] = 1000,
    trace_window: Annotated[
        str | None, typer.Option("--trace-window", metavar="A:B", help="Draw only these seconds of each run.")
    ] = None,
    json: JsonOption = None,
    quiet: QuietOption = False,
) -> None:
    """Run a trace through scheduling policies on modelled GPUs, in virtual time."""
    from ecoserve.errors import ConfigError
    from ecoserve.serving.simulate.perfetto import trace_file
    from ecoserve.sweep.results import ResultFolder
    from ecoserve.sweep.simulations import perform, prepare

    slo = {"slo_ttft_ms": slo_ttft_ms, "slo_tpot_ms": slo_tpot_ms, "slo_scale": slo_scale}
    if min_attainment is not None and not any(slo.values()):
        raise ConfigError("needs an SLO", where="--min-attainment", fix="state one, as --slo-ttft-ms 500")
    rates = [_rate(text) for text in _listed(rate, "--rate")]
    common: dict[str, Any] = {
        "trace": trace,
        "length_field": length_field,
        "tokenizer": tokenizer,
        "split": {None: None if None in rates else "dev", "all": None}.get(split, split),
        "requests": requests,
        "gpu": gpu,
        "model": model,
        "tp": tp,
        "gpu_memory_utilization": gpu_memory_utilization,
        "blocks": kv_blocks,
        "block_size": block_size,
        "max_num_seqs": max_num_seqs,
        "max_num_batched_tokens": max_num_batched_tokens,
        "max_model_len": max_model_len,
        "max_tokens": max_tokens,
        "prefix_caching": prefix_caching,
        "depth": depth,
        "charge_scheduler": charge_scheduler,
        "replicas": replicas,
        "router": router,
        "scheduler": dict(_knob(text) for text in scheduler or []),
        **slo,
    }
    window = _window(trace_window)
    picture = None if trace_out is None else trace_file(trace_out, requests=trace_requests, window_s=window)
    console = stderr_console(quiet)
    simulations = prepare(
        common,
        policies=_listed(policy, "--policy"),
        lengths=_listed(lengths, "--lengths"),
        rates=rates,
        seeds=range(seed, seed + seeds),
        command=shlex.join(["ecoserve", *sys.argv[1:]]),
    )
    for note in simulations.meta.notes:
        console.print(f"note: {note}", markup=False)
    folder = None if output is None else ResultFolder.create(output, simulations.meta, resume=resume)
    with progress_bar(quiet) as bar:
        summary = perform(simulations, folder=folder, trace_file=picture, progress=_Watch(bar, simulations))
    emit_json(summary.model_dump(mode="json"), json)
    _show(summary.runs, console)
    if any(slo.values()):
        _judge(summary.runs, 0.9 if min_attainment is None else min_attainment)


def _listed(text: str, option: str) -> list[str]:
    from ecoserve.errors import ConfigError

    parts = list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not parts:
        raise ConfigError("names nothing", where=option)
    return parts


def _rate(text: str) -> float | None:
    from ecoserve.errors import ConfigError

    if text == "recorded":
        return None
    try:
        rate = float(text)
    except ValueError:
        rate = math.nan
    if not rate > 0:
        raise ConfigError(f"{text!r} is no rate", where="--rate", fix="requests a second, inf, or recorded")
    return rate


def _knob(text: str) -> tuple[str, Any]:
    import yaml

    from ecoserve.errors import ConfigError

    key, equals, value = text.partition("=")
    try:
        if equals and key:
            return key.strip(), yaml.safe_load(value)
    except yaml.YAMLError:
        pass
    raise ConfigError(f"{text!r} is not KEY=VALUE", where="--scheduler", fix="as --scheduler reserve=0.05")


def _window(text: str | None) -> tuple[float, float] | None:
    from ecoserve.errors import ConfigError

    if text is None:
        return None
    first, colon, last = text.partition(":")
    try:
        window = (float(first or 0), float(last or "inf"))
    except ValueError:
        window = (0.0, 0.0)
    if not (colon and 0 <= window[0] < window[1]):
        raise ConfigError(f"{text!r} is no window", where="--trace-window", fix="two times in seconds, as 10:20")
    return window


class _Watch:
    """One progress bar for all runs; it says how fast virtual time passes."""

    def __init__(self, bar: Progress, simulations: Simulations) -> None:
        self._bar = bar
        self._task = bar.add_task("simulating", total=sum(s.requests for s in simulations.runs))
        self._run: SimulateSettings | None = None
        self._before = self._ended = 0
        self._begun = 0.0

    def __call__(self, settings: SimulateSettings, ended: int, now: float) -> None:
        from ecoserve.sweep.simulations import name_of

        if settings is not self._run:
            self._run, self._begun = settings, time.perf_counter()
            self._before += self._ended
        self._ended = ended
        pace = now / max(1e-9, time.perf_counter() - self._begun)
        text = f"{name_of(settings)}: {now:,.0f} s simulated, {pace:.1f} times real time"
        self._bar.update(self._task, completed=self._before + ended, description=text)


def _show(runs: list[RunRow], console: Console) -> None:
    """One line for each policy, lengths and rate, means over the seeds; and how hard the KVC is pressed."""
    from rich.table import Table

    from ecoserve.sweep.identity import short_lengths

    groups: dict[tuple[str, str, float | None], list[RunRow]] = {}
    for run in runs:
        groups.setdefault((run.policy, short_lengths(run.lengths), run.rate_rps), []).append(run)
    table = Table(
        caption="TTFT: median and p99; TPOT, E2EL and E2EL per token: mean; in ms. KVC used; preemptions; pauses",
        box=None,
        pad_edge=False,
    )
    table.add_column("policy", no_wrap=True)
    table.add_column("lengths", no_wrap=True)
    table.add_column("rate", justify="right", no_wrap=True)
    shown = [column for column in _TABLE if any(getattr(run, column[0]) is not None for run in runs)]
    for _, title, _, _ in shown:
        table.add_column(title, justify="right", no_wrap=True)
    for (policy, lengths, rate), group in groups.items():
        cells = []
        for key, _, factor, form in shown:
            known = [getattr(run, key) for run in group if getattr(run, key) is not None]
            cells.append(form.format(factor * sum(known) / len(known)) if known else "-")
        given = getattr(group[0], "arrivals", None) or "recorded"
        table.add_row(policy, lengths, given if rate is None else f"{rate:g}", *cells)
    if not console.is_terminal:
        console.width = 160  # a file has no edge to cut figures at
    console.print(table)
    pressures = [run.kvc_demand_peak for run in runs if run.kvc_demand_peak is not None]
    if not pressures:
        return
    low, high = min(pressures), max(pressures)
    span = f"{low:.2f}" if high - low < 0.005 else f"{low:.2f} to {high:.2f}"
    console.print(f"pressure: if nobody waited, the load would hold {span} times the KVC at its peak", markup=False)
    if high <= _NO_PRESSURE:
        fix = "raise --rate or lower --kv-blocks"
        console.print(f"note: the KVC is not pressed, so no policy can gain much by its lengths; {fix}", markup=False)


def _judge(runs: list[RunRow], least: float) -> None:
    from ecoserve.errors import ThresholdError

    missed = [run for run in runs if (run.slo_attainment or 0.0) < least]
    if missed:
        worst = min(missed, key=lambda run: run.slo_attainment or 0.0)
        raise ThresholdError(
            f"{len(missed)} of {len(runs)} runs meet the SLO for less than {least:.0%} of their requests, "
            f"the worst ({worst.policy}, seed {worst.seed}) for {worst.slo_attainment or 0.0:.1%}",
            where="ecoserve simulate",
        )
