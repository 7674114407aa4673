"""Admin calls of a server: its level, and a new predictor, while it serves. Off unless ``admin_key`` is set.

``GET /ecoserve/level`` says the level; ``POST /ecoserve/level`` with ``{"level": "shadow"}`` sets it: shadow, order, or
full where our scheduler is in the engine. ``POST /ecoserve/predictor`` with ``{"checkpoint": PATH}`` (default: the one
in use, read again) loads a checkpoint and uses it from then on; if it cannot be loaded, the old one stays. SIGHUP does
the same. All of it holds for every process of the server (:mod:`~ecoserve.serving.adapter.level_file`).
"""

from __future__ import annotations

import asyncio
import hmac
import json
import signal
import time
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from ecoserve.errors import EcoServeError
from ecoserve.serving.adapter.level_file import PREDICTOR, RunLevel, SharedFile
from ecoserve.serving.adapter.metrics import logger, publish_run_level
from ecoserve.serving.adapter.middleware_settings import MiddlewareSettings

if TYPE_CHECKING:
    from ecoserve.predictor import Predicts

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

PREFIX: Final = "/ecoserve/"
_LONGEST: Final = 4096
_POLL_S: Final = 0.5


class Admin:
    """``settings``: with an admin key. ``level``: the level now. ``use``: takes a predictor that was loaded."""

    def __init__(
        self, settings: MiddlewareSettings, level: RunLevel, use: Callable[[Predicts], Awaitable[None]]
    ) -> None:
        assert settings.admin_key is not None
        self._key = settings.admin_key.encode()
        self._started = settings.level
        self._level = level
        self._checkpoint = settings.predictor
        self._use = use
        self._asked_again = asyncio.Event()
        self._file = SharedFile.of_this_server(PREDICTOR)

    async def answer(self, path: str, method: str, headers: dict[bytes, bytes], receive: Receive, send: Send) -> None:
        """Answer one call."""
        status, content = await self._answered(path, method, headers, receive)
        body = json.dumps(content).encode()
        head = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": head})
        await send({"type": "http.response.body", "body": body})

    async def _answered(
        self, path: str, method: str, headers: dict[bytes, bytes], receive: Receive
    ) -> tuple[int, dict[str, Any]]:
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() != b"bearer" or not hmac.compare_digest(given, self._key):
            return 401, {"error": "the admin key is wrong or missing"}
        call = (method, path.removeprefix(PREFIX))
        if call == ("GET", "level"):
            return 200, {"level": self._level.look()}
        if call not in {("POST", "level"), ("POST", "predictor")}:
            return 404, {"error": "there is no such call", "calls": ["GET level", "POST level", "POST predictor"]}
        if self._file.path is None or self._started == "auto":
            return 409, {"error": "only servers started by `ecoserve serve`, with a policy of ours, can be switched"}
        body = await _json(receive)
        if body is None:
            return 400, {"error": f"the body is not a JSON object of at most {_LONGEST} bytes"}
        return self._set_level(body.get("level")) if call[1] == "level" else await self._load(body.get("checkpoint"))

    def _set_level(self, level: Any) -> tuple[int, dict[str, Any]]:
        known = ("shadow", "order", "full") if self._started == "full" else ("shadow", "order")
        if level not in known:
            return 400, {"error": f"level {level!r} is not one of {', '.join(known)}"}
        self._level.file.write(level)
        was, self._level.current = self._level.current, level
        publish_run_level(level)
        logger.info("ecoserve: level %s by an admin call (was %s)", level, was)
        return 200, {"level": level, "was": was}

    async def _load(self, checkpoint: Any) -> tuple[int, dict[str, Any]]:
        path = self._checkpoint if checkpoint is None else checkpoint
        if not isinstance(path, str):
            return 400, {"error": "checkpoint is to be a path"}
        try:
            await self.load(path)
        except EcoServeError as error:
            return 400, {"error": str(error), "in use": self._checkpoint}
        # Equal paths are news all the same: what is there may have changed.
        self._file.write(json.dumps([path, time.time()]))
        self._file.news()
        return 200, {"checkpoint": path}

    async def load(self, path: str) -> None:
        """Load a checkpoint in a thread and use it; raises, and changes nothing, if it cannot be used."""
        from ecoserve.predictor import load_predictor

        predictor = await asyncio.to_thread(load_predictor, path)
        await self._use(predictor)
        self._checkpoint = path
        logger.info("ecoserve: predictor %s is in use", path)

    async def follow(self) -> None:
        """Do what SIGHUP and other API servers' calls ask for, for ever."""
        with suppress(RuntimeError, ValueError):  # not in the main thread: no signals
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._asked_again.set)
        while True:
            if self._asked_again.is_set():
                self._asked_again.clear()
                await self.try_load()
            await asyncio.sleep(_POLL_S)
            self._level.look()
            if news := self._file.news():
                await self.try_load(str(json.loads(news)[0]))

    async def try_load(self, path: str | None = None) -> None:
        """:meth:`load` (by default what is in use, again); a failure is only logged."""
        if (path := path or self._checkpoint) is None:
            return
        try:
            await self.load(path)
        except EcoServeError as error:
            logger.error("ecoserve: %s; %s stays in use", error, self._checkpoint)


async def _json(receive: Receive) -> dict[str, Any] | None:
    raw = b""
    more = True
    while more:
        message = await receive()
        raw += message.get("body", b"")
        if message["type"] != "http.request" or len(raw) > _LONGEST:
            return None
        more = message.get("more_body", False)
    try:
        body = json.loads(raw or b"{}")
    except ValueError:
        return None
    return body if isinstance(body, dict) else None
