"""Runs in worker processes of this machine.

A worker process that dies (killed, out of memory) takes its neighbours' runs along; those in flight are run again one
by one, so that only the run at fault fails.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.process import BaseProcess

from ecoserve.sweep.identity import PlannedRun
from ecoserve.sweep.worker import DIED, Outcome, in_a_line, perform

#: Called with a run and its outcome; it may add further runs to the queue.
Record = Callable[[PlannedRun, Outcome], None]
Started = Callable[[PlannedRun], None]


def in_processes(waiting: deque[PlannedRun], function: str, jobs: int, record: Record, started: Started) -> None:
    """Run the queue until it is empty, ``jobs`` at once."""
    suspects: deque[PlannedRun] = deque()
    while waiting or suspects:
        # After a death, those that were in flight are tried alone first.
        queue, width = (suspects, 1) if suspects else (waiting, jobs)
        suspects.extend(_until_death(queue, function, width, record, started))


def _until_death(
    queue: deque[PlannedRun], function: str, width: int, record: Record, started: Started
) -> list[PlannedRun]:
    """Take runs off the queue, ``width`` at once, until it is empty or a worker dies.

    Returns:
        Runs that were in flight together when a worker died: any of them may have been the cause.
    """
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
