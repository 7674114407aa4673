"""What an operator changes at run time, in files that all processes of one server read: the level, the predictor.

The API server that gets the call (:mod:`~ecoserve.serving.adapter.admin`) writes; schedulers and all API servers look
every :data:`_EVERY_S` seconds. Only ``ecoserve serve`` gives its processes a common folder.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Final

from ecoserve.files import write_atomically
from ecoserve.serving.adapter.metrics import MULTIPROC_DIR, logger
from ecoserve.serving.core.settings import Level

LEVEL: Final = "level"
PREDICTOR: Final = "predictor"
_EVERY_S: Final = 0.25
_LEVELS: Final[dict[str, Level]] = {"full": "full", "order": "order", "shadow": "shadow"}


class SharedFile:
    """A short text; ``path``: where it is, None: there is none, and it never changes."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._next = 0.0
        self._seen = 0

    @classmethod
    def of_this_server(cls, name: str) -> SharedFile:
        folder = os.environ.get(MULTIPROC_DIR)
        return cls(Path(folder) / name if folder else None)

    def write(self, text: str) -> None:
        assert self.path is not None
        write_atomically(self.path, text)

    def news(self) -> str | None:
        """What it says, if it has changed since the last look; None as well if that was only a moment ago."""
        if self.path is None or (now := time.monotonic()) < self._next:
            return None
        self._next = now + _EVERY_S
        try:
            seen = self.path.stat().st_mtime_ns
            if seen == self._seen:
                return None
            text = self.path.read_text()
        except OSError:
            return None
        self._seen = seen
        return text


class RunLevel:
    """The level that serves now: ``current``, as of the last :meth:`look`."""

    def __init__(self, start: Level) -> None:
        self.current = start
        self.file = SharedFile.of_this_server(LEVEL)

    def look(self) -> Level:
        news = _LEVELS.get(self.file.news() or "")
        if news is not None and news != self.current:
            logger.info("ecoserve: level %s (was %s)", news, self.current)
            self.current = news
        return self.current
