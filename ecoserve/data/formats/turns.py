"""Walking through a conversation: which of its messages are answers, and what came before each.

Every answer that follows a user's or a tool's message is one exchange, whose context is all that came before it.
A conversation may begin with an answer (published samples cut long ones into pieces): that answer is context, not
an exchange. A message that is no text breaks the context, so that the exchanges after it are dropped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Final

from ecoserve.data.fields import (
    CHAT_IDS,
    RESPONSE_COUNTS,
    Row,
    finish_reason_of,
    first_of,
    id_of,
    limit_of,
    text_or_none,
    times_of,
    unusable_text,
    usage_of,
    was_cut_off,
    whole,
)
from ecoserve.data.formats.base import Exchange, Reject
from ecoserve.data.formats.messages import ASKS, TEXT_LEFT_OUT, ChatMessage, read_message
from ecoserve.data.records import ASSISTANT, SYSTEM, Message, Record

LATE_START: Final = "conversation starts with an answer"
ANSWER_TIME: Final = "with the time of the answer as arrival"


@dataclass(slots=True)
class Context:
    """What came before an answer, message by message.

    Attributes:
        messages: those that are text.
        answers: how many exchanges there have been.
        broken: whether something was said that is no text.
        notes: peculiarities of the messages, each once.
        last: the message before, if any.
    """

    messages: list[Message] = field(default_factory=list)
    answers: int = 0
    broken: bool = False
    notes: tuple[str, ...] = ()
    last: ChatMessage | None = None

    def asks(self) -> bool:
        """Whether the next answer is an answer to something."""
        return self.last is not None and self.last.role in ASKS

    def problem(self) -> str | None:
        """Why the context as it stands is no prompt, or ``None``."""
        question = self.last.text if self.last is not None else None
        return unusable_text(question, "prompt") or ("context is not text" if self.broken else None)

    def add(self, said: ChatMessage) -> None:
        """Add what was said."""
        if said.role == ASSISTANT and self.asks():
            self.answers += 1
        problem = unusable_text(said.text, "message")
        if said.role is not None and problem is None:
            self.messages.append(Message(said.role, str(said.text)))
        else:
            # An empty message is left out; one that is no text makes the context unusable.
            self.broken = self.broken or problem != "empty message"
        if TEXT_LEFT_OUT in said.notes and TEXT_LEFT_OUT not in self.notes:
            self.notes = (*self.notes, TEXT_LEFT_OUT)
        self.last = said


def conversation(turns: object, row: Row, index: int) -> Iterator[Exchange | Reject]:
    """The exchanges of row number ``index``, whose messages are ``turns``, in order."""
    if not isinstance(turns, list) or not turns:
        yield Reject("no conversation" if not turns else "conversation is not a list")
        return
    yield from exchanges(turns, _base(row, index), row)


def _base(row: Row, index: int) -> Record:
    """What all exchanges of a row have in common: its id (else its number), model and split."""
    return Record(
        conversation=id_of(row, CHAT_IDS, index),
        model=text_or_none(row.get("model")),
        split=text_or_none(row.get("split")),
    )


def exchanges(turns: Sequence[object], base: Record, row: Row) -> Iterator[Exchange | Reject]:
    """The exchanges of a conversation in order; one :class:`Reject` if it has none.

    ``base`` is what they have in common, ``row`` the fields beside the messages ``turns``; those of a conversation with
    one answer are about that answer.
    """
    context = Context()
    said = [read_message(turn) for turn in turns]
    pairs = sum(b.role == ASSISTANT and a.role in ASKS for a, b in pairwise(said))
    if not pairs:
        yield Reject("no question with an answer")
        return
    for message in said:
        if message.role == ASSISTANT and context.asks():
            problem = context.problem()
            yield Reject(problem) if problem else _of_chat(base, context, message, row if pairs == 1 else None)
        context.add(message)


def _of_chat(base: Record, context: Context, said: ChatMessage, row: Row | None) -> Exchange:
    fields: Mapping[str, Any] = said.fields if row is None else {**row, **said.fields}
    prompt_tokens, tokens = usage_of(fields)
    count = whole(first_of(fields, *RESPONSE_COUNTS))
    count = count if count is not None else whole(said.fields.get("tokens"))
    reason = finish_reason_of(fields)
    asked = context.last.fields if context.last is not None else {}
    arrival = times_of(asked)
    notes = list(dict.fromkeys((*said.notes, *context.notes)))
    if arrival is None and (arrival := times_of(fields)) is not None:
        notes.append(ANSWER_TIME)
    first = next((m.role for m in context.messages if m.role not in (SYSTEM, "developer")), None)
    if context.answers == 0 and first == ASSISTANT:
        notes.append(LATE_START)
    record = replace(
        base,
        turn=context.answers,
        prompt=context.messages[-1].content,
        messages=tuple(context.messages),
        response_tokens=count if count is not None else tokens,
        prompt_tokens=prompt_tokens,
        model=text_or_none(said.fields.get("model")) or base.model,
        arrival_s=arrival,
        censored=was_cut_off(reason, said.text),
        finish_reason=reason,
        max_tokens=limit_of(fields),
    )
    return exchange_of(record, said, fields, tuple(notes))


def exchange_of(record: Record, said: ChatMessage, fields: Row, notes: tuple[str, ...] = ()) -> Exchange:
    """The exchange whose answer is ``said``; an empty one counts if the file states its length."""
    answer = said.answer
    if record.response_tokens is not None and isinstance(answer, str) and not answer.strip():
        answer, notes = None, (*notes, "without a text, but with a length")
    return Exchange(record, answer, fields, notes, missing=said.missing)
