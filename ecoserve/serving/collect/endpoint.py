"""One OpenAI-compatible server: which model it serves, and one request to it at a time.

Redirects are not followed, so that prompts and key go to no other server than the one that was named. A reply is read
up to a bound. A timeout or a broken connection is a reply like any other.
"""

from __future__ import annotations

import asyncio
import json
from importlib.metadata import version
from typing import Any, Final
from urllib.parse import urlsplit

import httpx

from ecoserve.errors import ConfigError
from ecoserve.serving.collect.replies import Again, Away, Failed, Reply, error_message, read_reply

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
    """A server's OpenAI-compatible API; an asynchronous context manager.

    ``socket`` is the path of a Unix socket that the server listens on, in place of the URL's host.
    """

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
        """The model to ask for: ``named``, else the first that the server lists.

        Raises:
            ConfigError: if there is no server, it refuses the key, or it lists no model.
        """
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
        """Send one request and classify the reply."""
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
    """An error's type and message, on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}".rstrip(": ")
