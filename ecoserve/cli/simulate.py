"""``ecoserve simulate``: what would this trace do on those GPUs, under these policies?"""

from __future__ import annotations

import shlex
import sys
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
    from ecoserve.sweep.summary import RunRow

#: The parts of the list of options.
_LOAD, _POLICIES, _MACHINE, _ENGINE = "Load", "Policies", "Machine", "Engine"
_SLO, _RESULTS = "SLO (exit code 3 where it is missed)", "Results"


def command(
    trace: Annotated[
        str,
        typer.Option(
            "--trace", metavar="FILE", help="A file, a data set on the hub, or synthetic[:N].", rich_help_panel=_LOAD
        ),
    ],
    gpu: Annotated[
        str,
        typer.Option(
            "--gpu",
            metavar="NAME",
            help="As h100_sxm; or linear: a step cost of no GPU in particular.",
            rich_help_panel=_MACHINE,
        ),
    ] = "linear",
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="NAME|DIR",
            help="Served model, or a folder with its config.json.",
            rich_help_panel=_MACHINE,
        ),
    ] = None,
    tp: Annotated[
        int,
        typer.Option(
            "--tp", metavar="N", min=1, help="GPUs of one replica, tensor parallel.", rich_help_panel=_MACHINE
        ),
    ] = 1,
    rate: Annotated[
        str,
        typer.Option(
            "--rate",
            metavar="R,...",
            help="Requests a second, Poisson; inf: all at once; or recorded.",
            rich_help_panel=_LOAD,
        ),
    ] = "recorded",
    policy: Annotated[
        str, typer.Option("--policy", metavar="A,B,...", help="Policies.", rich_help_panel=_POLICIES)
    ] = "vllm,ecoserve",
    lengths: Annotated[
        str,
        typer.Option(
            "--lengths",
            metavar="KIND,...",
            help="What policies are told: true, none, noise:SIGMA, predicted:CKPT, ... (docs/sweep.md).",
            rich_help_panel=_POLICIES,
        ),
    ] = "true",
    requests: Annotated[
        int, typer.Option("--requests", metavar="N", min=1, help="Requests of a run.", rich_help_panel=_LOAD)
    ] = 400,
    seed: SeedOption = 0,
    seeds: Annotated[
        int,
        typer.Option(
            "--seeds", metavar="N", min=1, help="Runs of each setting, with seeds counting up.", rich_help_panel=_LOAD
        ),
    ] = 1,
    length_field: Annotated[
        str | None,
        typer.Option(
            "--length-field",
            metavar="FIELD",
            help="Field with the lengths in tokens, as lengths[3].",
            rich_help_panel=_LOAD,
        ),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            "--tokenizer", metavar="DIR|ID", help="Counts tokens where the trace does not.", rich_help_panel=_LOAD
        ),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            "--split",
            metavar="NAME",
            help="train, dev or all.",
            show_default="dev; recorded: all",
            rich_help_panel=_LOAD,
        ),
    ] = None,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", metavar="N", min=1, help="The same for every request.", rich_help_panel=_LOAD)
    ] = 2000,
    max_model_len: Annotated[
        int | None,
        typer.Option(
            "--max-model-len",
            metavar="N",
            min=2,
            help="Prompt and answer, at most.",
            show_default="what the trace needs",
            rich_help_panel=_ENGINE,
        ),
    ] = None,
    max_num_seqs: Annotated[
        int, typer.Option("--max-num-seqs", metavar="N", min=1, help="Requests at once.", rich_help_panel=_ENGINE)
    ] = 256,
    max_num_batched_tokens: Annotated[
        int,
        typer.Option("--max-num-batched-tokens", metavar="N", min=1, help="Tokens a step.", rich_help_panel=_ENGINE),
    ] = 2048,
    kv_blocks: Annotated[
        int | None,
        typer.Option(
            "--kv-blocks",
            metavar="N",
            min=2,
            help="Usable KV blocks.",
            show_default="what fits the GPU",
            rich_help_panel=_MACHINE,
        ),
    ] = None,
    block_size: Annotated[
        int, typer.Option("--block-size", metavar="N", min=1, help="Tokens a block.", rich_help_panel=_MACHINE)
    ] = 16,
    gpu_memory_utilization: Annotated[
        float,
        typer.Option(
            "--gpu-memory-utilization",
            metavar="SHARE",
            min=0.01,
            max=1,
            help="vLLM's share of the GPU's memory.",
            rich_help_panel=_MACHINE,
        ),
    ] = 0.9,
    no_prefix_caching: Annotated[
        bool,
        typer.Option("--no-prefix-caching", help="Equal beginnings share no KV.", rich_help_panel=_ENGINE),
    ] = False,
    depth: Annotated[
        int,
        typer.Option(
            "--depth",
            metavar="1|2",
            min=1,
            max=2,
            help="Steps in flight: 2 is vLLM's asynchronous scheduling.",
            rich_help_panel=_ENGINE,
        ),
    ] = 2,
    charge_scheduler: Annotated[
        str,
        typer.Option(
            "--charge-scheduler",
            metavar="HOW",
            help="Scheduling costs the host what the model says (model), what it takes here (measured), or none.",
            rich_help_panel=_ENGINE,
        ),
    ] = "model",
    replicas: Annotated[
        int, typer.Option("--replicas", metavar="N", min=1, help="Engines behind a router.", rich_help_panel=_ENGINE)
    ] = 1,
    router: Annotated[
        str,
        typer.Option(
            "--router",
            metavar="NAME",
            help="Who gets a request: round-robin, least-requests, least-tokens.",
            rich_help_panel=_ENGINE,
        ),
    ] = "least-tokens",
    scheduler: Annotated[
        list[str] | None,
        typer.Option(
            "--scheduler", metavar="KEY=VALUE", help="A knob of our scheduler; repeatable.", rich_help_panel=_POLICIES
        ),
    ] = None,
    slo_ttft_ms: Annotated[
        float | None,
        typer.Option("--slo-ttft-ms", metavar="MS", help="SLO: time to first token.", rich_help_panel=_SLO),
    ] = None,
    slo_tpot_ms: Annotated[
        float | None,
        typer.Option("--slo-tpot-ms", metavar="MS", help="SLO: time per further token.", rich_help_panel=_SLO),
    ] = None,
    slo_scale: Annotated[
        float | None,
        typer.Option(
            "--slo-scale",
            metavar="X",
            help="SLO: so many times what an idle engine needs for the request.",
            rich_help_panel=_SLO,
        ),
    ] = None,
    min_attainment: Annotated[
        float | None,
        typer.Option(
            "--min-attainment",
            metavar="SHARE",
            min=0,
            max=1,
            help="Exit code 3 if a run meets the SLO for fewer.",
            show_default="0.9",
            rich_help_panel=_SLO,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="DIR", help="Folder for summary.json and every request.", rich_help_panel=_RESULTS
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Go on in that folder; finished runs are not run again.", rich_help_panel=_RESULTS
        ),
    ] = False,
    trace_out: Annotated[
        Path | None,
        typer.Option(
            "--trace-out",
            metavar="FILE",
            help="Picture for ui.perfetto.dev (.json, .json.gz).",
            rich_help_panel=_RESULTS,
        ),
    ] = None,
    trace_requests: Annotated[
        int,
        typer.Option(
            "--trace-requests",
            metavar="N",
            min=1,
            help="Draw only the first so many requests of each run.",
            rich_help_panel=_RESULTS,
        ),
    ] = 1000,
    trace_window: Annotated[
        str | None,
        typer.Option(
            "--trace-window", metavar="A:B", help="Draw only these seconds of each run.", rich_help_panel=_RESULTS
        ),
    ] = None,
    json: JsonOption = None,
    quiet: QuietOption = False,
) -> None:
    """Run a trace through scheduling policies on modelled GPUs, in virtual time."""
    from ecoserve.errors import ConfigError
    from ecoserve.serving.simulate.perfetto import trace_file
    from ecoserve.sweep.results import ResultFolder
    from ecoserve.sweep.simulations import perform, prepare
    from ecoserve.sweep.simulations_text import Watch, listed, parsed_knob, parsed_window, show

    slo = {"slo_ttft_ms": slo_ttft_ms, "slo_tpot_ms": slo_tpot_ms, "slo_scale": slo_scale}
    if min_attainment is not None and not any(slo.values()):
        raise ConfigError("needs an SLO", where="--min-attainment", fix="state one, as --slo-ttft-ms 500")
    rates = [parsed_rate(text) for text in listed(rate, "--rate")]
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
        "prefix_caching": not no_prefix_caching,
        "depth": depth,
        "charge_scheduler": charge_scheduler,
        "replicas": replicas,
        "router": router,
        "scheduler": dict(parsed_knob(text) for text in scheduler or []),
        **slo,
    }
    window = parsed_window(trace_window)
    picture = None if trace_out is None else trace_file(trace_out, requests=trace_requests, window_s=window)
    console = stderr_console(quiet)
    simulations = prepare(
        common,
        policies=listed(policy, "--policy"),
        lengths=listed(lengths, "--lengths"),
        rates=rates,
        seeds=range(seed, seed + seeds),
        command=shlex.join(["ecoserve", *sys.argv[1:]]),
    )
    for note in simulations.meta.notes:
        console.print(f"note: {note}", markup=False)
    if picture is not None and resume:
        console.print("note: the picture shows the runs that are run now, not those finished before", markup=False)
    folder = None if output is None else ResultFolder.create(output, simulations.meta, resume=resume)
    with progress_bar(quiet) as bar:
        summary = perform(simulations, folder=folder, trace_file=picture, progress=Watch(bar, simulations))
    emit_json(summary.model_dump(mode="json"), json)
    show(summary.runs, console)
    if any(slo.values()):
        _judge(summary.runs, 0.9 if min_attainment is None else min_attainment)


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
