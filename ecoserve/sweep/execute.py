"""Running what was planned: in this process, in several, or on a Ray cluster; each run is written as it ends.

A run that fails is written as failed and the others go on. Wherever runs are executed, their results come back to this
process, which alone writes the folder.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from ecoserve.sweep.engines import FUNCTIONS
from ecoserve.sweep.identity import PlannedRun
from ecoserve.sweep.processes import in_processes
from ecoserve.sweep.progress import Reporter
from ecoserve.sweep.ray_cluster import on_ray
from ecoserve.sweep.results import ResultFolder
from ecoserve.sweep.searches import Searches
from ecoserve.sweep.worker import Outcome, in_a_line, perform


@dataclass(slots=True)
class Tally:
    """How a sweep ended: runs finished now, failed now, and finished before."""

    finished: int = 0
    failed: int = 0
    skipped: int = 0

    @property
    def total(self) -> int:
        """All runs of the plan that were reached."""
        return self.finished + self.failed + self.skipped


def execute(
    runs: Sequence[PlannedRun],
    folder: ResultFolder,
    *,
    function: str = FUNCTIONS["virtual"],
    jobs: int | None = None,
    ray: str | None = None,
    searches: Searches | None = None,
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
        searches: searches whose runs depend on results.
        console: where progress goes; None for silence.

    Raises:
        ConfigError: if another sweep is running in the folder, or no cluster is at the address.
        KeyboardInterrupt: after Ctrl-C, with finished runs written and workers ended.
    """
    with folder.locked(), Reporter(console) as reporter:
        sweep = _Sweep(folder, reporter, searches)
        try:
            sweep.begin(runs)
            if ray is not None:
                on_ray(sweep.waiting, function, ray, sweep.record, jobs)
            elif jobs == 0:
                while sweep.waiting:
                    run = sweep.waiting.popleft()
                    reporter.started(run)
                    sweep.record(run, perform(function, run.settings))
            else:
                in_processes(sweep.waiting, function, jobs or 1, sweep.record, reporter.started)
        finally:
            sweep.write_down(runs)
    return sweep.tally


class _Sweep:
    """The queue of runs, and the outcomes."""

    def __init__(self, folder: ResultFolder, reporter: Reporter, searches: Searches | None) -> None:
        self._folder = folder
        self._reporter = reporter
        self._searches = searches
        self._known: set[str] = set()
        self.waiting: deque[PlannedRun] = deque()
        self.tally = Tally()

    def begin(self, runs: Sequence[PlannedRun]) -> None:
        """Queue the plan's runs that are not finished, and the first ones of the searches."""
        self._folder.expect(runs)
        done = self._folder.finished()
        self.waiting.extend(run for run in runs if run.key not in done)
        self.tally.skipped = len(runs) - len(self.waiting)
        self._known = {run.key for run in runs}
        if self._searches is not None:
            self._queue(self._searches.begin())
        self._report_total()

    def record(self, run: PlannedRun, outcome: Outcome) -> None:
        """Write a run's outcome, and queue the runs that follow from it."""
        row: dict[str, Any] | None = None
        if outcome.result is not None:
            try:
                row = self._folder.add(run, outcome.result, wall_s=outcome.wall_s)
            except (ValueError, TypeError, ArithmeticError) as error:
                # A result that no table can hold (NaN, text for a number) is a failure of its run alone.
                outcome = Outcome(None, f"its result cannot be written ({in_a_line(error)})", wall_s=outcome.wall_s)
        if row is None:
            self._folder.add_failure(run, outcome.error, outcome.details)
            self.tally.failed += 1
        else:
            self.tally.finished += 1
        if self._searches is not None:
            self._queue(self._searches.ended(run, row))
            self._report_total()
        self._reporter.ended(run, outcome)

    def write_down(self, runs: Sequence[PlannedRun]) -> None:
        """Write what there is for readers; also after Ctrl-C."""
        if self._searches is not None:
            self._folder.expect([*runs, *self._searches.runs()], only=True)
            self._folder.set_searches(self._searches.rows())
        self._folder.write_summary()

    def _queue(self, runs: Sequence[PlannedRun]) -> None:
        assert self._searches is not None
        left, finished = self._searches.follow(runs, self._folder.finished_row)
        self.waiting.extend(left)
        self.tally.skipped += len(finished)
        if left or finished:
            self._known |= {run.key for run in (*left, *finished)}
            self._folder.expect([*left, *finished])

    def _report_total(self) -> None:
        left = 0 if self._searches is None else self._searches.at_most_left()
        self._reporter.expect(len(self._known) - self.tally.skipped + left)
