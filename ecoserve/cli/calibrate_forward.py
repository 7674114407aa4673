"""``ecoserve calibrate-forward``: the target forward size of a machine, and its unloaded times."""

from __future__ import annotations

import os
from functools import partial
from typing import Annotated, Any

import typer
from rich.table import Table

from ecoserve.cli.common import JsonOption, QuietOption, emit_json, progress_of, stderr_console
from ecoserve.cli.options import takes
from ecoserve.options import checked
from ecoserve.serving.forward_run import ForwardRun, ForwardRunSettings, measure_forwards
from ecoserve.serving.simulate.settings import SimulateSettings

_ENGINE = "Without --gpu (an engine on this machine)"


@takes(ForwardRunSettings, "largest prompt_tokens", defaults={"largest": "4096; with --gpu 8192"})
@takes(SimulateSettings, "tp depth", defaults={"depth": 2})
@takes(ForwardRunSettings, "threads", panel=_ENGINE)
def command(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="The served model: a folder or hub id; with --gpu also a name.")
    ],
    *,
    gpu: Annotated[
        str | None, typer.Option("--gpu", metavar="NAME", help="Use the model of this GPU; without it, measure here.")
    ] = None,
    dtype: Annotated[str, typer.Option("--dtype", help="As vLLM's.", rich_help_panel=_ENGINE)] = "auto",
    enforce_eager: Annotated[bool, typer.Option("--enforce-eager", help="As vLLM's.", rich_help_panel=_ENGINE)] = False,
    json: JsonOption = None,
    quiet: QuietOption = False,
    **given: Any,
) -> None:
    """Time forwards from small to large; find where throughput saturates, and the times of an idle engine.

    The target forward size is the smallest that gives 90 % of the best throughput. It goes to ecoserve serve as a
    scheduler setting, the unloaded times as the basis of an SLO; both are printed as options.
    """
    from ecoserve.serving.forward_run import target_forward_size

    on_gpu = {"depth": 2, **{name: given.pop(name) for name in ("tp", "depth") if name in given}}
    replica = checked(SimulateSettings, {"trace": "", **on_gpu})
    engine: dict[str, Any] = {"dtype": dtype, "enforce_eager": enforce_eager}
    if replica.tp > 1:
        engine |= {"tensor_parallel_size": replica.tp, "distributed_executor_backend": None}
    settings = checked(ForwardRunSettings, {**given, "model": model, "engine": engine})
    run = _measured(settings, quiet) if gpu is None else _modelled(settings, replica, gpu)
    size = target_forward_size(run.times)
    summary = {
        "model": model,
        "gpu": gpu,
        "tp": replica.tp,
        "prompt_tokens": run.prompt_tokens,
        "target_forward_tokens": size.tokens,
        "best_tokens_per_s": size.best_tokens_per_s,
        "saturated": size.saturated,
        "unloaded_ttft_ms": run.ttft_s * 1e3,
        "unloaded_tpot_ms": run.tpot_s * 1e3,
        "forwards": [{"tokens": n, "forward_ms": s * 1e3, "tokens_per_s": n / s} for n, s in run.times],
    }
    emit_json(summary, json)
    _show(summary, quiet)


def _measured(settings: ForwardRunSettings, quiet: bool) -> ForwardRun:
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with progress_of(quiet) as progress:
        progress("engine starts", 0, None)
        return measure_forwards(settings, partial(progress, "forward sizes"))


def _modelled(settings: ForwardRunSettings, replica: SimulateSettings, gpu: str) -> ForwardRun:
    from ecoserve.serving.simulate.cost import alone_s
    from ecoserve.serving.simulate.gpu.model import gpu_model
    from ecoserve.serving.simulate.gpu.shapes import load_shape
    from ecoserve.serving.simulate.settings import LARGEST, forward_times

    cost = gpu_model(gpu, load_shape(settings.model), replica.tp)
    prompt_tokens, depth = settings.prompt_tokens, replica.depth
    largest = settings.largest if "largest" in settings.model_fields_set else LARGEST
    first = alone_s(cost, prompt_tokens, 1, depth, largest)
    further = (alone_s(cost, prompt_tokens, 33, depth, largest) - first) / 32
    times = forward_times(cost, depth=depth, largest=largest, prompt_tokens=prompt_tokens)
    return ForwardRun(times, prompt_tokens, first, further)


def _show(summary: dict[str, Any], quiet: bool) -> None:
    table = Table("forward", "ms", "tokens/s", title=f"{summary['model']} on {summary['gpu'] or 'this machine'}")
    for row in summary["forwards"]:
        table.add_row(str(row["tokens"]), f"{row['forward_ms']:.2f}", f"{row['tokens_per_s']:,.0f}")
    console = stderr_console(quiet)
    console.print(table)
    target = summary["target_forward_tokens"]
    console.print(
        f"target forward size: {target} tokens (90 % of the best, {summary['best_tokens_per_s']:,.0f} tokens/s)"
    )
    if not summary["saturated"]:
        console.print("throughput still rises at the largest forward: give a larger --largest")
    console.print(
        f'  ecoserve serve ... --additional-config \'{{"ecoserve": {{"target_forward_tokens": {target}}}}}\' '
        f"--unloaded-ttft-ms {summary['unloaded_ttft_ms']:.1f} --unloaded-tpot-ms {summary['unloaded_tpot_ms']:.1f}",
    )
