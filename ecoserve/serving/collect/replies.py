"""What a server's reply to one request means: an answer, a refusal, try again, or stop.

A length is the server's own count (``usage.completion_tokens``) of an answer that has ended; one that the server itself
dropped (``abort``) is asked for again. An answer is complete only with a finish reason of :data:`COMPLETE`; with any
other its length is a lower bound. A refused request (a prompt too long) is not repeated. A refused key, model or
address concerns all requests.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, Final, TypeAlias

from ecoserve.data.fields import unusable_text

#: Finish reasons of an answer that ended by itself; after any other, its length is a lower bound.
COMPLETE: Final = frozenset(("stop", "tool_calls", "function_call", "eos", "eos_token", "stop_sequence", "end_turn"))
#: Finish reasons of an answer that the server dropped: no length at all.
_DROPPED: Final = frozenset(("abort", "aborted", "error", "cancelled"))
#: Status codes that concern every request: key, payment, permission, address or model.
_FATAL: Final = frozenset((401, 402, 403, 404, 405, 407))
#: 4xx codes after which another attempt may succeed.
_AGAIN: Final = frozenset((408, 409, 425, 429))
#: Longest answer, in tokens; as everywhere in traces.
MOST_TOKENS: Final = 2**20


@dataclass(frozen=True, slots=True)
class Answer:
    """One finished answer: its length as the server counted it, >= 1, its finish reason, its text if it is usable."""

    tokens: int
    reason: str
    prompt_tokens: int | None = None
    text: str | None = None


@dataclass(frozen=True, slots=True)
class _Why:
    why: str


class Refused(_Why):
    """The server refuses this one request."""


class Failed(_Why):
    """The request failed for good."""


class Away(_Why):
    """The server is unreachable."""


@dataclass(frozen=True, slots=True)
class Again(_Why):
    """The request failed and may succeed later; ``after_s`` is the server's ``Retry-After``."""

    after_s: float | None = None


@dataclass(frozen=True, slots=True)
class Stop(_Why):
    """Every other request would end the same way."""

    fix: str | None = None


Outcome: TypeAlias = Answer | Refused | Failed
Reply: TypeAlias = Outcome | Again | Away | Stop


def read_reply(status: int, headers: Mapping[str, str], data: bytes, secret: str | None = None) -> Reply:
    """Classify one HTTP reply, header names in lower case; the API key ``secret`` is masked in messages."""
    if status == 200:
        return _read_answer(data)
    why = f"HTTP {status}: {error_message(data, secret)}".rstrip(": ")
    if 300 <= status < 400:
        return Stop(f"HTTP {status}: the server redirects", "give the URL that it redirects to")
    if status == 404:
        return Stop(why, "check the URL (a base URL, often ending in /v1) and the model's name")
    if status in (401, 403):
        return Stop(why, "does it need another API key?")
    # A 429 for want of credit: waiting does not help.
    if status in _FATAL or b'"insufficient_quota"' in data:
        return Stop(why)
    if status in _AGAIN or status >= 500:
        return Again(why, retry_after(headers.get("retry-after"), time.time()))
    return Refused(why)


def _read_answer(data: bytes) -> Answer | Again:
    """The answer in a body of ``/chat/completions`` or ``/completions``."""
    try:
        body = json.loads(data)
        choice, usage = body["choices"][0], body["usage"]
        tokens, reason = usage["completion_tokens"], choice["finish_reason"]
        prompt = usage.get("prompt_tokens")
        message = choice.get("message")
        text = message.get("content") if isinstance(message, Mapping) else choice.get("text")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return Again("a reply that is no OpenAI-compatible answer with its usage")
    if reason is None or reason in _DROPPED:
        return Again(f"the server did not finish the answer ({reason})")
    if not isinstance(reason, str) or not reason.isprintable() or not _is_count(tokens) or tokens > MOST_TOKENS:
        return Again("a reply without a finish reason, or with no number of tokens")
    usable = isinstance(text, str) and unusable_text(text, "answer") is None
    # Where EOS is not counted, an answer that is nothing else has length 0; response length counts it.
    return Answer(max(1, tokens), reason, prompt if _is_count(prompt) else None, text if usable else None)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def retry_after(value: str | None, now: float) -> float | None:
    """Seconds to wait by a ``Retry-After`` header (a number, or a date), ``now`` in seconds since the epoch."""
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


def error_message(data: bytes, secret: str | None = None) -> str:
    """The message in an error body, as one line of at most 200 characters, ``secret`` masked."""
    text: Any = data.decode(errors="replace")
    try:
        body = json.loads(text)
        found = body.get("error", body) if isinstance(body, dict) else text
        text = found.get("message", found.get("detail", text)) if isinstance(found, dict) else found
    except (ValueError, RecursionError):
        pass
    line = " ".join(str(text).encode(errors="replace").decode().split())
    return (line.replace(secret, "***") if secret else line)[:200]
