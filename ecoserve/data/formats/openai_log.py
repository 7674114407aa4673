"""Logs of OpenAI-type APIs: a request with its response a row, or the responses of the batch API.

Understood are chat completions, completions, the Responses API and Anthropic's messages, with request and response
under the names that gateways use, as objects or JSON texts, also inside a ``body``; and a response alone, whose prompt
is not known. Each choice of a response is one answer (``sample`` 0, 1, ...). ``usage`` counts its tokens where there is
one choice. An answer that cannot be read (tool calls, hidden reasoning) has a length and no text.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from ecoserve.data.fields import (
    REQUEST_IDS,
    SESSIONS,
    Row,
    first_of,
    limit_of,
    text_or_none,
    times_of,
    usage_of,
    was_cut_off,
    whole,
)
from ecoserve.data.formats.base import Exchange, Format, Reject
from ecoserve.data.formats.openai_parts import (
    Answer,
    Prompt,
    is_request,
    is_response,
    read_request,
    read_response,
)
from ecoserve.data.formats.turns import exchange_of
from ecoserve.data.parameters import parameters_of
from ecoserve.data.records import Record

_REQUESTS: Final = ("request", "request_body", "body", "input", "params")
_RESPONSES: Final = ("response", "response_body", "output", "result")


def _matches(row: Row) -> bool:
    if _response(row) is not None or ("custom_id" in row and ("response" in row or "body" in row)):
        return True
    return "response" in row and _request(row) is not None


def _read(row: Row, index: int) -> Iterator[Exchange | Reject]:
    request, response = _request(row) or row, _response(row)
    if _failed(row):
        yield Reject("failed request")
        return
    asked = read_request(request)
    if isinstance(asked, str):
        yield Reject(asked)
        return
    if response is None:
        text = row.get("response")
        response = {"choices": [{"text": text}]} if isinstance(text, str) else {}
    answers = read_response(response)
    if not answers:
        yield Reject("no answer")
        return
    base = _base(row, request, response, index)
    for answer in answers:
        yield _exchange(row, base, response, asked, answer, len(answers))


def _exchange(row: Row, base: Record, response: Row, asked: list[Prompt], answer: Answer, count: int) -> Exchange:
    each = max(1, count // len(asked))
    which = min(answer.index // each, len(asked) - 1)
    prompt = asked[which]
    prompt_tokens, tokens = usage_of(response)
    record = replace(
        base,
        conversation=base.conversation if len(asked) == 1 else f"{base.conversation}/{which}",
        turn=prompt.turn,
        prompt=prompt.prompt,
        messages=prompt.messages,
        prompt_tokens=prompt.tokens if prompt.tokens is not None or len(asked) > 1 else prompt_tokens,
        response_tokens=answer.tokens if answer.tokens is not None or count > 1 else tokens,
        sample=answer.index - which * each,
        finish_reason=answer.reason,
        censored=was_cut_off(answer.reason, answer.said.text),
    )
    notes = tuple(dict.fromkeys((*answer.said.notes, *prompt.notes)))
    return exchange_of(record, answer.said, row if count == 1 else {**row, **answer.fields}, notes)


def _base(row: Row, request: Row, response: Row, index: int) -> Record:
    metadata = request.get("metadata")
    session = first_of(row, *SESSIONS) or (first_of(metadata, *SESSIONS) if isinstance(metadata, dict) else None)
    name = session or first_of(row, *REQUEST_IDS) or response.get("id")
    limit, said = limit_of(request), parameters_of(request)
    return Record(
        conversation=str(name) if name not in (None, "") else f"row-{index}",
        model=next((m for m in (text_or_none(r.get("model")) for r in (response, request, row)) if m), None),
        arrival_s=next((t for t in map(times_of, (row, request, response)) if t is not None), None),
        split=text_or_none(row.get("split")),
        max_tokens=limit if limit is not None else limit_of(response),
        stop=said.stop,
        tools=said.tools,
        thinking=said.thinking,
        response_format=said.response_format,
    )


def _request(row: Row) -> Row | None:
    """The request of a row, if it is not the row itself."""
    found = (_object(row.get(name)) for name in _REQUESTS)
    return next((r for r in found if r is not None and is_request(r)), None)


def _response(row: Row) -> Row | None:
    if is_response(row):
        return row
    found = (_object(row.get(name)) for name in _RESPONSES)
    return next((r for r in found if r is not None and is_response(r)), None)


def _object(value: object) -> Row | None:
    """An object, also one written as JSON text, or inside the ``body`` of one."""
    for _ in range(2):
        if isinstance(value, str) and value.lstrip()[:1] == "{":
            try:
                value = json.loads(value)
            except (ValueError, RecursionError):
                return None
        if not isinstance(value, dict) or "body" not in value:
            break
        value = value["body"]
    return value if isinstance(value, dict) else None


def _failed(row: Row) -> bool:
    response = row.get("response")
    for part in (row, response, _object(response)):
        if isinstance(part, dict):
            status = whole(first_of(part, "status_code", "status"))
            if part.get("error") or (status is not None and status >= 400) or part.get("status") == "failed":
                return True
    return False


FORMAT: Final = Format(
    "openai",
    looks_like="request.messages (or .prompt) with response.choices[], also the batch API's files",
    about="logs of chat completions, completions, the Responses API and Anthropic's messages, requests and responses "
    "as objects or JSON texts: `usage`, finish reason, `max_tokens`, each choice as a sample, session, time",
    matches=_matches,
    read=_read,
    own_ids=True,
)
