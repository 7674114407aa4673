"""Logs of OpenAI-type APIs: a request with its response a row, or the responses of the batch API.

Understood are chat completions, completions, the Responses API and Anthropic's messages, distinguished by their fields,
with request and response under the names that gateways use, as objects or JSON texts, also inside a ``body``; and a
response alone, whose prompt is not known. A request may hold several prompts; each choice of a response is one answer
(``sample`` 0, 1, ...). ``usage`` counts its tokens where there is one choice. An answer that cannot be read (tool
calls, hidden reasoning) has a length and no text.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from ecoserve.data.fields import Row, first_of, text_or_none, unusable_text, was_cut_off, whole
from ecoserve.data.formats.base import Exchange, Exchanges, Format, Reject
from ecoserve.data.formats.conversations import HIDDEN, ChatMessage, Context, exchange_of, read_message
from ecoserve.data.formats.table import parsed
from ecoserve.data.known_fields import all_named, limit_of, time_of, usage_of
from ecoserve.data.parameters import parameters_of
from ecoserve.data.records import ASSISTANT, SYSTEM, USER, Message, Record

#: A request of a batch that is in the file alone.
NO_RESPONSE: Final = "a batch's request without its response: join its output file to it"
_FAILED: Final = ("failed", "failure", "errored", "expired", "canceled")
_REQUESTS: Final = ("request", "request_body", "body", "input", "params")
_OF_BATCHES: Final = ("response", "body", "params", "result")
_RESPONSES: Final = ("response", "response_body", "output", "result")


@dataclass(frozen=True, slots=True)
class _Prompt:
    """One prompt of a request: its text if known, a chat's whole context, and how many answers that holds.

    ``tokens`` is its length, where it came as token ids; ``notes`` are peculiarities of its messages.
    """

    prompt: str | None = None
    messages: tuple[Message, ...] = ()
    turn: int = 0
    tokens: int | None = None
    notes: tuple[str, ...] = ()


def _prompts(request: Row) -> list[_Prompt] | str:
    """The prompts of a request, one that is not known if it has none; or why they are unusable."""
    system = first_of(request, "instructions", "system")
    opening = [{"role": SYSTEM, "content": system}] if system is not None else []
    messages = parsed(request.get("messages"))
    if messages is None and "input" in request:
        messages = parsed(request["input"])
        messages = [{"role": USER, "content": messages}] if isinstance(messages, str) else messages
    if messages is not None:
        return _chat([*opening, *messages]) if isinstance(messages, list) else "messages are not a list"
    prompt = request.get("prompt")
    if prompt is None:
        return [_Prompt()]
    several = isinstance(prompt, list) and any(isinstance(p, (str, list)) for p in prompt)
    asked = [_completion(p) for p in (prompt if several else [prompt])]
    return next((a for a in asked if isinstance(a, str)), None) or [a for a in asked if isinstance(a, _Prompt)]


def _chat(messages: list[Any]) -> list[_Prompt] | str:
    context = Context()
    for message in messages:
        context.add(read_message(_item(message)))
    said = tuple(context.messages)
    problem = context.problem()
    return problem or [_Prompt(said[-1].content, said, context.answers, notes=context.notes)]


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


def _completion(prompt: object) -> _Prompt | str:
    if isinstance(prompt, list):
        return _Prompt(tokens=len(prompt)) if prompt and all(whole(t) is not None for t in prompt) else "no prompt"
    return unusable_text(prompt, "prompt") or _Prompt(str(prompt))


@dataclass(frozen=True, slots=True)
class _Answer:
    """One choice of a response: number, message, finish reason, tokens if it has ids, and its fields."""

    index: int
    said: ChatMessage
    reason: str | None
    tokens: int | None
    fields: Row


def _is_response(value: Row) -> bool:
    if isinstance(value.get("choices"), list):
        return True
    if isinstance(value.get("output"), list):
        return value.get("object") == "response" or "status" in value
    return value.get("role") == ASSISTANT and isinstance(value.get("content"), list) and "usage" in value


def _answers(response: Row) -> list[_Answer]:
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
    return [_Answer(0, _seen(said, response), reason, None, response)]


def _choice(choice: dict[str, Any], number: int, response: Row) -> _Answer:
    message = choice.get("message")
    if not isinstance(message, dict):
        message = {"content": first_of(choice, "text", "message")}
    index, ids = whole(choice.get("index")), choice.get("token_ids")
    return _Answer(
        number if index is None or index < 0 else index,
        _seen(read_message({**message, "role": ASSISTANT}), response),
        text_or_none(choice.get("finish_reason")),
        len(ids) if isinstance(ids, list) and ids else None,
        choice,
    )


def _output(item: dict[str, Any]) -> list[dict[str, Any]]:
    """The parts of an item that the Responses API put out."""
    content = item.get("content")
    if item.get("type") == "reasoning":
        return content if isinstance(content, list) and all(isinstance(p, dict) for p in content) else []
    if item.get("type") == "message" and isinstance(content, list):
        return [part for part in content if isinstance(part, dict)]
    return [item]


def _seen(said: ChatMessage, response: Row) -> ChatMessage:
    """``said``, its text withheld if tokens of reasoning are counted that it does not show."""
    hidden = usage_of(response).thinking
    shown = said.answer != said.text or said.missing is not None
    return said if not hidden or shown else replace(said, answer=None, missing=HIDDEN)


def _matches(row: Row) -> bool:
    if _response(row) is not None or ("custom_id" in row and not row.keys().isdisjoint(_OF_BATCHES)):
        return True
    return "response" in row and _request(row) is not None


class _Log:
    """Reads a log; a batch's requests wait for the responses with their ``custom_id``."""

    stated: Sequence[str] = ()
    guesses: Sequence[str] = ()
    length_source: str | None = None

    def __init__(self) -> None:
        self._asked: dict[str, Row] = {}

    def read(self, row: Row, index: int) -> Exchanges:
        name = row.get("custom_id")
        if not isinstance(name, str):
            return _read(row, index)
        body = first_of(row, "body", "params")
        if first_of(row, "response", "result", "error") is None and isinstance(body, dict):
            self._asked[name] = body
            return []
        asked = self._asked.pop(name, None)
        return _read(row if asked is None else {**row, "request": asked}, index)

    def finish(self) -> Exchanges:
        return [Reject(NO_RESPONSE)] * len(self._asked)


