"""PredictionMiddleware: adds a length distribution, and the SLO, to the requests of vLLM's API server.

Pure ASGI, given to vLLM by ``--middleware ecoserve.serving.adapter.middleware.PredictionMiddleware`` and configured
by environment (:mod:`~ecoserve.serving.adapter.middleware_settings`). Rules:

- It runs before vLLM's API-key check, so it checks the key by the same rule; requests without it are passed on
  untouched, and vLLM answers 401.
- It reads the body and passes on one whole ``http.request`` message with its content-length, then the server's own
  ``receive``, so that vLLM still sees disconnects. What is not a JSON object is passed on as is.
- Keys of ours that clients send are removed. Bodies too long to be parsed, and forms, that may have some are refused.
- An SLO that is not valid (:mod:`~ecoserve.serving.adapter.deadlines`) is answered with 400.
- In level ``order`` the prediction becomes the request's priority (:mod:`~ecoserve.serving.adapter.priorities`).
- Requests without a prediction (time-out, error, overload, prompts of token ids, long bodies) are served all the same.
- Responses are not changed (:mod:`~ecoserve.serving.adapter.open_responses` says what happens when the server stops).
"""

from __future__ import annotations

import asyncio
import hmac
import os
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ecoserve.errors import ConfigError, EcoServeError
from ecoserve.lengths import LengthDistribution
from ecoserve.serving.adapter import admin, bodies, deadlines
from ecoserve.serving.adapter.level_file import RunLevel
from ecoserve.serving.adapter.metrics import logger, middleware_metrics, publish_run_level
from ecoserve.serving.adapter.middleware_settings import MiddlewareSettings
from ecoserve.serving.adapter.open_responses import App, Message, OpenResponses, Receive, Scope, Send, path_of
from ecoserve.serving.adapter.prediction_service import PredictionService, shared_predictor
from ecoserve.serving.adapter.priorities import HEADER, PATHS, Priorities, trusted_lengths
from ecoserve.serving.adapter.refusals import refuse
from ecoserve.serving.adapter.work_bound import WorkBound
from ecoserve.serving.core import keys

if TYPE_CHECKING:
    from ecoserve.predictor import LengthPredictor, Predicts
    from ecoserve.serving.adapter.learner import Learnable, Learner
    from ecoserve.serving.adapter.spans import PredictionSpans
    from ecoserve.serving.core.settings import Level

#: Path prefixes that vLLM guards with its API key.
_GUARDED = ("/v1", "/v2", "/inference", "/cohere")


