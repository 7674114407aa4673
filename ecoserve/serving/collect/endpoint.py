"""One OpenAI-compatible server: which model it serves, one request to it at a time, and what its reply means.

A length is the server's own count (``usage.completion_tokens``) of an answer that has ended. An answer is complete only
with a finish reason of :data:`COMPLETE`; with any other its length is a lower bound. Redirects are not followed, so
that prompts and key go to no other server. A timeout or a broken connection is a reply like any other.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from importlib.metadata import version
from typing import Any, Final, TypeAlias
from urllib.parse import urlsplit

import httpx

from ecoserve.data.fields import unusable_text
from ecoserve.data.formats.conversations import read_message
from ecoserve.data.known_fields import usage_of
from ecoserve.data.measuring import thinking_by_text, thinking_in
from ecoserve.errors import ConfigError

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
    """One finished answer: its length as the server counted it, >= 1, its finish reason, its text if it is usable.

    ``thinking``: how many of ``tokens`` were thinking, by ``usage`` or by its share of the text; ``None``: not known.
    """

    tokens: int
    reason: str
    prompt_tokens: int | None = None
    text: str | None = None
    thinking: int | None = None


@dataclass(frozen=True, slots=True)
class _Why:
    why: str


class Refused(_Why): ...


class Failed(_Why): ...


class Away(_Why): ...


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
    try:
        body = json.loads(data)
        choice, usage = body["choices"][0], body.get("usage")
        reason = choice["finish_reason"]
        message = choice.get("message")
        said = read_message(message if isinstance(message, dict) else {"content": choice.get("text")})
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return Again("a reply that is no OpenAI-compatible answer")
    if not isinstance(usage, Mapping):
        return Again("the server's reply has no usage: it does not say how many tokens the answer has")
    tokens: Any = usage.get("completion_tokens")
    prompt: Any = usage.get("prompt_tokens")
    if reason is None or reason in _DROPPED:
        return Again(f"the server did not finish the answer ({reason})")
    if not isinstance(reason, str) or not reason.isprintable() or not _is_count(tokens) or tokens > MOST_TOKENS:
        return Again("a reply without a finish reason, or with no number of tokens")
    # Where EOS is not counted, an answer that is nothing else has length 0; response length counts it.
    tokens = max(1, tokens)
    text = str(said.answer) if unusable_text(said.answer, "answer") is None else None
    thinking = usage_of(body).thinking
    if not thinking and text is not None and thinking_in(text) is not None:
        thinking = thinking_by_text(text, tokens)
    return Answer(tokens, reason, prompt if _is_count(prompt) else None, text, thinking)


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


#: Longest reply that is read, in bytes.
LONGEST_REPLY: Final = 32 * 2**20
#: Longest wait for a connection, in seconds.
_CONNECT_S: Final = 30.0
#: An idle connection is dropped after this many seconds: uvicorn, hence vLLM, closes its own after five.
_IDLE_S: Final = 4.0
_PATHS: Final = {"chat": "/chat/completions", "completions": "/completions"}


class _TooLong(Exception):
    pass


class Endpoint:
    """A server's OpenAI-compatible API, an asynchronous context manager; at ``socket`` if that is given."""

    def __init__(
        self,
        url: str,
        *,
        api: str,
        connections: int,
        timeout_s: float,
        secret: str | None = None,
        socket: str | None = None,
    ) -> None:
        self.base = base_url(url)
        self._path = self.base + _PATHS[api]
        self._timeout_s = timeout_s
        self._secret = secret
        headers = {"user-agent": f"ecoserve/{version('ecoserve')}"}
        if secret:
            headers["authorization"] = f"Bearer {secret}"
        limits = httpx.Limits(
            max_connections=connections, max_keepalive_connections=connections, keepalive_expiry=_IDLE_S
        )
        self._client = httpx.AsyncClient(
            headers=headers,
            limits=limits,
            timeout=httpx.Timeout(None, connect=min(_CONNECT_S, timeout_s)),
            transport=httpx.AsyncHTTPTransport(uds=socket, limits=limits) if socket else None,
            follow_redirects=False,
        )

    async def __aenter__(self) -> Endpoint:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def model(self, named: str | None) -> str:
        """The model to ask for: ``named``, else the first listed; ConfigError without a server, key or model."""
        try:
            async with asyncio.timeout(self._timeout_s):
                status, _, data = await self._exchange("GET", f"{self.base}/models")
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError, _TooLong) as error:
            raise ConfigError(f"no server answers ({short(error)})", where=self.base) from error
        if status in (401, 403):
            fix = "give --api-key, or VLLM_API_KEY in the environment"
            raise ConfigError(f"the server refuses the API key (HTTP {status})", where=self.base, fix=fix)
        if named is not None:
            return named  # not every server lists its models; one that does not know the name says so when asked
        try:
            names = [str(m["id"]) for m in json.loads(data)["data"]] if status == 200 else []
        except (ValueError, LookupError, TypeError) as error:
            raise ConfigError("is no OpenAI-compatible server", where=self.base) from error
        if not names:
            why = f"HTTP {status}: {error_message(data, self._secret)}" if status != 200 else "an empty list"
            what = f"the server does not say which models it serves ({why})"
            raise ConfigError(what, where=self.base, fix="name the model with --served-model, and check the URL")
        return names[0]

    async def ask(self, body: dict[str, Any]) -> Reply:
        data = json.dumps(body, separators=(",", ":")).encode()
        try:
            async with asyncio.timeout(self._timeout_s):
                status, headers, reply = await self._exchange("POST", self._path, data)
        except TimeoutError:
            return Again(f"no answer within {self._timeout_s:g} s")
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            return Away(short(error))
        except httpx.HTTPError as error:
            return Again(short(error))
        except _TooLong:
            return Failed(f"an answer of more than {LONGEST_REPLY // 2**20} MiB")
        return read_reply(status, headers, reply, self._secret)

    async def _exchange(self, method: str, url: str, data: bytes | None = None) -> tuple[int, dict[str, str], bytes]:
        headers = {"content-type": "application/json"} if data is not None else {}
        async with self._client.stream(method, url, content=data, headers=headers) as reply:
            body = bytearray()
            async for piece in reply.aiter_bytes():
                body += piece
                if len(body) > LONGEST_REPLY:
                    raise _TooLong
            return reply.status_code, {name.lower(): value for name, value in reply.headers.items()}, bytes(body)


def base_url(url: str) -> str:
    """The address that paths are appended to: as given, with ``/v1`` where it has no path."""
    url = url.rstrip("/")
    return url if urlsplit(url).path else f"{url}/v1"


def short(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}".rstrip(": ")
