"""``ecoserve calibrate-forward``: the target forward size of a machine, and its unloaded times."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ecoserve.cli.common import JsonOption, QuietOption, emit_json, progress_bar, stderr_console

if TYPE_CHECKING:
    from ecoserve.serving.forward_run import ForwardRun


def command(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="The served model: a folder or hub id; with --gpu also a name.")
    ],
    gpu: Annotated[
        str | None, typer.Option("--gpu", metavar="NAME", help="Ask the model of this GPU; without it, measure here.")
    ] = None,
    tp: Annotated[int, typer.Option("--tp", min=1, help="GPUs of one replica (tensor parallel).")] = 1,
    depth: Annotated[int, typer.Option("--depth", min=1, max=2, help="With --gpu: steps in flight.")] = 2,
    largest: Annotated[
        int | None,
        typer.Option("--largest", min=32, help="Tokens of the largest forward.", show_default="4096; with --gpu 8192"),
    ] = None,
    prompt_tokens: Annotated[int, typer.Option("--prompt-tokens", min=8, help="Tokens of each prompt.")] = 512,
    dtype: Annotated[str, typer.Option("--dtype", help="Engine: as vLLM's.")] = "auto",
    enforce_eager: Annotated[bool, typer.Option("--enforce-eager", help="Engine: as vLLM's.")] = False,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="Engine on a CPU: threads.")] = None,
    json: JsonOption = None,
    quiet: QuietOption = False,
) -> None:
    """Time forwards from small to large; say where throughput saturates, and what an idle engine needs.

    The target forward size is the smallest that gives 90 % of the best throughput. It goes to ecoserve serve as a
    scheduler setting, the unloaded times as the basis of an SLO; both are printed as options.
    """
    from ecoserve.serving.core.forward_size import target_forward_size

    if gpu is None:
        run = _measured(model, tp, largest or 4096, prompt_tokens, dtype, enforce_eager, threads, quiet)
    else:
        run = _modelled(model, gpu, tp, depth, largest, prompt_tokens)
    size = target_forward_size(run.times)
    summary = {
        "model": model,
        "gpu": gpu,
        "tp": tp,
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


def _measured(
    model: str,
    tp: int,
    largest: int,
    prompt_tokens: int,
    dtype: str,
    enforce_eager: bool,
    threads: int | None,
    quiet: bool,
) -> ForwardRun:
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from ecoserve.serving.forward_run import ForwardRunSettings, measure_forwards

    engine: dict[str, Any] = {"dtype": dtype, "enforce_eager": enforce_eager}
    if tp > 1:
        engine |= {"tensor_parallel_size": tp, "distributed_executor_backend": None}
    settings = ForwardRunSettings(
        model=model, largest=largest, prompt_tokens=prompt_tokens, threads=threads, engine=engine
    )
    with progress_bar(quiet) as bar:
        task = bar.add_task("engine starts", total=None)

        def note(done: int, total: int) -> None:
            bar.update(task, description="forward sizes", completed=done, total=total)

        return measure_forwards(settings, note)


def _modelled(model: str, gpu: str, tp: int, depth: int, largest: int | None, prompt_tokens: int) -> ForwardRun:
    from ecoserve.serving.forward_run import ForwardRun
    from ecoserve.serving.simulate.cost import ModelledCost, alone_s
    from ecoserve.serving.simulate.forward_size import LARGEST, forward_times
    from ecoserve.serving.simulate.gpu import gpu_model, load_shape

    cost = ModelledCost(gpu_model(gpu, load_shape(model), tp))
    most = largest or LARGEST
    first = alone_s(cost, prompt_tokens, 1, depth, most)
    further = (alone_s(cost, prompt_tokens, 33, depth, most) - first) / 32
    times = forward_times(cost, depth=depth, largest=most, prompt_tokens=prompt_tokens)
    return ForwardRun(times, prompt_tokens, first, further)


def _show(summary: dict[str, Any], quiet: bool) -> None:
    from rich.table import Table

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
        markup=False,
    )
