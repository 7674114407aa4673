"""The event log: one JSON line per event. Writing never holds up or breaks scheduling.

Lines are written when there are many, when the engine is idle, and at exit; a log that cannot be written, or has
reached its size, ends with one warning. It ends with a whole line, on a full disk too.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
from contextlib import suppress
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
            self._file = path.open("ab", buffering=0)
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
            self.close()
            self._warn("has reached its size (event_log_mb)")
            return
        self._lines.append(line)
        self._gathered += len(line)
        if self._gathered >= _CHUNK:
            self.flush()

    def flush(self) -> None:
        if not self._lines or self._file.closed:
            return
        data = "".join(self._lines).encode()
        self._lines, self._gathered = [], 0
        begin, done = os.fstat(self._file.fileno()).st_size, 0
        try:
            while done < len(data):
                done += self._file.write(data[done:])
        except OSError as error:
            with suppress(OSError):
                self._file.truncate(begin + data.rfind(b"\n", 0, done) + 1)
            with suppress(OSError):
                self._file.close()
            self._warn(f"cannot be written any more ({error.strerror or error})")

    def close(self) -> None:
        """Write the rest and close the file; more events are ignored."""
        self.flush()
        with suppress(OSError):
            self._file.close()

    def _warn(self, why: str) -> None:
        _log.warning("event log %s %s; no more events are written", self._path, why)
