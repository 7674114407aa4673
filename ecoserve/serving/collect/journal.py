"""The journal of a collection: one SQLite file, ``OUTPUT.journal``, from which an interrupted run goes on.

Every finished sample is a transaction of its own in a write-ahead log: a kill at any moment loses none of them. The
process that has the journal open holds an exclusive lock on it, which ends with the process.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from ecoserve.data import Record
from ecoserve.data.formats import get_format
from ecoserve.data.formats.base import Exchange
from ecoserve.errors import ConfigError, RunError
from ecoserve.serving.collect.endpoint import Answer, Outcome, Refused

VERSION: Final = 3
_PRAGMAS: Final = ("locking_mode = EXCLUSIVE", "journal_mode = WAL", "synchronous = NORMAL")
_TABLES: Final = (
    "settings (value TEXT NOT NULL)",
    "prompts (prompt INTEGER PRIMARY KEY, record TEXT NOT NULL)",
    # reason: the finish reason of an answer, else why there is none
    """outcomes (
        prompt INTEGER, sample INTEGER, state TEXT NOT NULL CHECK (state IN ('answered', 'refused', 'failed')),
        reason TEXT NOT NULL, tokens INTEGER, prompt_tokens INTEGER, text TEXT, thinking INTEGER,
        PRIMARY KEY (prompt, sample)
    )""",
)
#: Only a failure is ever replaced.
_ADD: Final = """
    INSERT INTO outcomes VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET
    state = excluded.state, reason = excluded.reason, tokens = excluded.tokens,
    prompt_tokens = excluded.prompt_tokens, text = excluded.text, thinking = excluded.thinking
    WHERE state = 'failed'
