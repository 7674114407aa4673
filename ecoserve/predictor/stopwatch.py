"""How long a training has taken, all its legs together.

Rule: the seconds so far are kept in the run's work folder every few seconds, so a run that was stopped and goes on
counts what it had done before; at most the last few seconds before it was killed are missing.
"""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from ecoserve.files import write_atomically
from ecoserve.predictor.processes import first
from ecoserve.predictor.progress import Progress

_KEPT: Final = "seconds"
_EVERY_S: Final = 5.0


class Stopwatch:
    """Runs from when it is made; passes progress on, and keeps the time meanwhile."""

    def __init__(self, work: Path, progress: Progress) -> None:
        self.file = work / _KEPT
        self.progress = progress
        try:
            self.before = float(self.file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            self.before = 0.0
        self.started = self.kept_at = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since the first leg began, pauses left out."""
        return self.before + time.monotonic() - self.started

    def __call__(self, what: str, done: int, total: int, /) -> None:
        self.progress(what, done, total)
        if first() and time.monotonic() - self.kept_at >= _EVERY_S:
            self.kept_at = time.monotonic()
            # The time is not worth a training.
            with suppress(OSError):
                write_atomically(self.file, f"{self.seconds:.1f}\n")
