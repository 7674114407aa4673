"""``ecoserve simulate``: what would this trace do on those GPUs, under these policies?"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from ecoserve.cli.common import (
    JsonOption,
    QuietOption,
    SeedOption,
    chosen_split,
    emit_json,
    parsed_rate,
    progress_bar,
    stderr_console,
)
from ecoserve.cli.options import takes
from ecoserve.serving.simulate.settings import SimulateSettings

if TYPE_CHECKING:
    from ecoserve.sweep.summary import RunRow

#: The groups of options in the help.
_LOAD, _POLICIES, _MACHINE, _ENGINE = "Load", "Policies", "Machine", "Engine"
_SLO, _RESULTS = "SLO (exit code 3 where it is missed)", "Results"
#: Where the command's defaults are not those of a run; None: what the trace needs.
_DEFAULTS: Final = {"depth": 2, "prefix_caching": True, "max_model_len": None}


@takes(SimulateSettings, "trace requests max_tokens length_field tokenizer", panel=_LOAD)
@takes(SimulateSettings, "gpu model tp blocks block_size gpu_memory_utilization", panel=_MACHINE)
@takes(
    SimulateSettings,
    "max_model_len max_num_seqs max_num_batched_tokens prefix_caching depth charge_scheduler replicas router",
    panel=_ENGINE,
    defaults=_DEFAULTS,
)
@takes(SimulateSettings, "slo_ttft_ms slo_tpot_ms slo_scale", panel=_SLO)
def command(
    *,
    rate: Annotated[
        str,
        typer.Option(
            "--rate",
            metavar="R,...",
            help="Requests per second, Poisson; inf: all at once; or recorded.",
            rich_help_panel=_LOAD,
        ),
    ] = "recorded",
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
    seed: SeedOption = 0,
    seeds: Annotated[
        int,
        typer.Option(
            "--seeds", metavar="N", min=1, help="Runs of each setting, with seeds counting up.", rich_help_panel=_LOAD
        ),
    ] = 1,
    policy: Annotated[
        str, typer.Option("--policy", metavar="A,B,...", help="Policies.", rich_help_panel=_POLICIES)
    ] = "vllm,ecoserve",
    lengths: Annotated[
        str,
        typer.Option(
            "--lengths",
            metavar="KIND,...",
            help="Sources of lengths: true, none, noise:SIGMA, predicted:CKPT, ... (docs/sweep.md).",
            rich_help_panel=_POLICIES,
        ),
    ] = "true",
    scheduler: Annotated[
        list[str] | None,
        typer.Option(
            "--scheduler",
            metavar="KEY=VALUE",
            help="A scheduler setting of ecoserve's policies; repeatable.",
            rich_help_panel=_POLICIES,
        ),
    ] = None,
    min_attainment: Annotated[
        float | None,
        typer.Option(
            "--min-attainment",
            metavar="SHARE",
            min=0,
            max=1,
            help="Exit code 3 if a run meets the SLO for a smaller share of its requests.",
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
            "--resume", help="Continue in that folder; finished runs are not run again.", rich_help_panel=_RESULTS
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
            help="Draw only the first N requests of each run.",
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
    **given: Any,
) -> None:
    """Run a trace through scheduling policies on modelled GPUs, in virtual time."""
    from ecoserve.errors import ConfigError
    from ecoserve.options import checked
    from ecoserve.serving.core.settings import SchedulerSettings
    from ecoserve.serving.simulate.perfetto import trace_file
    from ecoserve.sweep.results import ResultFolder
    from ecoserve.sweep.simulations import perform, prepare
    from ecoserve.sweep.simulations_text import Watch, listed, parsed_knob, parsed_window, show

    judged = any(name.startswith("slo_") for name in given)
    if min_attainment is not None and not judged:
        raise ConfigError("needs an SLO", where="--min-attainment", fix="state one, as --slo-ttft-ms 500")
    rates = [parsed_rate(text) for text in listed(rate, "--rate")]
    knobs = dict(parsed_knob(text) for text in scheduler or [])
    # auto is resolved by the model of the GPU.
    SchedulerSettings.parse({k: v for k, v in knobs.items() if v != "auto"}, lambda name: f"--scheduler {name}")
    settings = checked(SimulateSettings, given)
    common = {**_DEFAULTS, **{name: getattr(settings, name) for name in given}, "scheduler": knobs}
    common["split"] = chosen_split(split, recorded=None in rates)
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
    if judged:
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
