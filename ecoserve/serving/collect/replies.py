"""What a server's reply to one request means: an answer, a refusal, try again, or stop.

Rules: a length is the server's own count (``usage.completion_tokens``), and only of an answer that has ended: one that
the server itself cut off (``abort``) is asked for again. An answer is complete only if the server says that it ended
by itself; with any other reason its length is a lower bound. A request that a server refuses for what it says (a prompt
too long) will be refused again, so it is not repeated; a refused key, model or address concerns all of them.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, Final, TypeAlias

from ecoserve.data.formats.base import unusable_text

#: Finish reasons of an answer that ended by itself; after any other, its length is a lower bound.
COMPLETE: Final = frozenset(("stop", "tool_calls", "function_call", "eos", "eos_token", "stop_sequence", "end_turn"))
#: Finish reasons of an answer that the server dropped: no length at all.
_DROPPED: Final = frozenset(("abort", "aborted", "error", "cancelled"))
#: Status codes that concern every request: key, payment, permission, address or model.
_FATAL: Final = frozenset((401, 402, 403, 404, 405, 407))
#: 4xx codes that another attempt may be spared.
_AGAIN: Final = frozenset((408, 409, 425, 429))
#: No answer has more tokens; as everywhere in traces.
MOST_TOKENS: Final = 2**20


@dataclass(frozen=True, slots=True)
class Answer:
    """One finished answer.

    Attributes:
        tokens: response length as the server counted it, >= 1.
        reason: its finish reason.
        prompt_tokens: the prompt's length as the server counted it.
        text: what it says; None if nothing that can be kept as text.
    """

    tokens: int
    reason: str
    prompt_tokens: int | None = None
    text: str | None = None


@dataclass(frozen=True, slots=True)
class Refused:
    """The server does not take this one request."""

    why: str


@dataclass(frozen=True, slots=True)
class Failed:
    """It went wrong and another attempt would not help, or there were enough."""

    why: str


@dataclass(frozen=True, slots=True)
class Again:
    """It went wrong and may go well later; ``after_s`` is what the server asks us to wait."""

    why: str
    after_s: float | None = None


@dataclass(frozen=True, slots=True)
class Away:
    """There was nobody to ask."""

    why: str


@dataclass(frozen=True, slots=True)
class Stop:
    """Every other request would end the same way."""

    why: str
    fix: str | None = None


Outcome: TypeAlias = Answer | Refused | Failed
Reply: TypeAlias = Outcome | Again | Away | Stop


def read_reply(status: int, headers: Mapping[str, str], data: bytes, secret: str | None = None) -> Reply:
    """What one HTTP reply means.

    Args:
        status: HTTP status.
        headers: with names in lower case.
        data: the body.
        secret: an API key, which the server's words must not repeat.
    """
    if status == 200:
        return read_answer(data)
    why = f"HTTP {status}: {server_words(data, secret)}".rstrip(": ")
    if 300 <= status < 400:
        return Stop(f"HTTP {status}: the server sends us elsewhere", "give the URL that it should be")
    if status == 404:
        return Stop(why, "the URL is an OpenAI client's base_url, often ending in /v1; and is that the model's name?")
    if status in (401, 403):
        return Stop(why, "does it need another API key?")
    if status in _FATAL or _out_of_credit(data):
        return Stop(why)
    if status in _AGAIN or status >= 500:
        return Again(why, retry_after(headers.get("retry-after"), time.time()))
    return Refused(why)


def read_answer(data: bytes) -> Answer | Again:
    """The answer in a body of ``/chat/completions`` or ``/completions``; Again if it is none."""
    try:
        body = json.loads(data)
        choice, usage = body["choices"][0], body["usage"]
        tokens, reason = usage["completion_tokens"], choice["finish_reason"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return Again("a reply that is no OpenAI-compatible answer with its usage")
    if reason is None or reason in _DROPPED:
        return Again(f"the server did not finish the answer ({reason})")
    if not isinstance(reason, str) or not _count(tokens) or tokens > MOST_TOKENS:
        return Again("a reply without a finish reason, or with no number of tokens")
    prompt = usage.get("prompt_tokens")
    # Where EOS is not counted, an answer that is nothing else has length 0; response length counts it.
    return Answer(max(1, tokens), reason, prompt if _count(prompt) else None, _text(choice))


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _text(choice: Mapping[str, Any]) -> str | None:
    message = choice.get("message")
    text = message.get("content") if isinstance(message, Mapping) else choice.get("text")
    return text if isinstance(text, str) and unusable_text(text, "answer") is None else None


def retry_after(value: str | None, now: float) -> float | None:
    """Seconds to wait that a ``Retry-After`` header states (a number, or a date), None if it does not.

    Args:
        value: the header.
        now: seconds since the epoch.
    """
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - now
        except (ValueError, TypeError, OverflowError):
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


def server_words(data: bytes, secret: str | None = None) -> str:
    """What an error body says, on one line of at most 200 characters, without ``secret``."""
    text: Any = data.decode(errors="replace")
    try:
        body = json.loads(text)
        found = body.get("error", body) if isinstance(body, dict) else text
        text = found.get("message", found.get("detail", text)) if isinstance(found, dict) else found
    except (ValueError, RecursionError):
        pass
    line = " ".join(str(text).split())
    return (line.replace(secret, "***") if secret else line)[:200]


def _out_of_credit(data: bytes) -> bool:
    """Whether a 429 means that the account has nothing left: waiting does not help."""
    return b'"insufficient_quota"' in data
