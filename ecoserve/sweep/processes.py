"""Runs in worker processes of this machine.

A worker process that dies (killed, out of memory) takes its neighbours' runs along; those that were under way are run
again one by one, so that only the guilty one fails.
"""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool

from ecoserve.sweep.identity import PlannedRun
from ecoserve.sweep.worker import DIED, Outcome, perform, start_worker

#: Told of a run and what came of it; it may add further runs to the queue.
Record = Callable[[PlannedRun, Outcome], None]
Started = Callable[[PlannedRun], None]


def in_processes(waiting: deque[PlannedRun], function: str, jobs: int, record: Record, started: Started) -> None:
    """Run the queue until it is empty, ``jobs`` at once."""
    suspects: deque[PlannedRun] = deque()
    while waiting or suspects:
        # After a death, those that were under way are tried alone first.
        queue, width = (suspects, 1) if suspects else (waiting, jobs)
        suspects.extend(_until_death(queue, function, width, record, started))


def _until_death(
    queue: deque[PlannedRun],
    function: str,
    width: int,
    record: Record,
    started: Started,
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
                record(next(iter(under_way.values())), Outcome(None, DIED))
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
