"""The event log: one JSON line per event. Writing never holds up or breaks scheduling.

Lines are written when there are many, when the engine is idle, and at exit; a log that cannot be written, or has
reached its size, ends with one warning.
"""

from __future__ import annotations

import atexit
import json
import logging
from dataclasses import asdict
from pathlib import Path

from ecoserve.errors import ConfigError
from ecoserve.serving.core.counters import Event

_log = logging.getLogger(__name__)

#: Characters gathered before they are written.
_CHUNK = 65_536


class EventLog:
    """Appends events to ``path`` until ``most_mb`` megabytes were written; each engine needs its own file.

    Raises:
        ConfigError: if the file cannot be opened.
    """

    def __init__(self, path: Path, most_mb: float) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a", encoding="utf-8")
        except OSError as error:
            raise ConfigError(
                f"cannot be written ({error.strerror or error})", where=f"event_log {path}", fix="name another file"
            ) from error
        self._path = path
        self._left = int(most_mb * 1e6)
        self._lines: list[str] = []
        self._gathered = 0
        atexit.register(self.close)

    def __call__(self, event: Event) -> None:
        if self._file.closed:
            return
        line = json.dumps(asdict(event), separators=(",", ":")) + "\n"
        self._left -= len(line)
        if self._left < 0:
            self._end("has reached its size (event_log_mb)")
            return
        self._lines.append(line)
        self._gathered += len(line)
        if self._gathered >= _CHUNK:
            self.flush()

    def flush(self) -> None:
        if not self._lines or self._file.closed:
            return
        lines, self._lines, self._gathered = self._lines, [], 0
        try:
            self._file.write("".join(lines))
            self._file.flush()
        except OSError as error:
            self._end(f"cannot be written any more ({error.strerror or error})")

    def close(self) -> None:
        """Write the rest and close the file; more events are ignored."""
        self.flush()
        if not self._file.closed:
            self._file.close()

    def _end(self, why: str) -> None:
        _log.warning("event log %s %s; no more events are written", self._path, why)
        lines, self._lines = self._lines, []
        try:
            self._file.write("".join(lines))
            self._file.close()
        except OSError:
            pass
