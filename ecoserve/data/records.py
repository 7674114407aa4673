"""What a trace is, once it is loaded: one record per request, in any format. Plain values."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from operator import attrgetter
from typing import Any, Final

from ecoserve.data.parameters import RequestParameters

#: Roles in use; formats map their own names for them to these. Others (``tool``, ...) may appear in a context.
USER: Final = "user"
ASSISTANT: Final = "assistant"
SYSTEM: Final = "system"
#: What a report states of arrivals that are no joint clock's.
LOCAL_TIMES: Final = "arrivals count from the start of their session"
#: Tokens of a block of prefix hashes where a trace does not say otherwise (Mooncake's).
PREFIX_BLOCK: Final = 512


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a chat: its role (``user``, ``assistant``, ``system``, ...) and its text."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Record:
    """One request and what is known of its answer.

    Attributes:
        conversation: id of the conversation, unique within the trace.
        turn: 0-based index of this exchange in its conversation. Exchanges that were dropped keep their index.
        prompt: the text asked now (the last user message); ``None`` in a trace of lengths only.
        messages: the whole context, the prompt last; ``()`` if no more than the prompt is known (see :meth:`chat`).
        response: the answer's text as the trace has it; lengths that a field gave may be another model's. Never a
            feature.
        response_tokens: the answer's length in tokens, EOS included where that is known.
        prompt_tokens: length of the whole context in tokens.
        sample_tokens: lengths of *other* answers sampled for the same prompt. Never a feature.
        model: the model that gave the answer.
        arrival_s: arrival, in seconds on the trace's own clock.
        split: what the trace itself calls this row (``"train"``, ``"dev"``), else ``None``.
        censored: the answer was cut off, so that its length is only a lower bound.
        sample: which of several answers to the same request this is, 0-based.
        finish_reason: why the answer ended, as the server said it (``"stop"``, ``"length"``, ...).
        max_tokens: the most tokens that the request allowed.
        prefix_hashes: ids of the prompt's consecutive blocks of ``prefix_block_tokens`` tokens; equal ids at equal
            places are the same tokens, which a prefix cache keeps once.
        thinking_tokens: how many of ``response_tokens`` were thinking; ``None`` where that is not known.
        think_s: in a closed loop, seconds from the end of the conversation's last answer to this request.
        stop, tools, thinking, response_format: as in :class:`~ecoserve.data.parameters.RequestParameters`.
    """

    conversation: str
    turn: int = 0
    prompt: str | None = None
    messages: tuple[Message, ...] = ()
    response: str | None = None
    response_tokens: int | None = None
    prompt_tokens: int | None = None
    sample_tokens: tuple[int, ...] = ()
    model: str | None = None
    arrival_s: float | None = None
    split: str | None = None
    censored: bool = False
    sample: int = 0
    finish_reason: str | None = None
    max_tokens: int | None = None
    prefix_hashes: tuple[int, ...] = ()
    stop: tuple[str, ...] = ()
    tools: int = 0
    thinking: str | None = None
    response_format: str | None = None
    thinking_tokens: int | None = None
    think_s: float | None = None
    prefix_block_tokens: int = PREFIX_BLOCK

    @property
    def parameters(self) -> RequestParameters:
        return RequestParameters(self.max_tokens, self.stop, self.tools, self.thinking, self.response_format)

    def chat(self) -> tuple[Message, ...]:
        """The context as chat messages: :attr:`messages`, else the prompt as one user message, else ``()``."""
        if self.messages or self.prompt is None:
            return self.messages
        return (Message(USER, self.prompt),)

    def as_row(self) -> dict[str, Any]:
        """The record as one JSON object; fields that hold their default are left out."""
        values = ((name, getattr(self, name), default) for name, default in _DEFAULTS)
        row: dict[str, Any] = {name: value for name, value, default in values if value != default or name == "turn"}
        if self.messages:
            row["messages"] = [{"role": m.role, "content": m.content} for m in self.messages]
        for name in ("sample_tokens", "prefix_hashes", "stop"):
            if name in row:
                row[name] = list(row[name])
        return row


_DEFAULTS: Final = tuple((f.name, f.default) for f in fields(Record))
_NAMES: Final = tuple(f.name for f in fields(Record))
_VALUES: Final = attrgetter(*_NAMES)


def changed(record: Record, **changes: Any) -> Record:
    """``record`` with other values: :func:`dataclasses.replace`, in half the time."""
    return Record(**{**dict(zip(_NAMES, _VALUES(record), strict=True)), **changes})


@dataclass(slots=True)
class LoadReport:
    """What became of a file's rows: records kept, exchanges dropped by reason, peculiarities noted in what was kept.

    A row of a chat file holds several exchanges, a row without any counts as one dropped. ``stated``: how times and
    blocks were read. ``warnings``: what was guessed, or not used though it looks like a count, a time or a session.
    """

    rows_in: int = 0
    kept: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    noted: dict[str, int] = field(default_factory=dict)
    stated: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def exchanges(self) -> int:
        return self.kept + sum(self.dropped.values())

    def drop(self, reason: str, count: int = 1) -> None:
        self.dropped[reason] = self.dropped.get(reason, 0) + count

    def note(self, what: str, count: int = 1) -> None:
        """Count cases of a peculiarity that is no reason to drop anything."""
        if count:
            self.noted[what] = self.noted.get(what, 0) + count

    def counted(self) -> str:
        """What was kept, dropped and noted."""

        def listed(counts: dict[str, int]) -> str:
            return ", ".join(f"{n:,} {what}" for what, n in sorted(counts.items(), key=lambda kv: (-kv[1], kv[0])))

        line = f"{self.rows_in:,} rows in, {self.kept:,} records kept, {sum(self.dropped.values()):,} dropped"
        line += f" ({listed(self.dropped)})" if self.dropped else ""
        return line + (f"; of those kept: {listed(self.noted)}" if self.noted else "")

    def __str__(self) -> str:
        line = self.counted()
        line += f"; {'; '.join(self.stated)}" if self.stated else ""
        return line + (f"; warning: {'; warning: '.join(self.warnings)}" if self.warnings else "")


@dataclass(frozen=True, slots=True)
class Trace:
    """Records in the order of the file, and where they come from: a path or hub id, and the format it was read as.

    ``sha256`` is of the records themselves (:func:`fingerprint`). ``length_source``: where ``response_tokens`` come
    from: ``"field:NAME"``, ``"tokenizer:NAME"``, ``"trace"`` (the file's own counts), ``"characters/4.0"`` or
    ``"synthetic"``; ``prompt_length_source``: the same for ``prompt_tokens``. ``report``: what was kept and dropped.
    """

    records: tuple[Record, ...]
    source: str
    format: str
    sha256: str
    length_source: str
    report: LoadReport
    prompt_length_source: str = "trace"

    def __len__(self) -> int:
        return len(self.records)

    def with_records(self, records: Iterable[Record]) -> Trace:
        """The same trace with other records, and their fingerprint."""
        chosen = tuple(records)
        return replace(self, records=chosen, sha256=fingerprint(chosen))


def fingerprint(records: Iterable[Record]) -> str:
    """SHA-256 (hex) of the records' contents in their order."""
    digest = Fingerprint()
    digest.add(records)
    return digest.hexdigest()


_as_json: Final = json.JSONEncoder(ensure_ascii=True, separators=(",", ":")).encode


class Fingerprint:
    """:func:`fingerprint` of records that come bit by bit."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def add(self, records: Iterable[Record]) -> None:
        for record in records:
            self._digest.update(_as_json(record.as_row()).encode() + b"\n")

    def hexdigest(self) -> str:
        return self._digest.hexdigest()
