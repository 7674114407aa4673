"""``ecoserve sweep``: run a plan of many runs into a result folder, and write its summary and report."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from ecoserve.cli.common import JsonOption, OutputOption, QuietOption, emit_json, stderr_console

if TYPE_CHECKING:
    from ecoserve.sweep.summary import Summary
    from ecoserve.sweep.sweep import Sweep


def command(
    plan_file: Annotated[Path, typer.Argument(metavar="SWEEP.YAML", help="The plan: axes, load, seeds.")],
    output: OutputOption = Path("sweep-results"),
    trace: Annotated[str | None, typer.Option(metavar="SOURCE", help="Trace to use instead of the plan's.")] = None,
    predictor: Annotated[
        str | None, typer.Option(metavar="CKPT", help="Checkpoint that `predicted` stands for, instead of the plan's.")
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            min=0, help="Runs at once, one process each; 0 runs them one by one in this process.", show_default="1"
        ),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Run on a Ray cluster: HOST:PORT of its head, auto, or local for this machine's cores.",
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue in a folder; finished runs are not run again.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show what would be run, and how long it takes.")
    ] = False,
    json: JsonOption = None,
    quiet: QuietOption = False,
) -> None:
    """Run a sweep over lengths, policies, knobs, rates, loads and seeds; write summary.json and report.html."""
    from ecoserve.errors import RunError
    from ecoserve.sweep.report import FILE_NAME
    from ecoserve.sweep.sweep import Sweep

    command = shlex.join(["ecoserve", *sys.argv[1:]])
    sweep = Sweep(plan_file, trace=trace, predictor=predictor, command=command)
    console = stderr_console(quiet)
    if dry_run:
        _say_what_would_run(sweep, output, jobs or 1, json, console)
        return
    summary = sweep.run(output, jobs=jobs, ray=ray, resume=resume, console=None if quiet else console)
    emit_json(summary.model_dump(mode="json"), json)
    _say_what_was_found(summary, console)
    console.print(f"{output / FILE_NAME}")
    console.print(f"tables sha256 {summary.meta.tables_sha256}")
    if failed := len(summary.failures):
        raise RunError(
            f"{failed} of {failed + len(summary.runs)} runs failed, the first with: {summary.failures[0].error}",
            where=str(output),
            fix="fix that and run them again with --resume",
        )


def _say_what_was_found(summary: Summary, console: Console) -> None:
    from ecoserve.sweep.identity import short_lengths

    for row in summary.searches:
        knobs = [f"{k.removeprefix('knob_')} {v}" for k, v in (row.model_extra or {}).items()]
        parts = [row.condition, row.policy, f"lengths {short_lengths(row.lengths)}", *knobs]
        name = ", ".join(part for part in parts if part)
        rate = "no rate" if row.rate_rps is None else f"{row.rate_rps:.4g} req/s"
        missed = "" if row.missed_from_rps is None else f", missed from {row.missed_from_rps:.4g}"
        contrary = "; not monotone" if row.missed_below_rps or row.met_above_rps else ""
        tried = f"{len(row.tried)} rates tried"
        console.print(f"{name}: {rate}{missed} ({row.state}; {tried}{contrary})")


def _say_what_would_run(sweep: Sweep, output: Path, jobs: int, json: str | None, console: Console) -> None:
    from ecoserve.sweep.execute import duration
    from ecoserve.sweep.expansion import estimate
    from ecoserve.sweep.results import ResultFolder

    folder = ResultFolder.open(output) if (output / "sweep.yaml").exists() else None
    row_of = folder.finished_row if folder is not None else lambda key: None
    plan, searches, known = sweep.plan, sweep.searches, list(sweep.runs)
    if searches is not None:
        left, finished = searches.follow(searches.begin(), row_of)
        known += [*finished, *left]
    more = searches.at_most_left() if searches is not None else 0
    rows = [row for run in known if (row := row_of(run.key)) is not None]
    done = {row["run"] for row in rows}
    todo = [run for run in known if run.key not in done]
    with console.status("timing short runs"):
        estimated = estimate(todo, function=plan.run, engine=plan.engine, jobs=max(1, jobs), finished=rows)
    for run in known:
        mark = "finished" if run.key in done else "to run"
        console.print(f"{run.key}  {mark:8}  {run}")
    seconds = estimated.seconds
    if seconds is not None and todo and more:
        seconds *= (len(todo) + more) / len(todo)
    time = "unknown" if seconds is None else f"{'at most ' if more else ''}about {duration(seconds)}"
    count = f"{len(todo)} of {len(known)} runs to do"
    then = f", then at most {more} more of {len(searches or ())} searches" if more else ""
    console.print(f"{count}{then}; time: {time} (from {estimated.basis})")
    listed = [{"run": run.key, "finished": run.key in done, **run.labels, **run.settings} for run in known]
    emit_json(
        {
            "runs": listed,
            "to_run": len(todo),
            "at_most_more": more,
            "estimated_s": seconds,
            "estimated_from": estimated.basis,
        },
        json,
    )
