"""The state of a collection while it runs, and its result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias


@dataclass(slots=True)
class CollectProgress:
    """The state of a running collection.

    Attributes:
        total, earlier: (prompt, sample) pairs in all; of these, answered or refused in earlier runs.
        answered, refused, failed: pairs settled by this run.
        tokens: generated tokens of this run's answers.
        sent, retries, open: requests sent, repetitions included; repetitions; requests under way.
        elapsed_s: seconds since this run's first request.
        note: what all requests wait for, or nothing.
        ending: a signal has come, and no new request is sent.
    """

    total: int
    earlier: int
    answered: int = 0
    refused: int = 0
    failed: int = 0
    tokens: int = 0
    sent: int = 0
    retries: int = 0
    open: int = 0
    elapsed_s: float = 0.0
    note: str = ""
    ending: bool = False

    @property
    def settled(self) -> int:
        """Pairs that this run need not ask any more: earlier ones, and those of this run, failures included."""
        return self.earlier + self.answered + self.refused + self.failed

    @property
    def tokens_per_s(self) -> float:
        """Generated tokens a second, in this run."""
        return self.tokens / self.elapsed_s if self.elapsed_s > 0 else 0.0

    @property
    def left_s(self) -> float | None:
        """Seconds left at this run's pace; None before the first outcome."""
        now = self.settled - self.earlier
        return self.elapsed_s / now * (self.total - self.settled) if now else None


Progress: TypeAlias = Callable[[CollectProgress], None]


@dataclass(frozen=True, slots=True)
class CollectResult:
    """The result of a collection.

    Attributes:
        output: the trace that was written.
        model: the model that answered.
        prompts: different prompts asked.
        rows, rows_earlier: answers in the trace; of these, collected by earlier runs.
        refused, missing: samples that the server refused; that failed, left out because of ``allow_missing``.
        censored: rows whose answer was cut off.
        tokens: sum of all rows' lengths.
        requests_sent, retries: of this run.
        finish_reasons: rows by finish reason.
    """

    output: Path
    model: str
    prompts: int
    rows: int
    rows_earlier: int
    refused: int
    missing: int
    censored: int
    tokens: int
    requests_sent: int
    retries: int
    finish_reasons: dict[str, int] = field(default_factory=dict)


class CollectInterrupted(KeyboardInterrupt):
    """The run was stopped by ``signal`` (its number); what was answered is in the journal."""

    def __init__(self, signal: int, kept: int, total: int, journal: Path) -> None:
        self.signal = signal
        super().__init__(f"{kept:,} of {total:,} answers are kept in {journal}")
