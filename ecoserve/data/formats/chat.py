"""Chats: one conversation a row (``messages`` or ``conversation`` of ``role`` and ``content``).

Its exchanges are those of :mod:`ecoserve.data.formats.turns`. This is the layout of OpenAI's fine-tuning files,
LMSYS-Chat and WildChat. Where the last question stands in the messages and its answer in a field of its own
(``response``, ``completion``), that is the last message.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from ecoserve.data.fields import Row, first_of
from ecoserve.data.formats.base import Exchange, Format, Reject
from ecoserve.data.formats.turns import conversation
from ecoserve.data.records import ASSISTANT


def _turns(row: Row) -> Any:
    return first_of(row, "messages", "conversation")


def _matches(row: Row) -> bool:
    turns = _turns(row)
    return isinstance(turns, list) and all(isinstance(t, dict) and "role" in t for t in turns)


def _read(row: Row, index: int) -> Iterator[Exchange | Reject]:
    turns, answer = _turns(row), first_of(row, "response", "completion")
    last = turns[-1] if isinstance(turns, list) and turns else None
    if isinstance(answer, str) and isinstance(last, dict) and last.get("role") != ASSISTANT:
        turns = [*turns, {"role": ASSISTANT, "content": answer}]
    return conversation(turns, row, index)


FORMAT: Final = Format(
    "chat",
    looks_like="messages (or conversation)[].role, [].content",
    about="fine-tuning files, LMSYS-Chat, WildChat; content as text or in parts, tool calls, reasoning: "
    "counts, model, time, finish reason, `max_tokens`",
    matches=_matches,
    read=_read,
)
