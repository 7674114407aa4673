"""Running what was planned: in this process, in several, or on a Ray cluster; each run is written as it ends.

A worker process that dies takes its neighbours' runs along; those in flight are run again one by one, so that only the
run at fault fails. Results come back to this process, which alone writes the folder.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from typing import Any, Final

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ecoserve.sweep.identity import PlannedRun
from ecoserve.sweep.ray_cluster import on_ray
from ecoserve.sweep.results import ResultFolder
from ecoserve.sweep.search import Searches
from ecoserve.sweep.worker import DIED, FUNCTIONS, Outcome, Record, in_a_line, perform

#: After this many runs the time left is estimated from all but the first, which loads code and trace.
_WARM_UP: Final = 4


class Reporter:
    """Shows runs that begin and end, on a terminal as a bar; the total may change on the way (a search)."""

    def __init__(self, console: Console | None) -> None:
        self._console = console
        self._total = 0
        self._ended = 0
        self._begun = self._first = time.monotonic()
        self._bar: Progress | None = None
        if console is not None and console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            self._bar = Progress(*columns, TextColumn("{task.fields[left]}"), console=console)
            self._task = self._bar.add_task("runs", total=None, left="")

    def __enter__(self) -> Reporter:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def expect(self, total: int) -> None:
        self._total = total
        if self._bar is not None:
            self._bar.update(self._task, total=total)

    def started(self, run: PlannedRun) -> None:
        if self._bar is not None:
            self._bar.update(self._task, description=escape(str(run)))

    def ended(self, run: PlannedRun, outcome: Outcome) -> None:
        self._ended += 1
        left = self._left()
        if self._bar is not None:
            self._bar.update(self._task, completed=self._ended, left=left)
        if self._console is None:
            return
        if outcome.result is None:
            self._console.print(f"{run}: failed: {outcome.error}", markup=False, highlight=False, style="red")
        elif self._bar is None:
            line = f"{self._ended}/{self._total} {run}: {outcome.wall_s:.1f} s"
            self._console.print(f"{line}; {left}" if left else line, markup=False, highlight=False)

    def _left(self) -> str:
        """The time left at the pace so far, however many runs are in flight at once."""
        now = time.monotonic()
        if self._ended == 1:
            self._first = now
        rest = self._total - self._ended
        warm = self._ended > _WARM_UP
        each = (now - self._first) / (self._ended - 1) if warm else (now - self._begun) / self._ended
        return f"about {duration(rest * each)} left" if rest > 0 else ""


def duration(seconds: float) -> str:
    """``40 s``, ``12 min``, ``3 h 20 min``."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


Started = Callable[[PlannedRun], None]


def in_processes(waiting: deque[PlannedRun], function: str, jobs: int, record: Record, started: Started) -> None:
    suspects: deque[PlannedRun] = deque()
    while waiting or suspects:
        # After a death, those that were in flight are tried alone first.
        queue, width = (suspects, 1) if suspects else (waiting, jobs)
        suspects.extend(_until_death(queue, function, width, record, started))


def _until_death(
    queue: deque[PlannedRun], function: str, width: int, record: Record, started: Started
) -> list[PlannedRun]:
    """Take runs off the queue, ``width`` at once, until it is empty or a worker dies; returns those then in flight."""
    others = {child.pid for child in multiprocessing.active_children()}
    pool = ProcessPoolExecutor(width, mp_context=multiprocessing.get_context("spawn"), initializer=_start_worker)
    in_flight: dict[Future[Outcome], PlannedRun] = {}
    try:
        while queue or in_flight:
            while queue and len(in_flight) < width:
                run = queue.popleft()
                started(run)
                in_flight[_submit(pool, function, run)] = run
            ended, _ = wait(in_flight, return_when=FIRST_COMPLETED)
            died = False
            for future in ended:
                failure = future.exception()
                if isinstance(failure, BrokenProcessPool):
                    died = True
                    continue
                # Any other exception is a result that cannot be sent between processes.
                outcome = future.result() if failure is None else Outcome(None, in_a_line(failure))
                record(in_flight.pop(future), outcome)
            if died and len(in_flight) == 1:
                record(next(iter(in_flight.values())), Outcome(None, DIED))
                return []
            if died:
                return list(in_flight.values())
        return []
    except KeyboardInterrupt:
        for child in multiprocessing.active_children():
            if child.pid not in others:
                child.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _submit(pool: ProcessPoolExecutor, function: str, run: PlannedRun) -> Future[Outcome]:
    """A future even if the pool is broken already, so that a death is seen in one place."""
    try:
        return pool.submit(perform, function, dict(run.settings))
    except BrokenProcessPool as error:
        broken: Future[Outcome] = Future()
        broken.set_exception(error)
        return broken


def _start_worker() -> None:
    """Leave Ctrl-C to the parent, and end when the parent does, however it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), name="end-with-parent", daemon=True).start()


def _end_with(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)


@dataclass(slots=True)
class Tally:
    """How a sweep ended: runs finished now, failed now, and finished before."""

    finished: int = 0
    failed: int = 0
    skipped: int = 0

    @property
    def total(self) -> int:
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
    """Run everything that is not finished yet; ``summary.json`` is written at the end, also after Ctrl-C.

    ``function``: the run function, as ``module:name``. ``jobs``: worker processes; 0: in this process, where a crash
    ends everything; None: one, or a local Ray's cores. ``ray``: address of a cluster
    (:func:`~ecoserve.sweep.ray_cluster.on_ray`). Raises ConfigError if another sweep is running in the folder, or no
    cluster is at the address.
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
