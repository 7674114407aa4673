"""The responses that are open, and what becomes of them, and of new requests, when the server stops.

On SIGTERM vLLM's server shuts its engine client down: the engine finishes what it has for ``--shutdown-timeout``
seconds, then it is gone, then the HTTP server is asked to exit. In that time vLLM answers new requests with 500, and
``/health`` with 200; at its end it waits for every open connection, as long as the client of an unfinished stream
does. Here ``/health`` and new requests get 503 from the first moment, and what is still open at the end is ended: a
stream by an error event, anything else by 503.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from ecoserve.serving.adapter.metrics import Refusal, middleware_metrics
from ecoserve.serving.adapter.refusals import error_body, refuse

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

#: Seconds between two looks at whether the server stops, and for the last tokens to get through once it does.
_POLL_S: Final = 0.25
_FLUSH_S: Final = 0.5
_HEALTH: Final = ("/health", "/ping")
_MESSAGES: Final[dict[Refusal, str]] = {
    "stopping": "the server is shutting down",
    "engine_failed": "the engine has failed; the server's log says why",
}


@dataclass(slots=True, eq=False)
class _Open:
    task: asyncio.Task[Any]
    path: str
    started: bool = False
    ended: bool = False
    events: bool = False
    replaced: bool = False


class OpenResponses:
    """Runs requests, and knows those whose response is not complete."""

    #: whether the server of this process ends because its engine has failed; vLLM's exit code is 0 then
    engine_failed: ClassVar[bool] = False

    def __init__(self) -> None:
        self._open: set[_Open] = set()
        self._ending = False
        self._stops: Refusal | None = None
        self._gone_s = 0.0

    @property
    def stops(self) -> bool:
        return self._stops is not None

    async def run(self, app: App, scope: Scope, receive: Receive, send: Send) -> None:
        """Call ``app`` for one HTTP request; where the server stops, answer in its place."""
        path = path_of(scope)
        if self._stops is not None and (scope.get("method") == "POST" or path in _HEALTH):
            while (await receive()).get("more_body", False):
                pass  # a client that is still sending would not see an answer before a reset
            await self._refuse(path, send)
            return
        task = asyncio.current_task()
        assert task is not None
        entry = _Open(task, path)

        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start":
                if self._stops is not None and message["status"] >= 500:
                    # The engine client went away under this request.
                    entry.replaced = entry.started = entry.ended = True
                    await self._refuse(path, send)
                    return
                entry.started = True
                kinds = [v for n, v in message.get("headers", ()) if n.lower() == b"content-type"]
                entry.events = any(v.startswith(b"text/event-stream") for v in kinds)
            elif message["type"] == "http.response.body":
                entry.ended = not message.get("more_body", False)
                if (
                    self._stops == "stopping"
                    and entry.events
                    and message.get("body", b"").startswith(b'data: {"error"')
                ):
                    # vLLM says that the engine has encountered an issue.
                    message = {**message, "body": self._error_event(entry)}
            if not entry.replaced:
                await send(message)

        self._open.add(entry)
        try:
            await app(scope, receive, watched)
        except asyncio.CancelledError:
            if not self._ending:
                raise
            task.uncancel()
            await self._end(entry, send)
        except Exception:
            if self._stops is None or entry.started:
                raise
            await self._refuse(path, send)
        finally:
            self._open.discard(entry)

    async def watch(self, server: Any, engine: Any = None) -> None:
        """Wait until ``server`` (uvicorn's) is to exit, then end what is open.

        ``engine`` is vLLM's engine client, whose ``shutdown`` is where the server begins to stop.
        """
        if engine is not None:
            shut_down = engine.shutdown

            def shutdown(timeout: float | None = None) -> None:
                self._stop(engine, timeout)
                shut_down(timeout=timeout)

            engine.shutdown = shutdown
        while not server.should_exit:
            await asyncio.sleep(_POLL_S)
        self._stop(engine, None)
        await asyncio.sleep(_FLUSH_S)
        self._ending = True
        for entry in list(self._open):
            entry.task.cancel("the server stops")

    def _stop(self, engine: Any, timeout_s: float | None) -> None:
        """From now on nothing is served; an engine that is dead already has failed."""
        if self._stops is None:
            self._gone_s = time.monotonic() + (timeout_s or 0.0)
            self._stops = "engine_failed" if engine is not None and engine.errored else "stopping"
            OpenResponses.engine_failed = self._stops == "engine_failed"

    async def _refuse(self, path: str, send: Send) -> None:
        assert self._stops is not None
        # When this process is gone at the latest; behind a balancer another one answers at once.
        retry = max(1, math.ceil(self._gone_s - time.monotonic()))
        # A connection that is kept may be closed by the server just when the next request comes.
        await refuse(send, path, 503, self._stops, _MESSAGES[self._stops], retry_after_s=retry, close=True)

    async def _end(self, entry: _Open, send: Send) -> None:
        if entry.ended:
            return
        if not entry.started:
            await self._refuse(entry.path, send)
            return
        body = self._error_event(entry) + b"data: [DONE]\n\n"
        await send({"type": "http.response.body", "body": body if entry.events else b""})

    def _error_event(self, entry: _Open) -> bytes:
        """The event of a response that is cut off."""
        assert self._stops is not None
        middleware_metrics().cut_off.labels().inc()
        return b"data: " + error_body(entry.path, 503, _MESSAGES[self._stops]) + b"\n\n"


def path_of(scope: Scope) -> str:
    """The path below the server's root path."""
    return str(scope["path"]).removeprefix(scope.get("root_path", ""))