class PredictionMiddleware:
    """ASGI middleware around ``app``; ``settings`` and ``predictor`` replace the environment's and the checkpoint's."""

    def __init__(self, app: App, settings: MiddlewareSettings | None = None, predictor: Predicts | None = None) -> None:
        self.app = app
        self._settings = settings
        self._predictor = predictor
        self._ready: asyncio.Future[None] | None = None
        self._service: PredictionService[Any] | None = None
        self._learner: Learner | None = None
        self._allowed: set[str] = set()
        self._slos: deadlines.SloRule | None = None
        self._bound: WorkBound | None = None
        self._keys: list[bytes] | None = None
        self._model_name = ""
        self._priorities: Priorities | None = None
        self._spans: PredictionSpans | None = None
        self._run_level = RunLevel("full")
        self._admin: admin.Admin | None = None
        self._following: asyncio.Task[None] | None = None
        self._responses = OpenResponses()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(scope, receive, send)
        elif scope["type"] == "http" and await self._is_admin(scope):
            assert self._admin is not None
            headers = {name.lower(): value for name, value in reversed(scope["headers"])}
            await self._admin.answer(path_of(scope), scope["method"], headers, receive, send)
        elif scope["type"] == "http":
            app = self._post if scope.get("method") == "POST" else self.app
            await self._responses.run(app, scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _is_admin(self, scope: Scope) -> bool:
        if not path_of(scope).startswith(admin.PREFIX):
            return False
        await self._start()
        return self._admin is not None

    # -- starting and stopping -----------------------------------------------------------------------------

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        watch: asyncio.Task[None] | None = None

        async def first() -> Message:
            nonlocal watch
            message = await receive()
            if message["type"] == "lifespan.startup":
                state = getattr(scope.get("app"), "state", None)
                engine = getattr(state, "engine_client", None)
                if engine is not None:
                    self._model_name = str(engine.vllm_config.model_config.served_model_name)
                if (server := getattr(state, "server", None)) is not None:
                    watch = asyncio.ensure_future(self._responses.watch(server, engine))
                try:
                    await self._start()
                except Exception as error:
                    raise _StartFailed(str(error) or type(error).__name__) from error
                if engine is not None:
                    from ecoserve.serving.adapter.engine_stats import watch_engine

                    assert self._bound is not None
                    watch_engine(engine, self._bound, self._learner)
                    if await engine.is_tracing_enabled():
                        from ecoserve.serving.adapter.spans import PredictionSpans

                        self._spans = PredictionSpans()
            return message

        try:
            await self.app(scope, first, send)
        except _StartFailed as failed:
            # Before start-up is answered, servers take an error for "no lifespan here", and serve without us.
            logger.error("ecoserve: %s", failed, exc_info=not isinstance(failed.__cause__, EcoServeError))
            await send({"type": "lifespan.startup.failed", "message": f"ecoserve: {failed}"})
        finally:
            for task in (watch, self._following):
                if task is not None:
                    task.cancel()
            if self._service is not None:
                self._service.close()
            if self._learner is not None:
                self._learner.close()

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
        self._bound = WorkBound(settings.max_queue_s)
        middleware_metrics().serve(self._model_name, settings)
        level: Level = "shadow" if settings.shadow else "order" if settings.level == "order" else "full"
        self._run_level = RunLevel(level)
        publish_run_level(level)
        if settings.admin_key is not None:
            self._admin = admin.Admin(settings, self._run_level, self._use)
            self._following = asyncio.ensure_future(self._admin.follow())
        if settings.learn is not None:
            from ecoserve.serving.adapter.learner import Learner

            base = cast("LengthPredictor | None", predictor)
            self._learner = await asyncio.to_thread(Learner, Path(settings.learn), base, self._model_name)
            self._learner.start()
        if (asked := self._learner or predictor) is not None:
            self._service = PredictionService[Any](asked, settings)
            if self._predictor is None:
                await self._service.warm_up()

    async def _use(self, predictor: Predicts) -> None:
        """Predict with ``predictor`` from now on, if it can."""
        assert self._settings is not None
        if self._learner is not None:
            what = "this server learns what it predicts with"
            raise ConfigError(what, where="--learn", fix="start it with the other predictor")
        service = PredictionService(predictor, self._settings)
        try:
            await service.warm_up()
        except BaseException:
            service.close()
            raise
        self._service, before = service, self._service
        if before is not None:
            before.close_when_idle()

    # -- one request -----------------------------------------------------------------------------------------

    async def _post(self, scope: Scope, receive: Receive, send: Send) -> None:
        work = _Work(time.time())
        await self._start()
        path = path_of(scope)
        # The first of equal headers counts, as it does for vLLM.
        headers = {name.lower(): value for name, value in reversed(scope["headers"])}
        content_type = headers.get(b"content-type", b"")
        kind = bodies.kind(content_type)
        if not self._may_enter(scope, path, headers) or kind is None:
            await self.app(scope, receive, send)
            return
        raw, rest = await _read(receive)
        assert self._bound is not None
        if path in bodies.ASKS and (wait_s := self._bound.retry_after_s()) is not None:
            what = "the server has more work than it can do soon"
            await refuse(send, path, 429, "queue", what, retry_after_s=wait_s)
            return
        new: bytes | None = None
        bounded = path in bodies.ASKS
        try:
            # It is open while it waits for its prediction, too: else a burst would come in whole.
            with self._bound.serving(None) if bounded else nullcontext():
                if raw is not None and kind == "json":
                    new = await self._rewritten(path, raw, scope, work)
                elif raw is not None and bodies.form_may_carry_keys(raw, content_type):
                    self._refuse_keys(400, "a form")
        except deadlines.BadDeadline as error:
            middleware_metrics().slo_values.labels("refused").inc()
            await refuse(send, path, 400, "slo", str(error), param=error.where)
            return
        except _Refused as error:
            await refuse(send, path, error.status, "keys", str(error))
            return
        changed = {}
        if new is not None:
            raw = new
            if b"content-length" in headers:
                changed[b"content-length"] = len(raw)
        if work.priority is not None:
            changed[HEADER] = work.priority
        if changed:
            kept = [(n, v) for n, v in scope["headers"] if n.lower() not in changed]
            scope = {**scope, "headers": [*kept, *((n, str(v).encode()) for n, v in changed.items())]}
        if raw is not None:
            rest = [{"type": "http.request", "body": raw, "more_body": False}]

        async def replay() -> Message:
            return rest.pop(0) if rest else await receive()

        if work.learnable is not None:
            # vLLM names the request's id in there.
            state = scope.setdefault("state", {})
            send = work.learnable.counting(send)
        try:
            with self._bound.serving(work.tokens) if bounded else nullcontext():
                await self.app(scope, replay, send)
        finally:
            if work.learnable is not None and self._learner is not None:
                self._learner.over(work.learnable, state)

    async def _rewritten(self, path: str, raw: bytes, scope: Scope, work: _Work) -> bytes | None:
        """The JSON body with our values in it, or None to pass it on unchanged; ``work`` gets what is found."""
        assert self._settings is not None
        headers = scope["headers"]
        order = self._priorities_of(scope) if path in PATHS else None
        limit = self._settings.max_body_bytes
        read_ask = bodies.ASKS.get(path)
        too_long = len(raw) > limit
        long = too_long or (path in PATHS and bodies.too_many(raw))
        if read_ask is not None and long:
            self._count("bypassed")
            self._ignored(deadlines.asks(headers))
            read_ask = None
        may_carry = bodies.may_carry_keys(raw)
        if too_long and may_carry:
            self._refuse_keys(413, f"a body above {limit:,} bytes")
        if too_long or not (may_carry or read_ask is not None or (order is not None and not long)):
            work.priority = None if order is None else order.unread(headers, len(raw), work.arrival_s)
            return None
        body = bodies.parse(raw)
        if body is None:
            if read_ask is not None:
                self._count("bypassed")
            return None
        drop = bodies.foreign_keys(body, self._allowed)
        add: dict[str, Any] = {}
        if drop:
            middleware_metrics().dropped_keys.labels().inc(len(drop))
        if read_ask is not None:
            add = self._slo(headers, body)
            if self._slos is not None and self._slos.listens and deadlines.FIELD in body:
                drop.append((deadlines.FIELD,))
        ask = read_ask(body) if read_ask is not None else None
        lengths: Sequence[LengthDistribution] = ()
        if self._has_prediction(body):
            lengths = trusted_lengths(body) if order is not None else ()
        elif read_ask is not None and self._service is not None:
            if ask is None:
                self._count("bypassed")
            else:
                lengths = await self._predict(ask, headers, work)
                if lengths:
                    work.tokens = sum(d.mean() for d in lengths) * bodies.responses(body)
                    add |= bodies.wire_args(ask, lengths) if order is None else {}
                if bodies.forced(body):
                    work.learnable = None
        if order is None:
            return bodies.rewrite(raw, body, drop, add)
        work.priority, fields = order.of(path, headers, body, ask, lengths, work.arrival_s)
        return bodies.rewrite(raw, body, drop, add, fields)

    def _priorities_of(self, scope: Scope) -> Priorities | None:
        """In level ``order``, what sets priorities."""
        assert self._settings is not None
        if self._settings.level != "order" or self._run_level.look() == "shadow":
            return None
        if self._priorities is None:
            self._priorities = Priorities(_server_args(scope, "additional_config"))
        return self._priorities

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

    async def _predict(
        self, ask: bodies.Ask, headers: Sequence[tuple[bytes, bytes]], work: _Work
    ) -> Sequence[LengthDistribution]:
        """The lengths of its contexts, closed at the body's own limit; empty without a prediction."""
        assert self._service is not None
        begun, begun_ns = time.perf_counter(), time.time_ns()
        found, outcome = await self._service.predict(ask.requests())
        middleware_metrics().seconds.labels().observe(time.perf_counter() - begun)
        lengths = found
        if found and self._learner is not None:
            work.learnable = self._learner.learnable(found)
            lengths = [note.lengths for note in found]
            if None in lengths:
                lengths, outcome = None, "history"
        self._count(outcome)
        if self._spans is not None:
            self._spans.record(headers, begun_ns, outcome, lengths or ())
        return [d if ask.limit is None else d.closed_at(ask.limit) for d in lengths or ()]

    def _count(self, outcome: str) -> None:
        if self._service is not None:
            middleware_metrics().predictions.labels(outcome).inc()

    def _has_prediction(self, body: dict[str, Any]) -> bool:
        return bool({keys.LENGTHS, keys.LENGTHS_BATCH} & self._client_keys(body))

    def _client_keys(self, body: dict[str, Any]) -> set[str]:
        given = body.get(bodies.XARGS)
        return self._allowed & given.keys() if isinstance(given, dict) else set()

    # -- keys ---------------------------------------------------------------------------------------------------

    def _refuse_keys(self, status: int, what: str) -> None:
        """For a body that is not searched for keys, unless the client may send all of them."""
        if not set(keys.ALL) <= self._allowed:
            raise _Refused(status, f"{what} may not contain names that begin with {keys.PREFIX}")

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
        given = _server_args(scope, "api_key") or [os.environ.get("VLLM_API_KEY"), self._settings.api_key]
        return [key.encode() for key in given if key]


def _server_args(scope: Scope, name: str) -> Any:
    """A flag of vLLM's server as it was parsed, where it can be seen."""
    args = getattr(getattr(scope.get("app"), "state", None), "args", None)
    return getattr(args, name, None)


async def _read(receive: Receive) -> tuple[bytes | None, list[Message]]:
    """The whole body, or None and the messages read so far if it breaks off."""
    seen: list[Message] = []
    while True:
        message = await receive()
        seen.append(message)
        if message["type"] != "http.request":
            return None, seen
        if not message.get("more_body", False):
            return b"".join(m.get("body", b"") for m in seen), []


@dataclass(slots=True)
class _Work:
    """A request's arrival (Unix time), the tokens predicted for its responses, what is learned from them, and in level
    ``order`` its priority."""

    arrival_s: float
    tokens: float | None = None
    learnable: Learnable | None = None
    priority: int | None = None


class _Refused(Exception):
    def __init__(self, status: int, what: str) -> None:
        self.status = status
        super().__init__(what)


class _StartFailed(Exception):
    """The predictor or its settings cannot be used; becomes ``lifespan.startup.failed``."""
