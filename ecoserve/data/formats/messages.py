"""Reading one message of a chat: its role, and its text in any wrapping.

The text of a message is that of its text parts. Tool calls stand in a context as ``name(arguments)``. An answer with
calls (or with images, sounds, hidden reasoning) is not measured by its text, since not all of its tokens are in it.
Reasoning that is shown belongs to the answer, not to the context of the next turn: chat templates leave it out there.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

from ecoserve.data.fields import Row, first_of, text_or_none
from ecoserve.data.records import ASSISTANT, SYSTEM, USER

#: Names that exports use for the three roles; any other name is kept as it is, in lower case.
ROLES: Final = {
    **dict.fromkeys(("human", "user"), USER),
    **dict.fromkeys(("gpt", "chatgpt", "assistant", "bing", "bard", "claude", "model", "bot"), ASSISTANT),
    **dict.fromkeys(("system",), SYSTEM),
}
#: Roles of tools; their messages are answered as a user's are.
TOOLS: Final = frozenset(("tool", "function", "function_response", "tool_response", "observation", "ipython"))
#: Roles after which an answer is an answer.
ASKS: Final = TOOLS | {USER}

TEXT_LEFT_OUT: Final = "with parts left out that are not text"
WITH_REASONING: Final = "with their reasoning"
CALLS_TOOLS: Final = "answer calls tools, its tokens are not known"
NOT_ALL_TEXT: Final = "answer is more than text, its tokens are not known"
_CALLS: Final = ("tool_use", "tool_call", "function_call")


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One message.

    Attributes:
        role: ``user``, ``assistant``, ``system`` or another name; ``None`` if it has none.
        text: what stands in a context, as found if it is no text.
        answer: the text that was generated, reasoning included; ``None`` if more than text was (``missing``: what).
        fields: the message as the file has it.
        notes: peculiarities of it.
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
    calls = _calls(message.get("tool_calls")) + _calls(message.get("function_call"))
    reasoning = text_or_none(first_of(message, "reasoning_content", "reasoning"))
    others = False
    if isinstance(value, list) and all(isinstance(part, dict) for part in value):
        value, more, thought, others = _parts(value)
        calls, reasoning = calls + more, reasoning or thought
    notes = (TEXT_LEFT_OUT,) * others + (WITH_REASONING,) * (reasoning is not None)
    answer, missing = value, None
    if calls:
        answer, missing = None, CALLS_TOOLS
        value = "\n".join([value, *calls] if text_or_none(value) else calls)
    elif others:
        answer, missing = None, NOT_ALL_TEXT
    elif reasoning is not None and isinstance(value, str):
        answer = f"<think>\n{reasoning}\n</think>\n\n{value}"
    return ChatMessage(_role(role), value, answer, missing, message, notes)


def _role(name: object) -> str | None:
    return ROLES.get(name.lower(), name.lower()) if isinstance(name, str) else None


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
            inner = _parts(inner)[0] if isinstance(inner, list) and _are_objects(inner) else inner
            texts += [inner] if isinstance(inner, str) else []
        else:
            others = True
    text = "\n".join(texts) if texts or not others else parts
    return text, calls, "\n".join(thoughts) or None, others


def _are_objects(values: list[Any]) -> bool:
    return all(isinstance(v, dict) for v in values)


def _calls(value: object) -> list[str]:
    """Tool calls as ``name(arguments)``."""
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
