"""The journal of a collection: what has been answered, so that a run can be killed at any moment and go on.

Rules: one line per finished (prompt, sample), appended whole with one write; a line counts once its newline is there.
A torn end (a kill, a full disk) is cut off when the journal is opened, and what it was about is asked again. A (prompt,
sample) is answered once: of two lines the first counts. What the answers depend on is written beside them, and a run
with other settings is refused. A lock that ends with its process keeps a second collector out.

The folder ``OUTPUT.journal``: ``settings.json``, ``prompts.jsonl`` (the requests), ``answers.jsonl``, ``lock``.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import numpy as np

from ecoserve.data import Record
from ecoserve.data.formats.base import Exchange
from ecoserve.data.formats.records import Records
from ecoserve.errors import ConfigError, RunError
from ecoserve.files import replacing, write_atomically
from ecoserve.serving.collect.entries import from_line, to_line
from ecoserve.serving.collect.lines import NumberedLines, line_at, lock_folder
from ecoserve.serving.collect.replies import Answer, Failed, Outcome

VERSION: Final = 1
_OPEN: Final = 0
_REFUSED: Final = -1


def journal_of(output: Path) -> Path:
    """The folder of the journal of a trace that is being collected."""
    return output.with_name(f"{output.name}.journal")


class Journal:
    """One collection's journal, locked for this process. Close it, or use it as a context manager.

    Args:
        folder: where it is; made if it is not there.

    Raises:
        ConfigError: if another process has it.
        RunError: if it cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock: int | None = lock_folder(folder)
        self._answers: int | None = None
        self._size = 0
        self._prompts: NumberedLines | None = None
        self.prompts = 0
        self.samples = 0
        #: [prompts, samples]: response length in tokens; 0: not answered; -1: refused
        self.tokens = np.zeros((0, 0), np.int32)
        self._places = np.zeros((0, 0), np.int64)

    # -- beginning and going on ----------------------------------------------------------------------------

    def settings(self) -> dict[str, Any] | None:
        """What was written when this collection began; None if it has not.

        Raises:
            ConfigError: if it is of another version, or damaged.
        """
        path = self.folder / "settings.json"
        fix = f"remove {self.folder} to begin anew"
        try:
            found = json.loads(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise ConfigError("cannot be read", where=str(path), fix=fix) from error
        if not isinstance(found, dict) or found.get("ecoserve_collect") != VERSION:
            raise ConfigError("is of another version of ecoserve", where=str(path), fix=fix)
        if not isinstance(found.get("identity"), dict) or not {"model", "prompts", "prompts_sha256"} <= found.keys():
            raise ConfigError("is damaged", where=str(path), fix=fix)
        return found

    def keep_prompts(self, chosen: Iterable[tuple[Record, str]]) -> None:
        """Write the requests down, before :meth:`begin`; what an unfinished beginning left is taken away."""
        (self.folder / "answers.jsonl").unlink(missing_ok=True)
        with replacing(self.folder / "prompts.jsonl") as file:
            for record, _ in chosen:
                file.write(json.dumps(record.as_row(), separators=(",", ":")).encode() + b"\n")

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Write down what the answers depend on: from here on there is something to go on with."""
        write_atomically(
            self.folder / "settings.json", json.dumps({"ecoserve_collect": VERSION, **settings}, indent=2) + "\n"
        )

    def open(self, samples: int, prompts: int) -> int:
        """Read what is there and be ready for more; returns how many lines had to be passed over as damaged.

        Args:
            samples: answers to each prompt.
            prompts: how many prompts there must be.

        Raises:
            ConfigError: if the prompts are not all there.
        """
        path = self.folder / "prompts.jsonl"
        self._prompts = NumberedLines(path) if path.exists() else None
        if self._prompts is None or len(self._prompts) != prompts:
            raise ConfigError("is damaged", where=str(path), fix=f"remove {self.folder} to begin anew")
        self.prompts, self.samples = prompts, samples
        self.tokens = np.zeros((self.prompts, samples), np.int32)
        self._places = np.full((self.prompts, samples), -1, np.int64)
        path = self.folder / "answers.jsonl"
        self._answers = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        damaged = 0
        place = 0
        with path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break  # torn: whoever wrote it was killed
                damaged += not self._read(line, place)
                place += len(line)
        if place < os.fstat(self._answers).st_size:
            os.ftruncate(self._answers, place)
        self._size = place
        return damaged

    def _read(self, line: bytes, place: int) -> bool:
        found = from_line(line)
        if found is None or found[0] >= self.prompts or found[1] >= self.samples:
            return False
        self._note(*found, place)
        return True

    def _note(self, prompt: int, sample: int, outcome: Outcome, place: int) -> None:
        """What was written at ``place`` settles the sample, unless it failed, or an earlier line has."""
        if not isinstance(outcome, Failed) and self.tokens[prompt, sample] == _OPEN:
            self.tokens[prompt, sample] = outcome.tokens if isinstance(outcome, Answer) else _REFUSED
            self._places[prompt, sample] = place

    # -- while it runs -------------------------------------------------------------------------------------

    def record(self, prompt: int) -> Record:
        """Request number ``prompt``."""
        assert self._prompts is not None
        found = next(Records().read(json.loads(self._prompts[prompt]), prompt))
        assert isinstance(found, Exchange), found
        return found.record

    def to_do(self) -> Iterator[tuple[int, int]]:
        """Every (prompt, sample) without an answer, all samples of a prompt after each other."""
        for prompt in range(self.prompts):
            for sample in range(self.samples):
                if self.tokens[prompt, sample] == _OPEN:
                    yield prompt, sample

    def add(self, prompt: int, sample: int, outcome: Outcome) -> None:
        """Write down how one request ended.

        Raises:
            RunError: if it cannot be written; the journal is as before then.
        """
        assert self._answers is not None
        assert self.tokens[prompt, sample] == _OPEN, (prompt, sample)
        line = to_line(prompt, sample, outcome)
        self._append(line)
        self._note(prompt, sample, outcome, self._size)
        self._size += len(line)

    def _append(self, line: bytes) -> None:
        assert self._answers is not None
        problem = "the disk took half a line"
        try:
            if os.write(self._answers, line) == len(line):
                return
        except OSError as error:
            problem = error.strerror or str(error)
        os.ftruncate(self._answers, self._size)
        raise RunError(f"cannot be written ({problem})", where=str(self.folder), fix="make room and run it again")

    def sync(self) -> None:
        """See that all of it is on the disk, should the machine fail (a kill loses nothing in any case).

        Raises:
            RunError: if it cannot be written.
        """
        if self._answers is None:
            return
        try:
            os.fdatasync(self._answers)
        except OSError as error:
            raise RunError(f"cannot be written ({error.strerror or error})", where=str(self.folder)) from error

    # -- what there is -------------------------------------------------------------------------------------

    @property
    def answered(self) -> int:
        """(prompt, sample) pairs with an answer."""
        return int((self.tokens > 0).sum())

    @property
    def refused(self) -> int:
        """(prompt, sample) pairs that the server did not take."""
        return int((self.tokens == _REFUSED).sum())

    @property
    def open_pairs(self) -> int:
        """(prompt, sample) pairs that are still to be asked."""
        return int((self.tokens == _OPEN).sum())

    def answers(self, prompt: int) -> list[tuple[int, Answer]]:
        """The answers to one prompt, by sample."""
        assert self._answers is not None
        out = []
        for sample in np.flatnonzero(self.tokens[prompt] > 0).tolist():
            found = from_line(line_at(self._answers, int(self._places[prompt, sample])))
            assert found is not None, (prompt, sample)
            assert isinstance(found[2], Answer), found
            out.append((sample, found[2]))
        return out

    # -- ending --------------------------------------------------------------------------------------------

    def remove(self) -> None:
        """Take the journal away: the trace is written, or there was never anything in it.

        Only its own files, and the folder if nothing else is in it.
        """
        # Without its settings it is no journal any more, should this be interrupted; the lock goes last.
        for name in ("settings.json", "answers.jsonl", "prompts.jsonl", ".settings.json.*", ".prompts.jsonl.*", "lock"):
            for path in self.folder.glob(name):
                path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.folder.rmdir()

    def close(self) -> None:
        """Sync, and let go of the lock."""
        if self._answers is not None:
            self.sync()
            os.close(self._answers)
            self._answers = None
        if self._prompts is not None:
            self._prompts.close()
            self._prompts = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
