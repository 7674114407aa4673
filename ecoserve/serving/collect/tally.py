"""What happens during a collection, in numbers: for the progress while it runs, and for its result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias


@dataclass(slots=True)
class CollectProgress:
    """Where a collection is.

    Attributes:
        total: (prompt, sample) pairs in all.
        earlier: answered or refused in former runs of this collection.
        answered, refused, failed: pairs that this run has settled.
        tokens: generated tokens of this run's answers.
        sent: requests sent, repetitions among them.
        retries: repetitions.
        open: requests under way.
        elapsed_s: seconds since this run's first request.
        note: what everybody waits for, or nothing.
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
        """Pairs that need not be asked any more, those of former runs among them, and those that failed."""
        return self.earlier + self.answered + self.refused + self.failed

    @property
    def tokens_per_s(self) -> float:
        """Generated tokens a second, in this run."""
        return self.tokens / self.elapsed_s if self.elapsed_s > 0 else 0.0

    @property
    def left_s(self) -> float | None:
        """Seconds left at this run's pace; None while nothing is known of it."""
        now = self.answered + self.refused + self.failed
        return self.elapsed_s / now * (self.total - self.settled) if now else None


Progress: TypeAlias = Callable[[CollectProgress], None]


@dataclass(frozen=True, slots=True)
class CollectResult:
    """What came of a collection.

    Attributes:
        output: the trace that was written.
        model: whose lengths these are.
        prompts, samples: different prompts asked, answers wanted to each.
        rows: answers in the trace.
        rows_earlier: of these, collected by former runs.
        refused: pairs that the server did not take (a prompt too long, say).
        missing: pairs that failed, left out because ``allow_missing`` says so.
        damaged: lines of the journal that could not be read; what they were about was asked again.
        censored: rows whose answer was cut off.
        tokens: sum of all rows' lengths.
        finish_reasons: rows by finish reason.
        requests_sent, retries, duration_s: of this run.
        source: what became of the source's rows, in words.
    """

    output: Path
    model: str
    prompts: int
    samples: int
    rows: int
    rows_earlier: int
    refused: int
    missing: int
    damaged: int
    censored: int
    tokens: int
    requests_sent: int
    retries: int
    duration_s: float
    source: str
    finish_reasons: dict[str, int] = field(default_factory=dict)

    def summary(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {**asdict(self), "output": str(self.output)}


class CollectInterrupted(KeyboardInterrupt):
    """The run was stopped by a signal; what was answered is in the journal.

    Attributes:
        signal: the signal's number.
        kept: (prompt, sample) pairs settled so far.
        total: pairs in all.
        journal: where they are.
    """

    def __init__(self, signal: int, kept: int, total: int, journal: Path) -> None:
        self.signal = signal
        self.kept = kept
        self.total = total
        self.journal = journal
        super().__init__(f"{kept:,} of {total:,} answers are kept in {journal}")
