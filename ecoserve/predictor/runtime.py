"""The process around a training: progress, elapsed time, several processes (torchrun, accelerate), waiting threads."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeAlias

from ecoserve.files import write_atomically

#: Called with what is being done, how much of it is done, and how much there is.
Progress: TypeAlias = Callable[[str, int, int], None]
#: Turns of GNU OpenMP's waiting loop before a thread sleeps (docs/log.md has what was tried).
_SPINS: Final = "1000"
#: File in a run's work folder with the seconds so far, and how often it is written.
_KEPT: Final = "seconds"
_EVERY_S: Final = 5.0


def silent(what: str, done: int, total: int, /) -> None:
    """Progress that is not shown."""


def alone() -> bool:
    return int(os.environ.get("WORLD_SIZE", "1")) <= 1


def first() -> bool:
    """Whether this process is the only one, or the first of several: the one that writes."""
    return alone() or int(os.environ.get("RANK", "0")) == 0


def wait_for_all() -> None:
    if not alone():
        from accelerate import PartialState

        PartialState().wait_for_everyone()


def let_waiting_threads_sleep() -> None:
    """Let OpenMP's threads spin shortly, then sleep; a user's own setting stands.

    Spinning, the default, costs several times the work itself on a busy machine. Call it before torch or LightGBM is
    loaded: OpenMP reads its environment once.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        # GNU's OpenMP goes by the number, others know the policy alone.
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)


class Stopwatch:
    """Seconds of a training, those before an interruption too (kept in its work folder); passes progress on."""

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
        """Since the run began, interruptions left out."""
        return self.before + time.monotonic() - self.started

    def __call__(self, what: str, done: int, total: int, /) -> None:
        self.progress(what, done, total)
        if first() and time.monotonic() - self.kept_at >= _EVERY_S:
            self.kept_at = time.monotonic()
            # A time that cannot be kept does not end a training.
            with suppress(OSError):
                write_atomically(self.file, f"{self.seconds:.1f}\n")
