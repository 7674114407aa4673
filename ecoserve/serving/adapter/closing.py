"""Ends the responses that are open when the server stops.

On SIGTERM vLLM's server lets its engine drain for ``--shutdown-timeout`` seconds, kills it, and then waits for every
open connection, so that it hangs as long as the client of an unfinished stream does. Once the engine is gone (only then
is the HTTP server asked to exit), what is still open after a moment is ended here: a stream by an error event, anything
else by 503.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any, Final

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

#: Seconds between two looks at whether the server stops, and for the last tokens to get through once it does.
_POLL_S: Final = 0.25
_FLUSH_S: Final = 0.5
_ERROR: Final = {"error": {"message": "the server is shutting down", "type": "ServiceUnavailableError", "code": 503}}


@dataclass(slots=True, eq=False)
class _Open:
    task: asyncio.Task[Any]
    started: bool = False
    ended: bool = False
    events: bool = False


class OpenResponses:
    """The open responses; they are ended when the server stops."""

    def __init__(self) -> None:
        self._open: set[_Open] = set()
        self._stopping = False

    async def run(self, app: App, scope: Scope, receive: Receive, send: Send) -> None:
        """Call ``app`` for one HTTP request; if the server stops meanwhile, answer in its place."""
        task = asyncio.current_task()
        assert task is not None
        entry = _Open(task)

        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start":
                entry.started = True
                kinds = [v for n, v in message.get("headers", ()) if n.lower() == b"content-type"]
                entry.events = any(v.startswith(b"text/event-stream") for v in kinds)
            elif message["type"] == "http.response.body":
                entry.ended = not message.get("more_body", False)
            await send(message)

        self._open.add(entry)
        try:
            await app(scope, receive, watched)
        except asyncio.CancelledError:
            if not self._stopping:
                raise
            task.uncancel()
            await _end(entry, send)
        finally:
            self._open.discard(entry)

    async def watch(self, server: Any) -> None:
        """Wait until ``server`` (uvicorn's) is to exit, then end what is open."""
        while not server.should_exit:
            await asyncio.sleep(_POLL_S)
        await asyncio.sleep(_FLUSH_S)
        self._stopping = True
        for entry in list(self._open):
            entry.task.cancel("the server stops")


async def _end(entry: _Open, send: Send) -> None:
    if entry.ended:
        return
    body = json.dumps(_ERROR).encode()
    if not entry.started:
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 503, "headers": headers})
    elif entry.events:
        body = b"data: " + body + b"\n\ndata: [DONE]\n\n"
    else:
        body = b""
    await send({"type": "http.response.body", "body": body})
