"""The level that serves, which an operator may change at run time: a file that all processes of one server read.

The API server that gets the call (:mod:`~ecoserve.serving.adapter.admin`) writes it; schedulers and other API servers
look at it every :data:`_EVERY_S` seconds. Only ``ecoserve serve`` gives its processes a common folder.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Final, get_args

from ecoserve.files import write_atomically
from ecoserve.serving.adapter.metrics import MULTIPROC_DIR, logger
from ecoserve.serving.core.settings import Level

_NAME: Final = "level"
_EVERY_S: Final = 0.25


class LevelFile:
    """``path``: where it is; None: there is none, and the level stays."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._next = 0.0
        self._seen = 0

    @classmethod
    def of_this_server(cls) -> LevelFile:
        folder = os.environ.get(MULTIPROC_DIR)
        return cls(Path(folder) / _NAME if folder else None)

    def write(self, level: Level) -> None:
        assert self.path is not None
        write_atomically(self.path, level)

    def read(self, level: Level) -> Level:
        """The level that the file says, or ``level`` if it has not changed since the last look."""
        if self.path is None or (now := time.monotonic()) < self._next:
            return level
        self._next = now + _EVERY_S
        try:
            seen = self.path.stat().st_mtime_ns
            if seen == self._seen:
                return level
            found = self.path.read_text()
        except OSError:
            return level
        self._seen = seen
        if found not in get_args(Level) or found == level:
            return level
        logger.info("ecoserve: level %s (was %s)", found, level)
        return found
