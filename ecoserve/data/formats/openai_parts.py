"""What the requests and responses of OpenAI-type APIs contain: the prompts, and each answer.

APIs are distinguished by their fields. A request may hold several prompts and a response several choices, numbered
prompt by prompt as the API does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from ecoserve.data.fields import Row, first_of, text_or_none, unusable_text, whole
from ecoserve.data.formats.messages import ChatMessage, read_message
from ecoserve.data.formats.turns import Context
from ecoserve.data.records import ASSISTANT, SYSTEM, USER, Message

HIDDEN: Final = "answer has reasoning that is not shown, its tokens are not known"
_DETAILS: Final = ("completion_tokens_details", "output_tokens_details")


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt of a request.

    Attributes:
        prompt: its text, ``None`` where it is not known.
        messages: the whole context of a chat; ``turn``: how many answers it holds.
        tokens: its length, where it came as token ids.
        notes: peculiarities of its messages.
    """

    prompt: str | None = None
    messages: tuple[Message, ...] = ()
    turn: int = 0
    tokens: int | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """One choice of a response: number, message, finish reason, tokens if it has ids, and its fields."""

    index: int
    said: ChatMessage
    reason: str | None
    tokens: int | None
    fields: Row


def is_request(value: Row) -> bool:
    """Whether it asks something."""
    return any(isinstance(value.get(name), (str, list)) for name in ("messages", "prompt", "input"))


def is_response(value: Row) -> bool:
    """Whether it answers something."""
    if isinstance(value.get("choices"), list):
        return True
    if isinstance(value.get("output"), list):
        return value.get("object") == "response" or "status" in value
    return value.get("role") == ASSISTANT and isinstance(value.get("content"), list) and "usage" in value


def read_request(request: Row) -> list[Prompt] | str:
    """The prompts of a request, one that is not known if it has none; or why they are unusable."""
    system = first_of(request, "instructions", "system")
    opening = [{"role": SYSTEM, "content": system}] if system is not None else []
    messages = request.get("messages")
    if messages is None and "input" in request:
        messages = request["input"]
        messages = [{"role": USER, "content": messages}] if isinstance(messages, str) else messages
    if messages is not None:
        return _chat([*opening, *messages]) if isinstance(messages, list) else "messages are not a list"
    prompt = request.get("prompt")
    if prompt is None:
        return [Prompt()]
    several = isinstance(prompt, list) and any(isinstance(p, (str, list)) for p in prompt)
    asked = [_completion(p) for p in (prompt if several else [prompt])]
    return next((a for a in asked if isinstance(a, str)), None) or [a for a in asked if isinstance(a, Prompt)]


def _chat(messages: list[Any]) -> list[Prompt] | str:
    context = Context()
    for message in messages:
        context.add(read_message(_item(message)))
    said = tuple(context.messages)
    problem = context.problem()
    return problem or [Prompt(said[-1].content, said, context.answers, notes=context.notes)]


def _item(item: object) -> object:
    """An item of the Responses API as a message of a chat; messages are handed on."""
    if isinstance(item, dict) and "role" not in item:
        if item.get("type") == "function_call":
            return {"role": ASSISTANT, "tool_calls": [item]}
        if item.get("type") == "function_call_output":
            return {"role": "tool", "content": item.get("output")}
        if item.get("type") == "reasoning":
            return {"role": ASSISTANT, "content": ""}
    return item


def _completion(prompt: object) -> Prompt | str:
    if isinstance(prompt, list):
        return Prompt(tokens=len(prompt)) if prompt and all(whole(t) is not None for t in prompt) else "no prompt"
    return unusable_text(prompt, "prompt") or Prompt(str(prompt))


def read_response(response: Row) -> list[Answer]:
    """The answers of a response, none if it has none."""
    choices = response.get("choices")
    if isinstance(choices, list):
        return [_choice(c, n, response) for n, c in enumerate(choices) if isinstance(c, dict)]
    reason = text_or_none(response.get("stop_reason"))
    if isinstance(response.get("output"), list):
        details = response.get("incomplete_details")
        reason = text_or_none(details.get("reason")) if isinstance(details, dict) else None
        reason = reason or text_or_none(response.get("status"))
        parts = [part for item in response["output"] if isinstance(item, dict) for part in _output(item)]
        said = read_message({"role": ASSISTANT, "content": parts})
    elif isinstance(response.get("content"), list):
        said = read_message(response)
    else:
        return []
    return [Answer(0, _seen(said, response), reason, None, response)]


def _choice(choice: Mapping[str, Any], number: int, response: Row) -> Answer:
    message = choice.get("message")
    if not isinstance(message, dict):
        message = {"content": first_of(choice, "text", "message")}
    index, ids = whole(choice.get("index")), choice.get("token_ids")
    return Answer(
        number if index is None or index < 0 else index,
        _seen(read_message({**message, "role": ASSISTANT}), response),
        text_or_none(choice.get("finish_reason")),
        len(ids) if isinstance(ids, list) and ids else None,
        choice,
    )


def _output(item: dict[str, Any]) -> list[dict[str, Any]]:
    """The parts of an item that the Responses API put out."""
    if item.get("type") == "reasoning":
        shown = item.get("content")
        return shown if isinstance(shown, list) and all(isinstance(p, dict) for p in shown) else []
    content = item.get("content")
    if item.get("type") == "message" and isinstance(content, list):
        return [part for part in content if isinstance(part, dict)]
    return [item]


def _seen(said: ChatMessage, response: Row) -> ChatMessage:
    """``said``, its text withheld if tokens of reasoning are counted that it does not show."""
    usage = response.get("usage")
    details = first_of(usage, *_DETAILS) if isinstance(usage, dict) else None
    hidden = whole(details.get("reasoning_tokens")) if isinstance(details, dict) else None
    shown = said.answer != said.text or said.missing is not None
    return said if not hidden or shown else replace(said, answer=None, missing=HIDDEN)
