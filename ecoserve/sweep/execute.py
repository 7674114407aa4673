"""Running what was planned: in this process, in several, or on a Ray cluster, writing each run down as it ends.

A run that fails is written down as failed and the others go on. Whatever ran where, results come back to this process,
which alone writes the folder.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console

from ecoserve.sweep.identity import PlannedRun
from ecoserve.sweep.plan import DEFAULT_RUN
from ecoserve.sweep.processes import in_processes
from ecoserve.sweep.progress import Reporter
from ecoserve.sweep.results import ResultFolder
from ecoserve.sweep.worker import Outcome, perform


@dataclass(slots=True)
class Tally:
    """How a sweep ended: runs finished now, failed now, and finished before."""

    finished: int = 0
    failed: int = 0
    skipped: int = 0

    @property
    def total(self) -> int:
        """All runs of the plan that were come by."""
        return self.finished + self.failed + self.skipped


def execute(
    runs: Sequence[PlannedRun],
    folder: ResultFolder,
    *,
    function: str = DEFAULT_RUN,
    jobs: int | None = None,
    ray: str | None = None,
    console: Console | None = None,
) -> Tally:
    """Run everything that is not finished yet.

    Args:
        runs: what is to be there at the end.
        folder: where results go; its ``summary.json`` is written at the end, also after Ctrl-C.
        function: the run function, as ``module:name``.
        jobs: worker processes; 0 runs in this process, where a crash ends everything; None for one, or, of a local Ray
            cluster, for one a core.
        ray: address of a Ray cluster that runs them instead (:func:`~ecoserve.sweep.ray_cluster.on_ray`).
        console: where progress goes; None for silence.

    Raises:
        ConfigError: if another sweep is running in the folder, or no cluster is at the address.
        KeyboardInterrupt: after Ctrl-C, with finished runs written and workers ended.
    """
    with folder.locked(), Reporter(console) as reporter:
        sweep = _Sweep(folder, reporter)
        try:
            sweep.plan(runs)
            if ray is not None:
                from ecoserve.sweep.ray_cluster import on_ray

                on_ray(sweep.waiting, function, ray, sweep.record, reporter.started, jobs)
            elif jobs == 0:
                while sweep.waiting:
                    run = sweep.waiting.popleft()
                    reporter.started(run)
                    sweep.record(run, perform(function, run.settings))
            else:
                in_processes(sweep.waiting, function, jobs or 1, sweep.record, reporter.started)
        finally:
            folder.write_summary()
    return sweep.tally


class _Sweep:
    """What is to be run, and what becomes of it."""

    def __init__(self, folder: ResultFolder, reporter: Reporter) -> None:
        self._folder = folder
        self._reporter = reporter
        self.waiting: deque[PlannedRun] = deque()
        self.tally = Tally()

    def plan(self, runs: Sequence[PlannedRun]) -> None:
        self._folder.expect(runs)
        done = self._folder.finished()
        self.waiting.extend(run for run in runs if run.key not in done)
        self.tally.skipped = len(runs) - len(self.waiting)
        self._reporter.expect(len(self.waiting))

    def record(self, run: PlannedRun, outcome: Outcome) -> None:
        if outcome.result is not None:
            try:
                self._folder.add(run, outcome.result, wall_s=outcome.wall_s)
            except (ValueError, TypeError, ArithmeticError) as error:
                # A result that no table can hold (NaN, text for a number) is a failure of its run alone.
                words = " ".join(f"{type(error).__name__}: {error}".split())
                outcome = Outcome(None, f"its result cannot be written ({words})", wall_s=outcome.wall_s)
        if outcome.result is None:
            self._folder.add_failure(run, outcome.error, outcome.details)
            self.tally.failed += 1
        else:
            self.tally.finished += 1
        self._reporter.ended(run, outcome)
