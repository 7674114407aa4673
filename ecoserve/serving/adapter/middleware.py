"""PredictionMiddleware: adds a length distribution, and the SLO, to the requests of vLLM's API server.

Pure ASGI, given to vLLM by ``--middleware ecoserve.serving.adapter.middleware.PredictionMiddleware`` and configured
by environment (:mod:`~ecoserve.serving.adapter.middleware_settings`). Rules:

- It runs before vLLM's API-key check, so it checks the key by the same rule; requests without it are passed on
  untouched, and vLLM answers 401.
- It reads the body and passes on one whole ``http.request`` message with its content-length, then the server's own
  ``receive``, so that vLLM still sees disconnects. Bodies that are too long or not a JSON object are passed on as is.
- An SLO that is not valid (:mod:`~ecoserve.serving.adapter.deadlines`) is answered with 400.
- Requests without a prediction (time-out, error, overload, prompts of token ids) are served all the same.
- Responses are not changed; those open when the server stops are ended.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import os
import time
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from ecoserve.errors import EcoServeError
from ecoserve.serving.adapter import bodies, deadlines
from ecoserve.serving.adapter.metrics import logger, middleware_metrics
from ecoserve.serving.adapter.middleware_settings import MiddlewareSettings
from ecoserve.serving.adapter.prediction_service import PredictionService, shared_predictor
from ecoserve.serving.core import keys

if TYPE_CHECKING:
    from ecoserve.predictor import Predicts

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
    """The open responses; they are ended when the server stops: a stream by an error event, anything else by 503.

    On SIGTERM vLLM's server lets its engine drain for ``--shutdown-timeout`` seconds, kills it, and then waits for
    every open connection, so that it hangs as long as the client of an unfinished stream does. Only once the engine is
    gone is the HTTP server asked to exit; what is still open a moment later is ended here.
    """

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


#: Path prefixes that vLLM guards with its API key.
_GUARDED = ("/v1", "/v2", "/inference", "/cohere")


class PredictionMiddleware:
    """ASGI middleware around ``app``; ``settings`` and ``predictor`` replace the environment's and the checkpoint's."""

    def __init__(self, app: App, settings: MiddlewareSettings | None = None, predictor: Predicts | None = None) -> None:
        self.app = app
        self._settings = settings
        self._predictor = predictor
        self._ready: asyncio.Future[None] | None = None
        self._service: PredictionService | None = None
        self._allowed: set[str] = set()
        self._slos: deadlines.SloRule | None = None
        self._keys: list[bytes] | None = None
        self._responses = OpenResponses()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(scope, receive, send)
        elif scope["type"] == "http" and scope.get("method") == "POST":
            await self._responses.run(self._post, scope, receive, send)
        else:
            await self.app(scope, receive, send)

    # -- starting and stopping -----------------------------------------------------------------------------

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        watch: asyncio.Task[None] | None = None

        async def first() -> Message:
            nonlocal watch
            message = await receive()
            if message["type"] == "lifespan.startup":
                server = getattr(getattr(scope.get("app"), "state", None), "server", None)
                if server is not None:
                    watch = asyncio.ensure_future(self._responses.watch(server))
                try:
                    await self._start()
                except Exception as error:
                    raise _StartFailed(str(error) or type(error).__name__) from error
            return message

        try:
            await self.app(scope, first, send)
        except _StartFailed as failed:
            # Before start-up is answered, servers take an error for "no lifespan here", and serve without us.
            logger.error("ecoserve: %s", failed, exc_info=not isinstance(failed.__cause__, EcoServeError))
            await send({"type": "lifespan.startup.failed", "message": f"ecoserve: {failed}"})
        finally:
            if watch is not None:
                watch.cancel()
            if self._service is not None:
                self._service.close()

    async def _start(self) -> None:
        """Load the predictor once, off the event loop; concurrent requests wait for the same load."""
        if self._ready is None:
            self._ready = asyncio.ensure_future(self._load())
        await asyncio.shield(self._ready)

    async def _load(self) -> None:
        settings = self._settings or MiddlewareSettings.read()
        predictor = self._predictor
        if predictor is None and settings.predictor is not None:
            predictor = await asyncio.to_thread(shared_predictor, settings.predictor)
        trusted = set(keys.ALL) - {keys.REPLAY_TOKENS} if settings.trust_client else set()
        self._allowed = trusted | ({keys.REPLAY_TOKENS} if settings.replay else set())
        self._settings = settings
        self._slos = deadlines.SloRule(settings)
        if predictor is not None:
            self._service = PredictionService(predictor, settings)
            if self._predictor is None:
                await self._service.warm_up()

    # -- one request -----------------------------------------------------------------------------------------

    async def _post(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._start()
        path = str(scope["path"]).removeprefix(scope.get("root_path", ""))
        headers = {name.lower(): value for name, value in scope["headers"]}
        if not self._may_enter(scope, path, headers) or not _is_json(headers.get(b"content-type", b"")):
            await self.app(scope, receive, send)
            return
        raw, rest = await self._read(headers, receive)
        if raw is None and path in bodies.ASKS:
            self._count("bypassed")
            self._ignored(deadlines.asks(scope["headers"]))
        try:
            new = None if raw is None else await self._rewritten(path, raw, scope["headers"])
        except deadlines.BadDeadline as error:
            middleware_metrics().slo_values.labels("refused").inc()
            await _answer_400(send, deadlines.refusal(error, path))
            return
        if new is not None:
            raw = new
            fixed = [(n, v) for n, v in scope["headers"] if n.lower() != b"content-length"]
            if b"content-length" in headers:
                fixed.append((b"content-length", str(len(raw)).encode()))
            scope = {**scope, "headers": fixed}
        if raw is not None:
            rest = [{"type": "http.request", "body": raw, "more_body": False}]

        async def replay() -> Message:
            return rest.pop(0) if rest else await receive()

        await self.app(scope, replay, send)

    async def _read(self, headers: dict[bytes, bytes], receive: Receive) -> tuple[bytes | None, list[Message]]:
        """The whole body, or None and the messages read so far if it is too long or breaks off."""
        assert self._settings is not None
        limit = self._settings.max_body_bytes
        try:
            if int(headers.get(b"content-length", b"0")) > limit:
                return None, []
        except ValueError:
            return None, []
        seen: list[Message] = []
        size = 0
        while True:
            message = await receive()
            seen.append(message)
            if message["type"] != "http.request":
                return None, seen
            size += len(message.get("body", b""))
            if size > limit:
                return None, seen
            if not message.get("more_body", False):
                return b"".join(m.get("body", b"") for m in seen), []

    async def _rewritten(self, path: str, raw: bytes, headers: Sequence[tuple[bytes, bytes]]) -> bytes | None:
        """The body with our values in it, or None to pass it on unchanged."""
        read_ask = bodies.ASKS.get(path)
        if read_ask is None and not bodies.may_carry_keys(raw):
            return None
        body = bodies.parse(raw)
        if body is None:
            if read_ask is not None:
                self._count("bypassed")
            return None
        drop = bodies.foreign_keys(body, self._allowed)
        add: dict[str, Any] = {}
        if drop:
            middleware_metrics().dropped_keys.inc(len(drop))
        if read_ask is not None:
            add = self._slo(headers, body)
            if self._slos is not None and self._slos.listens and deadlines.FIELD in body:
                drop.append((deadlines.FIELD,))
        if read_ask is not None and self._service is not None and not self._has_prediction(body):
            ask = read_ask(body)
            if ask is None:
                self._count("bypassed")
            else:
                add |= await self._predict(ask)
        return bodies.rewrite(raw, body, drop, add)

    def _slo(self, headers: Sequence[tuple[bytes, bytes]], body: dict[str, Any]) -> dict[str, Any]:
        assert self._slos is not None
        decision = self._slos.decide(headers, body, self._client_keys(body))
        families = middleware_metrics()
        families.slo_values.labels("accepted").inc(decision.accepted)
        families.slo_values.labels("clamped").inc(decision.clamped)
        if decision.source is not None:
            families.slos_stated.labels(decision.source).inc()
        self._ignored(not self._slos.listens and deadlines.asks(headers, body))
        return dict(decision.add)

    def _ignored(self, slo: bool) -> None:
        if slo:
            middleware_metrics().slo_values.labels("ignored").inc()

    async def _predict(self, ask: bodies.Ask) -> dict[str, Any]:
        assert self._service is not None
        begun = time.perf_counter()
        lengths, outcome = await self._service.predict(ask.requests())
        middleware_metrics().seconds.observe(time.perf_counter() - begun)
        self._count(outcome)
        return bodies.wire_args(ask, lengths) if lengths else {}

    def _count(self, outcome: str) -> None:
        if self._service is not None:
            middleware_metrics().predictions.labels(outcome).inc()

    def _has_prediction(self, body: dict[str, Any]) -> bool:
        return bool({keys.LENGTHS, keys.LENGTHS_BATCH} & self._client_keys(body))

    def _client_keys(self, body: dict[str, Any]) -> set[str]:
        given = body.get(bodies.XARGS)
        return self._allowed & given.keys() if isinstance(given, dict) else set()

    # -- keys ---------------------------------------------------------------------------------------------------

    def _may_enter(self, scope: Scope, path: str, headers: dict[bytes, bytes]) -> bool:
        if self._keys is None:
            self._keys = self._api_keys(scope)
        if not self._keys or not path.startswith(_GUARDED):
            return True
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        # Every key is compared, so that the time taken says nothing about which one came close.
        matches = [hmac.compare_digest(given, key) for key in self._keys]
        return scheme.lower() == b"bearer" and any(matches)

    def _api_keys(self, scope: Scope) -> list[bytes]:
        """vLLM's keys by vLLM's rule (``--api-key``, else ``VLLM_API_KEY``), else our own setting."""
        assert self._settings is not None
        args = getattr(getattr(scope.get("app"), "state", None), "args", None)
        given = getattr(args, "api_key", None) or [os.environ.get("VLLM_API_KEY"), self._settings.api_key]
        return [key.encode() for key in given if key]


async def _answer_400(send: Send, body: bytes) -> None:
    head = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 400, "headers": head})
    await send({"type": "http.response.body", "body": body})


def _is_json(content_type: bytes) -> bool:
    kind = content_type.split(b";")[0].strip().lower()
    return kind == b"application/json" or (kind.startswith(b"application/") and kind.endswith(b"+json"))


class _StartFailed(Exception):
    """The predictor or its settings cannot be used; becomes ``lifespan.startup.failed``."""
