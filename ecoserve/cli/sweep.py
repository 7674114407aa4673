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
    from ecoserve.sweep.identity import PlannedRun
    from ecoserve.sweep.plan import SweepPlan
    from ecoserve.sweep.results import ResultFolder
    from ecoserve.sweep.search import Searches
    from ecoserve.sweep.summary import Meta, Summary


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
    from ecoserve.errors import ConfigError, RunError
    from ecoserve.sweep.execute import execute
    from ecoserve.sweep.expansion import expand
    from ecoserve.sweep.plan import SweepPlan
    from ecoserve.sweep.report import write_report
    from ecoserve.sweep.results import ResultFolder
    from ecoserve.sweep.search import Searches

    plan = SweepPlan.load(plan_file, trace=trace, predictor=predictor)
    runs = expand(plan)
    searches = Searches.of(plan) if plan.search is not None else None
    if ray not in (None, "local") and jobs is not None:
        raise ConfigError("the cluster decides how many run at once", where="--jobs", fix="leave out --jobs")
    if plan.engine == "url" and (ray is not None or (jobs or 1) > 1):
        raise ConfigError(
            "parallel runs at one server disturb each other", where="engine: url", fix="leave out --jobs and --ray"
        )
    console = stderr_console(quiet)
    if dry_run:
        _say_what_would_run(plan, runs, searches, output, jobs or 1, json, console)
        return
    if ray is not None:
        from ecoserve.sweep.ray_cluster import look_for

        look_for(ray)  # before anything is written
    folder = ResultFolder.create(output, _meta(plan), resume=resume)
    try:
        tally = execute(
            runs,
            folder,
            function=plan.run,
            jobs=jobs,
            ray=ray,
            searches=searches,
            console=None if quiet else console,
        )
    finally:
        # After Ctrl-C too: what is finished can be read at once.
        _note_lengths(folder)
        report = write_report(folder)
    summary = folder.summary()
    emit_json(summary.model_dump(mode="json"), json)
    _say_what_was_found(summary, console)
    console.print(f"{report}")
    console.print(f"tables sha256 {summary.meta.tables_sha256}")
    if tally.failed:
        first = summary.failures[0]
        raise RunError(
            f"{tally.failed} of {tally.total} runs failed, the first with: {first.error}",
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


def _meta(plan: SweepPlan) -> Meta:
    from ecoserve.sweep.identity import describe_run, fingerprint
    from ecoserve.sweep.plan import SYNTHETIC
    from ecoserve.sweep.summary import TraceInfo

    sources = dict.fromkeys([*plan.trace, *(t for c in plan.conditions.values() for t in c.trace or [])])
    files = [Path(source) for source in sources if Path(source).is_file()]
    # Several traces have no hash in common; each run's key holds that of its own.
    sha256 = fingerprint(files[0]) if len(sources) == len(files) == 1 else None
    trace = TraceInfo(source=", ".join(sources), sha256=sha256)
    return describe_run(plan.title, [shlex.join(["ecoserve", *sys.argv[1:]])]).model_copy(
        update={
            "synthetic": any(source.partition(":")[0] == SYNTHETIC for source in sources),
            "trace": trace,
            "scheduler_mode": f"virtual time, pipeline depth {plan.depth}" if plan.engine == "virtual" else plan.engine,
            "settings": plan.model_dump(mode="json", exclude_none=True),
        }
    )


def _note_lengths(folder: ResultFolder) -> None:
    """Where response lengths came from is known once the trace has been read, which the runs do."""
    known = {getattr(run, "length_source", None) for run in folder.summary().runs} - {None}
    if folder.meta.trace and known:
        folder.describe(trace={**folder.meta.trace.model_dump(), "length_source": ", ".join(sorted(map(str, known)))})


def _say_what_would_run(
    plan: SweepPlan,
    runs: list[PlannedRun],
    searches: Searches | None,
    output: Path,
    jobs: int,
    json: str | None,
    console: Console,
) -> None:
    from ecoserve.sweep.execute import duration
    from ecoserve.sweep.expansion import estimate
    from ecoserve.sweep.results import ResultFolder

    folder = ResultFolder.open(output) if (output / "sweep.yaml").exists() else None
    row_of = folder.finished_row if folder is not None else lambda key: None
    known = list(runs)
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
