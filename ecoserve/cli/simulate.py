"""``ecoserve simulate``: what would this trace do on those GPUs, under these policies?"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, Field

from ecoserve.cli.common import (
    JsonOption,
    QuietOption,
    SeedOption,
    emit_json,
    parsed_rate,
    progress_bar,
    stderr_console,
)
from ecoserve.cli.options import taken, takes
from ecoserve.serving.simulate.settings import SIMULATION, SimulateSettings

if TYPE_CHECKING:
    from ecoserve.sweep.summary import RunRow

#: Groups of options in the help.
_LOAD, _SLO = "Load", "SLO (exit code 3 where it is missed)"


class SimulationOptions(BaseModel):
    """What the command takes besides the settings of a run: axes, bounds, and where results go."""

    rate: str = Field(
        "recorded",
        description="requests per second, Poisson; inf: all at once; or recorded",
        json_schema_extra={"metavar": "R,..."},
    )
    split: str | None = Field(None, description="train, dev or all; by default dev, with recorded arrivals all")
    seeds: int = Field(1, ge=1, description="runs of each setting, with seeds counting up")
    policy: str = Field("vllm,ecoserve", description="policies", json_schema_extra={"metavar": "A,B,..."})
    lengths: str = Field(
        "true",
        description="sources of lengths: true, none, noise:SIGMA, predicted:CKPT, ... (docs/guides/sweep.md)",
        json_schema_extra={"metavar": "KIND,..."},
    )
    scheduler: list[str] = Field(
        [],
        description="a scheduler setting of ecoserve's policies; repeatable",
        json_schema_extra={"metavar": "KEY=VALUE"},
    )
    min_attainment: float = Field(
        0.9, ge=0, le=1, description="exit code 3 if a run meets the SLO for a smaller share of its requests"
    )
    output: Path | None = Field(
        None,
        description="folder for summary.json and every request",
        json_schema_extra={"short": "-o", "metavar": "DIR"},
    )
    resume: bool = Field(False, description="continue in that folder; finished runs are not run again")
    trace_out: Path | None = Field(
        None, description="picture for ui.perfetto.dev (.json, .json.gz)", json_schema_extra={"metavar": "FILE"}
    )
    trace_requests: int = Field(1000, ge=1, description="draw only the first N requests of each run")
    trace_window: str | None = Field(
        None, description="draw only these seconds of each run", json_schema_extra={"metavar": "A:B"}
    )


@takes(SimulateSettings, "trace requests max_tokens length_field tokenizer format time_unit strict", panel=_LOAD)
@takes(SimulationOptions, "rate split seeds", panel=_LOAD)
@takes(SimulationOptions, "policy lengths scheduler", panel="Policies")
@takes(SimulateSettings, "gpu model tp link blocks block_size gpu_memory_utilization", panel="Machine")
@takes(
    SimulateSettings,
    "max_model_len max_num_seqs max_num_batched_tokens prefix_caching depth charge_scheduler",
    panel="Engine",
    defaults=SIMULATION,
)
@takes(SimulateSettings, "replicas router router_stale_ms prefill_replicas prefill_tp kv_link", panel="Replicas")
@takes(SimulateSettings, "slo_ttft_ms slo_tpot_ms slo_scale", panel=_SLO)
@takes(SimulationOptions, "min_attainment", panel=_SLO)
@takes(SimulationOptions, "output resume trace_out trace_requests trace_window", panel="Results")
def command(*, seed: SeedOption = 0, json: JsonOption = None, quiet: QuietOption = False, **given: Any) -> None:
    """Run a trace through scheduling policies on modelled GPUs, in virtual time."""
    from ecoserve.errors import ConfigError
    from ecoserve.options import checked
    from ecoserve.serving.core.settings import SchedulerSettings
    from ecoserve.serving.simulate.perfetto import trace_file
    from ecoserve.serving.workload import chosen_split
    from ecoserve.sweep.results import ResultFolder
    from ecoserve.sweep.simulations import Watch, listed, parsed_knob, parsed_window, perform, prepare, show

    options = taken(SimulationOptions, given)
    judged = any(name.startswith("slo_") for name in given)
    if "min_attainment" in options.model_fields_set and not judged:
        raise ConfigError("needs an SLO", where="--min-attainment", fix="state one, as --slo-ttft-ms 500")
    rates = [parsed_rate(text) for text in listed(options.rate, "--rate")]
    knobs = dict(parsed_knob(text) for text in options.scheduler)
    # auto is resolved by the model of the GPU.
    SchedulerSettings.parse({k: v for k, v in knobs.items() if v != "auto"}, lambda name: f"--scheduler {name}")
    settings = checked(SimulateSettings, given)
    common = {**SIMULATION, **{name: getattr(settings, name) for name in given}, "scheduler": knobs}
    common["split"] = chosen_split(options.split, recorded=None in rates)
    window = parsed_window(options.trace_window)
    picture = None
    if options.trace_out is not None:
        picture = trace_file(options.trace_out, requests=options.trace_requests, window_s=window)
    console = stderr_console(quiet)
    simulations = prepare(
        common,
        policies=listed(options.policy, "--policy"),
        lengths=listed(options.lengths, "--lengths"),
        rates=rates,
        seeds=range(seed, seed + options.seeds),
        command=shlex.join(["ecoserve", *sys.argv[1:]]),
    )
    for note in simulations.meta.notes:
        console.print(f"note: {note}")
    if picture is not None and options.resume:
        console.print("note: the picture shows the runs that are run now, not those finished before")
    folder = None
    if options.output is not None:
        folder = ResultFolder.create(options.output, simulations.meta, resume=options.resume)
    with progress_bar(quiet) as bar:
        summary = perform(simulations, folder=folder, trace_file=picture, progress=Watch(bar, simulations))
    emit_json(summary.model_dump(mode="json"), json)
    show(summary.runs, console)
    if judged:
        _judge(summary.runs, options.min_attainment)


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
