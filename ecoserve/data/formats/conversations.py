"""Conversations, one a row: ShareGPT (``conversations``) and chats (``messages``), and how their messages are read.

Every answer that follows a user's or a tool's message is one exchange, whose context is all that came before it. A
conversation may begin with an answer (published samples cut long ones into pieces): that is context, no exchange. A
message that is no text breaks the context, so that the exchanges after it are dropped.

The text of a message is that of its text parts. Tool calls stand in a context as ``name(arguments)``. An answer with
calls (or with images, sounds, hidden reasoning) is not measured by its text, since not all of its tokens are in it.
Reasoning that is shown belongs to the answer, not to the context of the next turn: chat templates leave it out there.
"""

from __future__ import annotations

import json
from collections import ChainMap
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Final

from ecoserve.data.fields import Row, first_of, text_or_none, unusable_text, was_cut_off, whole
from ecoserve.data.formats.base import Exchange, Exchanges, Format, Reject, each_row
from ecoserve.data.known_fields import id_of, limit_of, named, time_of, usage_of
from ecoserve.data.measuring import THINK, THOUGHT
from ecoserve.data.records import ASSISTANT, SYSTEM, USER, Message, Record

#: Names that exports use for the three roles; any other name is kept as it is, in lower case.
ROLES: Final = {
    **dict.fromkeys(("human", "user"), USER),
    **dict.fromkeys(("gpt", "chatgpt", "assistant", "bing", "bard", "claude", "model", "bot"), ASSISTANT),
    "system": SYSTEM,
}
#: Roles after which an answer is an answer: a user, and tools.
ASKS: Final = frozenset((USER, "tool", "function", "function_response", "tool_response", "observation", "ipython"))

