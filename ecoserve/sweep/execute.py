"""Running what was planned: in this process or in several, writing each run down as it ends.

A run that fails is written down as failed and the others go on. A worker process that dies (killed, out of memory)
takes its neighbours' runs along; those that were under way are run again one by one, so that only the guilty one fails.
"""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ecoserve.sweep.identity import PlannedRun
from ecoserve.sweep.plan import DEFAULT_RUN
from ecoserve.sweep.results import ResultFolder
from ecoserve.sweep.worker import Outcome, perform, start_worker

_DIED = "its process died (killed, or out of memory)"


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
    jobs: int = 1,
    console: Console | None = None,
) -> Tally:
    """Run everything that is not finished yet.

    Args:
        runs: what is to be there at the end.
        folder: where results go; its ``summary.json`` is written at the end, also after Ctrl-C.
        function: the run function, as ``module:name``.
        jobs: worker processes; 0 runs in this process, where a crash ends everything.
        console: where progress goes; None for silence.

    Raises:
        ConfigError: if another sweep is running in the folder.
        KeyboardInterrupt: after Ctrl-C, with finished runs written and workers ended.
    """
    with folder.locked():
        return _execute(runs, folder, function, jobs, console)


def _execute(
    runs: Sequence[PlannedRun], folder: ResultFolder, function: str, jobs: int, console: Console | None
) -> Tally:
    folder.expect(runs)
    done = folder.finished()
    todo = [run for run in runs if run.key not in done]
    tally = Tally(skipped=len(runs) - len(todo))
    try:
        with _Reporter(console, len(todo)) as reporter:

            def record(run: PlannedRun, outcome: Outcome) -> None:
                if outcome.result is None:
                    folder.add_failure(run, outcome.error, outcome.details)
                    tally.failed += 1
                else:
                    folder.add(run, outcome.result, wall_s=outcome.wall_s)
                    tally.finished += 1
                reporter.ended(run, outcome)

            if jobs < 1:
                for run in todo:
                    reporter.started(run)
                    record(run, perform(function, run.settings))
            else:
                _in_processes(todo, function, jobs, record, reporter.started)
    finally:
        folder.write_summary()
    return tally


def _in_processes(
    todo: Iterable[PlannedRun],
    function: str,
    jobs: int,
    record: Callable[[PlannedRun, Outcome], None],
    started: Callable[[PlannedRun], None],
) -> None:
    waiting = deque(todo)
    suspects: deque[PlannedRun] = deque()
    while waiting or suspects:
        # After a death, those that were under way are tried alone first.
        queue, width = (suspects, 1) if suspects else (waiting, jobs)
        suspects.extend(_until_death(queue, function, width, record, started))


def _until_death(
    queue: deque[PlannedRun],
    function: str,
    width: int,
    record: Callable[[PlannedRun, Outcome], None],
    started: Callable[[PlannedRun], None],
) -> list[PlannedRun]:
    """Take runs off the queue, ``width`` at once, until it is empty or a worker dies.

    Returns:
        Runs that were under way together when a worker died: any of them may have been the cause.
    """
    others = {child.pid for child in multiprocessing.active_children()}
    pool = ProcessPoolExecutor(width, mp_context=multiprocessing.get_context("spawn"), initializer=start_worker)
    under_way: dict[Future[Outcome], PlannedRun] = {}
    try:
        while queue or under_way:
            while queue and len(under_way) < width:
                run = queue.popleft()
                started(run)
                under_way[_submit(pool, function, run)] = run
            ended, _ = wait(under_way, return_when=FIRST_COMPLETED)
            died = False
            for future in ended:
                failure = future.exception()
                if isinstance(failure, BrokenProcessPool):
                    died = True
                    continue
                run = under_way.pop(future)
                # Any other exception is a result that would not travel between the processes.
                outcome = future.result() if failure is None else Outcome(None, f"{type(failure).__name__}: {failure}")
                record(run, outcome)
            if died and len(under_way) == 1:
                record(next(iter(under_way.values())), Outcome(None, _DIED))
                return []
            if died:
                return list(under_way.values())
        return []
    except KeyboardInterrupt:
        for child in multiprocessing.active_children():
            if child.pid not in others:
                child.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _submit(pool: ProcessPoolExecutor, function: str, run: PlannedRun) -> Future[Outcome]:
    """A future even where the pool is broken already, so that there is one way to see a death."""
    try:
        return pool.submit(perform, function, dict(run.settings))
    except BrokenProcessPool as error:
        broken: Future[Outcome] = Future()
        broken.set_exception(error)
        return broken


class _Reporter:
    """Progress for people: a bar with time left on a terminal, a line per run in a log."""

    def __init__(self, console: Console | None, total: int) -> None:
        self._console = console
        self._total = total
        self._ended = 0
        self._bar: Progress | None = None
        if console is not None and console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=console,
            )
            self._task = self._bar.add_task("runs", total=total)

    def __enter__(self) -> _Reporter:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def started(self, run: PlannedRun) -> None:
        if self._bar is not None:
            self._bar.update(self._task, description=_plain(str(run)))

    def ended(self, run: PlannedRun, outcome: Outcome) -> None:
        self._ended += 1
        if self._bar is not None:
            self._bar.advance(self._task)
        if self._console is None:
            return
        if outcome.result is None:
            self._console.print(f"{run}: failed: {outcome.error}", markup=False, highlight=False, style="red")
        elif self._bar is None:
            line = f"{self._ended}/{self._total} {run}: {outcome.wall_s:.1f} s"
            self._console.print(line, markup=False, highlight=False)


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)
