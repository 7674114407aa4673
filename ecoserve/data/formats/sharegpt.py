"""ShareGPT: one conversation a row (``id``, ``conversations`` of ``from`` and ``value``).

Rule: every answer that follows a user's message is one exchange, whose context is all that came before it. A
conversation may begin with an answer (published samples cut long ones into pieces): that answer is context, not
an exchange. A message that is no text breaks the context, so that the exchanges after it are dropped.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from ecoserve.data.formats.base import Exchange, Reject, Row, first_of, text_or_none, unusable_text, whole
from ecoserve.data.records import ASSISTANT, SYSTEM, USER, Message, Record

#: Names that ShareGPT exports use for the three roles; any other name is kept as it is, in lower case.
ROLES: Final = {
    **dict.fromkeys(("human", "user"), USER),
    **dict.fromkeys(("gpt", "chatgpt", "assistant", "bing", "bard", "claude", "model", "bot"), ASSISTANT),
    **dict.fromkeys(("system",), SYSTEM),
}


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
        name = row.get("id")
        base = Record(
            conversation=str(name) if name not in (None, "") else f"row-{index}",
            model=text_or_none(row.get("model")),
            split=text_or_none(row.get("split")),
        )
        found = False
        for item in _exchanges(turns, base):
            found = True
            yield item
        if not found:
            yield Reject("no question with an answer")


def _exchanges(turns: list[Any], base: Record) -> Iterator[Exchange | Reject]:
    context: list[Message] = []
    before: str | None = None
    question: object = None
    broken = False
    count = 0
    for turn in turns:
        role, value = _role_and_value(turn)
        if role == ASSISTANT and before == USER:
            problem = unusable_text(question, "prompt") or ("context is not text" if broken else None)
            yield Reject(problem) if problem else _exchange(base, count, context, turn, value)
            count += 1
        problem = unusable_text(value, "message")
        if role is not None and problem is None:
            context.append(Message(role, value))
        else:
            # An empty message says nothing and is left out; one that is no text may have said anything.
            broken = broken or problem != "empty message"
        before, question = role, value


def _exchange(base: Record, turn: int, context: list[Message], fields: Row, answer: object) -> Exchange:
    first = next((m.role for m in context if m.role != SYSTEM), None)
    record = Record(
        conversation=base.conversation,
        turn=turn,
        prompt=context[-1].content,
        messages=tuple(context),
        response_tokens=whole(first_of(fields, "response_tokens", "tokens")),
        model=text_or_none(fields.get("model")) or base.model,
        split=base.split,
        censored=fields.get("finish_reason") == "length",
    )
    starts_late = turn == 0 and first == ASSISTANT
    return Exchange(record, answer, fields, ("conversation starts with an answer",) if starts_late else ())


def _role_and_value(turn: object) -> tuple[str | None, Any]:
    if not isinstance(turn, dict):
        return None, None
    role = first_of(turn, "from", "role")
    value = first_of(turn, "value", "content")
    return (ROLES.get(role.lower(), role.lower()) if isinstance(role, str) else None), value
