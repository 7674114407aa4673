"""Chats: one conversation a row (``messages`` or ``conversation`` of ``role`` and ``content``).

Rule: its exchanges are those of :mod:`ecoserve.data.formats.turns`. This is the layout of OpenAI's fine-tuning files,
LMSYS-Chat and WildChat. Where the last question stands in the messages and its answer in a field of its own
(``response``, ``completion``), that is the last message.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ecoserve.data.formats.base import Exchange, Reject, Row, first_of
from ecoserve.data.formats.turns import base_of, exchanges
from ecoserve.data.records import ASSISTANT


class Chat:
    """The format of chat files."""

    name = "chat"
    looks_like = "messages (or conversation)[].role, [].content"
    own_ids = False

    def matches(self, row: Row) -> bool:
        """Whether the row has a list of messages."""
        turns = _turns(row)
        return isinstance(turns, list) and all(isinstance(t, dict) and "role" in t for t in turns)

    def read(self, row: Row, index: int) -> Iterator[Exchange | Reject]:
        """The exchanges of one conversation, in order."""
        turns = _turns(row)
        if not isinstance(turns, list) or not turns:
            yield Reject("no conversation" if not turns else "conversation is not a list")
            return
        answer = first_of(row, "response", "completion")
        last = turns[-1]
        if isinstance(answer, str) and isinstance(last, dict) and last.get("role") != ASSISTANT:
            turns = [*turns, {"role": ASSISTANT, "content": answer}]
        yield from exchanges(turns, base_of(row, index), row)


def _turns(row: Row) -> Any:
    return first_of(row, "messages", "conversation")