TEXT_LEFT_OUT: Final = "with parts left out that are not text"
WITH_REASONING: Final = "with their reasoning"
CALLS_TOOLS: Final = "answer calls tools, its tokens are not known"
NOT_ALL_TEXT: Final = "answer is more than text, its tokens are not known"
HIDDEN: Final = "answer has reasoning that is not shown, its tokens are not known"
LATE_START: Final = "conversation starts with an answer"
ANSWER_TIME: Final = "with the time of the answer as arrival"
_CALLS: Final = ("tool_use", "tool_call", "function_call")


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One message, its ``fields`` as the file has them, and its peculiarities (``notes``).

    ``role``: ``user``, ``assistant``, ``system`` or another name. ``text``: what stands in a context, as found if it is
    no text. ``answer``: the generated text, reasoning included; ``None`` if more than text was (``missing``: what).
    """

    role: str | None
    text: object
    answer: object
    missing: str | None
    fields: Row
    notes: tuple[str, ...] = ()


def read_message(message: object) -> ChatMessage:
    """Read one message; what is no object has neither role nor text."""
    if not isinstance(message, dict):
        return ChatMessage(None, None, None, None, {})
    role = first_of(message, "from", "role")
    value = first_of(message, "value", "content")
    if isinstance(value, dict):  # Arena-Hard's {"answer": ...}
        value = first_of(value, "answer", "text", "content") or value
    calls = _calls(message.get("tool_calls")) + _calls(message.get("function_call"))
    reasoning = text_or_none(first_of(message, "reasoning_content", "reasoning"))
    others = False
    if _are_objects(value):
        value, more, thought, others = _parts(value)
        calls, reasoning = calls + more, reasoning or thought
    notes = (TEXT_LEFT_OUT,) * others + (WITH_REASONING,) * (reasoning is not None)
    answer, missing = value, None
    if calls:
        answer, missing = None, CALLS_TOOLS
        value = "\n".join([value, *calls] if text_or_none(value) else calls)
    elif others:
        answer, missing = None, NOT_ALL_TEXT
    elif reasoning is not None and (value is None or isinstance(value, str)):
        # Without an answer it was still thinking when it was cut off.
        answer = f"{THINK}\n{reasoning}\n" + (f"{THOUGHT}\n\n{value}" if value and value.strip() else "")
    role = ROLES.get(role.lower(), role.lower()) if isinstance(role, str) else None
    if reasoning is not None and value is None:
        value = ""
    elif role == ASSISTANT and isinstance(value, str) and THOUGHT in value:
        value = value.partition(THOUGHT)[2].lstrip()
    return ChatMessage(role, value, answer, missing, message, notes)


def _are_objects(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(v, dict) for v in value)


def _parts(parts: list[Any]) -> tuple[object, list[str], str | None, bool]:
    """Text (the parts themselves, if they hold none), tool calls, reasoning, and whether something else is left out."""
    texts: list[str] = []
    calls: list[str] = []
    thoughts: list[str] = []
    others = False
    for part in parts:
        kind = part.get("type")
        text = first_of(part, "text", "refusal")
        if kind in _CALLS:
            calls += _calls(part)
        elif isinstance(text, str):
            (thoughts if kind in ("reasoning", "thinking") else texts).append(text)
        elif kind == "thinking" and isinstance(part.get("thinking"), str):
            thoughts.append(part["thinking"])
        elif kind == "tool_result":
            inner = part.get("content")
            inner = _parts(inner)[0] if _are_objects(inner) else inner
            texts += [inner] if isinstance(inner, str) else []
        else:
            others = True
    text = "\n".join(texts) if texts or not others else parts
    return text, calls, "\n".join(thoughts) or None, others


def _calls(value: object) -> list[str]:
    calls = []
    for call in value if isinstance(value, list) else [value]:
        if not isinstance(call, dict):
            continue
        inner = call.get("function")
        inner = inner if isinstance(inner, dict) else call
        arguments = first_of(inner, "arguments", "input")
        if not isinstance(arguments, str):
            arguments = "" if arguments is None else json.dumps(arguments, ensure_ascii=False, default=str)
        calls.append(f"{inner.get('name') or 'call'}({arguments})")
    return calls


@dataclass(slots=True)
class Context:
    """What came before an answer, message by message: the ``messages`` that are text, and the ``last`` of all.

    ``answers``: how many exchanges there have been; ``broken``: whether something was said that is no text.
    """

    messages: list[Message] = field(default_factory=list)
    answers: int = 0
    broken: bool = False
    notes: tuple[str, ...] = ()
    last: ChatMessage | None = None

    def asks(self) -> bool:
        return self.last is not None and self.last.role in ASKS

    def problem(self) -> str | None:
        """Why the context as it stands is no prompt, or ``None``."""
        question = self.last.text if self.last is not None else None
        return unusable_text(question, "prompt") or ("context is not text" if self.broken else None)

    def add(self, said: ChatMessage) -> None:
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


def _exchanges(turns: object, row: Row, index: int) -> Exchanges:
    """The exchanges of row number ``index`` with the messages ``turns``; one :class:`Reject` if it has none.

    The fields of a row with one answer are about that answer.
    """
    if not isinstance(turns, list) or not turns:
        return [Reject("no conversation" if not turns else "conversation is not a list")]
    model, split = text_or_none(row.get("model")), text_or_none(row.get("split"))
    base = Record(id_of(row, index, "session", "request"), model=model, split=split)
    context = Context()
    said = [read_message(turn) for turn in turns]
    pairs = sum(b.role == ASSISTANT and a.role in ASKS for a, b in pairwise(said))
    if not pairs:
        return [Reject("no question with an answer")]
    items: list[Exchange | Reject] = []
    for message in said:
        if message.role == ASSISTANT and context.asks():
            problem = context.problem()
            items.append(Reject(problem) if problem else _of_chat(base, context, message, row if pairs == 1 else {}))
        context.add(message)
    return items


def _of_chat(base: Record, context: Context, said: ChatMessage, row: Row) -> Exchange:
    fields: Mapping[str, Any] = ChainMap(dict(said.fields), dict(row))
    usage = usage_of(fields)
    count, thinking = (whole(named(fields, f"{kind}_tokens")) for kind in ("response", "thinking"))
    count = count if count is not None else whole(said.fields.get("tokens"))
    reason = text_or_none(named(fields, "finish_reason"))
    arrival = time_of(context.last.fields if context.last is not None else {})
    notes = list(dict.fromkeys((*said.notes, *context.notes)))
    if arrival is None and (arrival := time_of(fields)) is not None:
        notes.append(ANSWER_TIME)
    first = next((m.role for m in context.messages if m.role not in (SYSTEM, "developer")), None)
    if context.answers == 0 and first == ASSISTANT:
        notes.append(LATE_START)
    record = replace(
        base,
        turn=context.answers,
        prompt=context.messages[-1].content,
        messages=tuple(context.messages),
        response_tokens=count if count is not None else usage.response,
        prompt_tokens=usage.prompt,
        thinking_tokens=usage.thinking if thinking is None else thinking,
        model=text_or_none(said.fields.get("model")) or base.model,
        arrival_s=arrival,
        censored=was_cut_off(reason, said.text),
        finish_reason=reason,
        max_tokens=limit_of(fields),
    )
    return exchange_of(record, said, fields, tuple(notes))


def exchange_of(record: Record, said: ChatMessage, fields: Row, notes: tuple[str, ...]) -> Exchange:
    """The exchange whose answer is ``said``; an empty one counts if the file states its length."""
    answer = said.answer
    if record.response_tokens is not None and isinstance(answer, str) and not answer.strip():
        answer, notes = None, (*notes, "without a text, but with a length")
    return Exchange(record, answer, fields, notes, missing=said.missing)


def _is_sharegpt(row: Row) -> bool:
    turns = row.get("conversations")
    if turns is None:
        return "conversations" in row and "id" in row
    return isinstance(turns, list) and all(
        isinstance(t, dict) and ("from" in t or "role" in t) and ("value" in t or "content" in t) for t in turns
    )


def _messages(row: Row) -> Any:
    return first_of(row, "messages", "conversation")


def _is_chat(row: Row) -> bool:
    turns = _messages(row)
    return isinstance(turns, list) and all(isinstance(t, dict) and "role" in t for t in turns)


def _read_chat(row: Row, index: int) -> Exchanges:
    # The last answer may stand beside the messages.
    turns, answer = _messages(row), first_of(row, "response", "completion")
    last = turns[-1] if isinstance(turns, list) and turns else None
    if isinstance(answer, str) and isinstance(last, dict) and last.get("role") != ASSISTANT:
        turns = [*turns, {"role": ASSISTANT, "content": answer}]
    return _exchanges(turns, row, index)


SHAREGPT: Final = Format(
    "sharegpt",
    looks_like="id, conversations[].from, conversations[].value",
    about="exports of ShareGPT and data sets in its layout: counts, model, time, finish reason of each message",
    matches=_is_sharegpt,
    opened=each_row(lambda row, index: _exchanges(row.get("conversations"), row, index)),
)
CHAT: Final = Format(
    "chat",
    looks_like="messages (or conversation)[].role, [].content",
    about="fine-tuning files, LMSYS-Chat, WildChat; content as text or in parts, tool calls, reasoning: "
    "counts, model, time, finish reason, `max_tokens`",
    matches=_is_chat,
    opened=each_row(_read_chat),
)