def _read(row: Row, index: int) -> Exchanges:
    request, response = _request(row) or row, _response(row)
    if _failed(row):
        return [Reject("failed request")]
    asked = _prompts(request)
    if isinstance(asked, str):
        return [Reject(asked)]
    if response is None:
        text = row.get("response")
        response = {"choices": [{"text": text}]} if isinstance(text, str) else {}
    answers = _answers(response)
    if not answers:
        return [Reject("no answer")]
    base = _base(row, request, response, index)
    return [_exchange(row, base, response, asked, answer, len(answers)) for answer in answers]


def _exchange(row: Row, base: Record, response: Row, asked: list[_Prompt], answer: _Answer, count: int) -> Exchange:
    each = max(1, count // len(asked))
    which = min(answer.index // each, len(asked) - 1)
    prompt = asked[which]
    usage = usage_of(response)
    record = replace(
        base,
        conversation=base.conversation if len(asked) == 1 else f"{base.conversation}/{which}",
        turn=prompt.turn,
        prompt=prompt.prompt,
        messages=prompt.messages,
        prompt_tokens=prompt.tokens if prompt.tokens is not None or len(asked) > 1 else usage.prompt,
        response_tokens=answer.tokens if answer.tokens is not None or count > 1 else usage.response,
        thinking_tokens=usage.thinking if count == 1 else None,
        sample=answer.index - which * each,
        finish_reason=answer.reason,
        censored=was_cut_off(answer.reason, answer.said.text),
    )
    notes = tuple(dict.fromkeys((*answer.said.notes, *prompt.notes)))
    return exchange_of(record, answer.said, row if count == 1 else {**row, **answer.fields}, notes)


def _base(row: Row, request: Row, response: Row, index: int) -> Record:
    metadata = request.get("metadata")
    held = [part for part in (row, metadata) if isinstance(part, dict)]
    ids = [v for meaning in ("session", "request") for part in held for _, v in all_named(part, meaning)]
    name = next((v for v in ids if isinstance(v, str | int) and v != ""), None) or response.get("id")
    limit, said = limit_of(request), parameters_of(request)
    return Record(
        conversation=str(name) if name not in (None, "") else f"row-{index}",
        model=next((m for m in (text_or_none(r.get("model")) for r in (response, request, row)) if m), None),
        arrival_s=next((t for t in map(time_of, (row, request, response)) if t is not None), None),
        split=text_or_none(row.get("split")),
        max_tokens=limit if limit is not None else limit_of(response),
        stop=said.stop,
        tools=said.tools,
        thinking=said.thinking,
        response_format=said.response_format,
    )


def _request(row: Row) -> Row | None:
    """The request of a row, if it is not the row itself."""
    for request in (_object(row.get(name)) for name in _REQUESTS):
        if request and any(isinstance(request.get(name), (str, list)) for name in ("messages", "prompt", "input")):
            return request
    return None


def _response(row: Row) -> Row | None:
    if _is_response(row):
        return row
    found = (_object(row.get(name)) for name in _RESPONSES)
    return next((r for r in found if r is not None and _is_response(r)), None)


def _object(value: object) -> Row | None:
    """An object, also one written as JSON text, or inside the ``body`` or ``message`` (Anthropic's batches) of one."""
    for _ in range(2):
        if isinstance(value, str) and value.lstrip()[:1] == "{":
            try:
                value = json.loads(value)
            except (ValueError, RecursionError):
                return None
        if not isinstance(value, dict):
            return None
        if "body" not in value and not isinstance(value.get("message"), dict):
            break
        value = value["body"] if "body" in value else value["message"]
    return value if isinstance(value, dict) else None


def _failed(row: Row) -> bool:
    response = first_of(row, "response", "result")
    for part in (row, response, _object(response)):
        if isinstance(part, dict):
            status = whole(first_of(part, "status_code", "status"))
            failed = part.get("status") in _FAILED or part.get("type") in _FAILED
            if part.get("error") or (status is not None and status >= 400) or failed:
                return True
    return False


FORMAT: Final = Format(
    "openai",
    looks_like="request.messages (or .prompt) with response.choices[], also the batch API's files",
    about="logs of chat completions, completions, the Responses API and Anthropic's messages, requests and responses "
    "as objects or JSON texts: `usage`, finish reason, `max_tokens`, each choice as a sample, session, time",
    matches=_matches,
    opened=lambda rows, hints: _Log(),
    own_ids=True,
)
