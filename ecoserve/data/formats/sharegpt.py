"""ShareGPT: one conversation a row (``id``, ``conversations`` of ``from`` and ``value``).

Rule: its exchanges are those of :mod:`ecoserve.data.formats.turns`.
"""

from __future__ import annotations

from collections.abc import Iterator

from ecoserve.data.formats.base import Exchange, Reject, Row
from ecoserve.data.formats.turns import base_of, exchanges


class ShareGPT:
    """The format of ShareGPT exports, also with ``role``/``content`` instead of ``from``/``value``."""

    name = "sharegpt"
    looks_like = "id, conversations[].from, conversations[].value"
    own_ids = False

    def matches(self, row: Row) -> bool:
        """Whether the row has a list of conversations, or an empty place for one."""
        turns = row.get("conversations")
        if turns is None:
            return "conversations" in row and "id" in row
        return isinstance(turns, list) and all(
            isinstance(t, dict) and ("from" in t or "role" in t) and ("value" in t or "content" in t) for t in turns
        )

    def read(self, row: Row, index: int) -> Iterator[Exchange | Reject]:
        """The exchanges of one conversation, in order."""
        turns = row.get("conversations")
        if not isinstance(turns, list) or not turns:
            yield Reject("no conversation" if not turns else "conversation is not a list")
            return
        yield from exchanges(turns, base_of(row, index), row)
