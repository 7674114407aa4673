"""Progress of a sweep: a bar with the time left on a terminal, a line per run in a log."""

from __future__ import annotations

import time
from typing import Final

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ecoserve.sweep.identity import PlannedRun
from ecoserve.sweep.worker import Outcome

#: After this many runs the time left is estimated from all but the first, which loads code and trace.
_WARM_UP: Final = 4


class Reporter:
    """Shows runs that begin and end; the total may grow or shrink on the way (a search).

    Args:
        console: where to; None for silence.
    """

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
        """Set the number of runs, those that ended included."""
        self._total = total
        if self._bar is not None:
            self._bar.update(self._task, total=total)

    def started(self, run: PlannedRun) -> None:
        """A run begins."""
        if self._bar is not None:
            self._bar.update(self._task, description=escape(str(run)))

    def ended(self, run: PlannedRun, outcome: Outcome) -> None:
        """A run has ended, finished or failed."""
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