"""


def journal_of(output: Path) -> Path:
    return output.with_name(f"{output.name}.journal")


class Journal(contextlib.AbstractContextManager["Journal"]):
    """One collection's journal, locked for this process; a context manager.

    Once loaded, it knows the numbers of ``prompts`` and of ``samples`` to each, and how many (prompt, sample) pairs
    were ``answered`` and ``refused``. Raises ConfigError if another process has it open, or it is damaged or of another
    version; RunError if it cannot be written; so do all methods.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.prompts = self.samples = self.answered = self.refused = 0
        if path.is_dir():
            fix = f"finish it with that version, or remove {path} to start over"
            raise ConfigError("is a journal of an earlier version of ecoserve", where=str(path), fix=fix)
        with self._errors():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, timeout=0, isolation_level=None)
            try:
                self._lock()
            except BaseException:
                self._db.close()
                raise

    def _lock(self) -> None:
        for pragma in _PRAGMAS:
            self._db.execute(f"PRAGMA {pragma}")
        with self._db:
            self._db.execute("BEGIN EXCLUSIVE")
            (version,) = self._db.execute("PRAGMA user_version").fetchone()
            if version not in (0, VERSION):
                fix = f"remove {self.path} to start over"
                raise ConfigError("is of another version of ecoserve", where=str(self.path), fix=fix)
            if version == 0:
                for table in _TABLES:
                    self._db.execute(f"CREATE TABLE {table}")
                self._db.execute(f"PRAGMA user_version = {VERSION}")

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """Raise SQLite's and the file system's errors as ours."""
        where = str(self.path)
        try:
            yield
        except OSError as error:
            raise RunError(f"cannot be written ({error.strerror or error})", where=where) from error
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", 0)
            # The second: its former owner has removed the file between our opening and locking it.
            if code & 0xFF == sqlite3.SQLITE_BUSY or code == sqlite3.SQLITE_READONLY_DBMOVED:
                fix = "wait for it, or name another output"
                raise ConfigError("another collector is writing to it", where=where, fix=fix) from error
            if code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                raise ConfigError("is damaged", where=where, fix=f"remove {where} to start over") from error
            raise RunError(f"cannot be written ({error})", where=where, fix="make room and run it again") from error

    # -- starting and resuming -----------------------------------------------------------------------------

    def settings(self) -> dict[str, Any] | None:
        """What :meth:`begin` stored; None if this collection has not begun."""
        with self._errors():
            row = self._db.execute("SELECT value FROM settings").fetchone()
        return dict(json.loads(row[0])) if row else None

    def keep_prompts(self, chosen: Iterable[Record]) -> None:
        """Store the requests, before :meth:`begin`; what an unfinished start has left is deleted."""
        rows = ((number, json.dumps(record.as_row())) for number, record in enumerate(chosen))
        with self._errors(), self._db:
            self._db.execute("BEGIN")
            self._db.execute("DELETE FROM outcomes")
            self._db.execute("DELETE FROM prompts")
            self._db.executemany("INSERT INTO prompts VALUES (?, ?)", rows)

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Store what the answers depend on: from here on there is something to resume."""
        with self._errors():
            self._db.execute("INSERT INTO settings VALUES (?)", (json.dumps(settings),))

    def load(self, samples: int, prompts: int) -> None:
        """Count what is there; ConfigError if these are not all ``prompts``."""
        with self._errors():
            (found,) = self._db.execute("SELECT count(*) FROM prompts").fetchone()
            counts = dict(self._db.execute("SELECT state, count(*) FROM outcomes GROUP BY state"))
        if found != prompts:
            raise ConfigError("is damaged", where=str(self.path), fix=f"remove {self.path} to start over")
        self.prompts, self.samples = prompts, samples
        self.answered, self.refused = counts.get("answered", 0), counts.get("refused", 0)

    # -- while it runs -------------------------------------------------------------------------------------

    @property
    def open_pairs(self) -> int:
        return self.prompts * self.samples - self.answered - self.refused

    def record(self, prompt: int) -> Record:
        with self._errors():
            (row,) = self._db.execute("SELECT record FROM prompts WHERE prompt = ?", (prompt,)).fetchone()
        found = next(iter(get_format("records").read(json.loads(row), prompt)))
        assert isinstance(found, Exchange), found
        return found.record

    def to_do(self) -> Iterator[tuple[int, int]]:
        """Every (prompt, sample) that was neither answered nor refused, all samples of a prompt in a row."""
        query = "SELECT sample FROM outcomes WHERE prompt = ? AND state != 'failed'"
        for prompt in range(self.prompts):
            with self._errors():
                settled = {sample for (sample,) in self._db.execute(query, (prompt,))}
            yield from ((prompt, sample) for sample in range(self.samples) if sample not in settled)

    def add(self, prompt: int, sample: int, outcome: Outcome) -> None:
        values: tuple[str | int | None, ...]
        if isinstance(outcome, Answer):
            values = ("answered", outcome.reason, outcome.tokens, outcome.prompt_tokens)
            values += (outcome.text, outcome.thinking)
        else:
            state = "refused" if isinstance(outcome, Refused) else "failed"
            values = (state, outcome.why, None, None, None, None)
        with self._errors():
            added = self._db.execute(_ADD, (prompt, sample, *values)).rowcount
        assert added == 1, f"sample {sample} of prompt {prompt} is settled already"
        self.answered += isinstance(outcome, Answer)
        self.refused += isinstance(outcome, Refused)

    def finish_reasons(self) -> dict[str, tuple[int, int]]:
        query = "SELECT reason, count(*), sum(tokens) FROM outcomes WHERE state = 'answered' GROUP BY reason"
        with self._errors():
            return {reason: (count, tokens) for reason, count, tokens in self._db.execute(query)}

    def sync(self) -> None:
        """Bring all of it to the disk, should the machine fail (a kill loses nothing in any case)."""
        with self._errors():
            self._db.execute("PRAGMA wal_checkpoint")

    def answers(self, prompt: int) -> list[tuple[int, Answer]]:
        query = "SELECT sample, tokens, reason, prompt_tokens, text, thinking FROM outcomes"
        with self._errors():
            rows = self._db.execute(f"{query} WHERE prompt = ? AND state = 'answered' ORDER BY sample", (prompt,))
            return [(sample, Answer(*values)) for sample, *values in rows]

    # -- ending --------------------------------------------------------------------------------------------

    def remove(self) -> None:
        """Delete the journal, under its lock: the trace is written, or there was nothing in it."""
        with contextlib.suppress(sqlite3.Error):
            self._db.execute("PRAGMA journal_mode = DELETE")  # takes the write-ahead log away
        self.path.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        with self._errors():
            self._db.close()

    def __exit__(self, *_: object) -> None:
        self.close()
