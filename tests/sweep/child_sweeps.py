"""Sweeps in processes of their own, to be killed: each function is the whole of such a process."""

from __future__ import annotations

import os
import signal

from ecoserve.sweep.execute import execute
from ecoserve.sweep.expansion import expand
from ecoserve.sweep.identity import PlannedRun
from ecoserve.sweep.plan import SweepPlan
from ecoserve.sweep.results import ResultFolder
from ecoserve.sweep.summary import Meta


def of_a_plan(plan_file: str, out: str, jobs: int) -> None:
    """Run a plan."""
    plan = SweepPlan.load(plan_file)
    execute(expand(plan), ResultFolder.create(out, Meta()), function=plan.run, jobs=jobs)


def of_a_plan_killed_while_it_writes(plan_file: str, out: str, which: str, number: int, moment: str) -> None:
    """The process is gone at the ``number``-th renaming to a name with ``which`` in it, before it or after it."""
    count = 0
    rename = os.replace

    def replace(source: str, target: str) -> None:
        nonlocal count
        count += which in str(target)
        here = which in str(target) and count == number
        if here and moment == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        rename(source, target)
        if here:
            os.kill(os.getpid(), signal.SIGKILL)

    os.replace = replace  # type: ignore[assignment]
    of_a_plan(plan_file, out, jobs=0)


def of_one_short_run_and_two_held(out: str, mark: str, hold: str) -> None:
    """Three runs in two processes, in a process group of their own; two runs stay as long as a file does."""
    os.setsid()
    base = {"policy": "ecoserve", "lengths": "true", "rate_rps": 5.0, "requests": 30, "mark": mark}
    runs = [PlannedRun.of({**base, "seed": s, "hold": hold if s else None}) for s in range(3)]
    execute(runs, ResultFolder.create(out, Meta(), resume=True), function="small_runs:queue", jobs=2)
