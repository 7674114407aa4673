"""Files of lines that are read by their number or place, and a folder's lock: what the journal stands on.

Rule: texts stay on the disk; memory holds eight bytes a line.
"""

from __future__ import annotations

import fcntl
import os
from array import array
from pathlib import Path
from typing import Final

from ecoserve.errors import ConfigError, RunError

_PIECE: Final = 1 << 16


class NumberedLines:
    """The lines of a file by their number, 0-based."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._places = array("q")
        place = 0
        for line in self._file:
            self._places.append(place)
            place += len(line)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, number: int) -> bytes:
        self._file.seek(self._places[number])
        return self._file.readline()

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()


def line_at(file: int, place: int) -> bytes:
    """The line that begins at byte ``place`` of an open file, with its newline."""
    pieces = []
    while piece := os.pread(file, _PIECE, place):
        end = piece.find(b"\n") + 1
        pieces.append(piece[: end or None])
        if end:
            break
        place += len(piece)
    return b"".join(pieces)


def lock_folder(folder: Path) -> int:
    """Make ``folder`` if need be and lock it for this process; returns the open file that is the lock.

    The lock ends when that file is closed, or its process ends, however that happens.

    Raises:
        ConfigError: if another process has it.
        RunError: if the folder cannot be made.
    """
    path = folder / "lock"
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:
            continue  # its owner has just taken the folder away
        except OSError as error:
            raise RunError(f"cannot be written ({error.strerror or error})", where=str(folder)) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            here = os.stat(path)
        except FileNotFoundError:
            os.close(file)
            continue
        except OSError as error:
            os.close(file)
            what = "another collector is writing to it"
            raise ConfigError(what, where=str(folder), fix="wait for it, or name another output") from error
        if (here.st_dev, here.st_ino) == (os.fstat(file).st_dev, os.fstat(file).st_ino):
            return file
        os.close(file)  # we have locked what its owner had taken away meanwhile
