"""The application of Ray Serve: an ingress that predicts, and replicas of vLLM's server that it sends requests to.

The ingress is :class:`~ecoserve.serving.adapter.middleware.PredictionMiddleware` around :class:`Forward`: what it does
to requests is what it does in ``ecoserve serve``. A replica is the ASGI application that ``ecoserve serve`` would run,
called over Ray instead of HTTP, so every API of vLLM is there. A response goes back as ASGI messages.

A config file for ``serve run`` names :func:`ecoserve.serving.cluster.engine.build` (deploy/ray-serve.yaml).
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Final

from ray import serve
from ray.exceptions import RayError
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, RequestRouterConfig
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from ecoserve.data.measuring import CHARACTERS_PER_TOKEN
from ecoserve.errors import PredictionError
from ecoserve.lengths import LengthDistribution
from ecoserve.serving.adapter import bodies
from ecoserve.serving.adapter.middleware import PredictionMiddleware
from ecoserve.serving.adapter.open_responses import App, Message, Receive, Scope, Send, path_of
from ecoserve.serving.adapter.refusals import error_body, refuse
from ecoserve.serving.cluster.router import ByWork, WorkRouter, stats_of
from ecoserve.serving.cluster.settings import RaySettings
from ecoserve.serving.core import keys
from ecoserve.serving.routing import LONGEST, PREFIX_TOKENS, Offer, OpenWork, Report, past_lengths

#: What of an ASGI scope is sent to a replica.
_SCOPE: Final = ("type", "http_version", "method", "scheme", "path", "raw_path", "query_string", "headers", "root_path")
#: Header by which vLLM names a request.
_REQUEST_ID: Final = b"x-request-id"
_CHARACTERS: Final = int(PREFIX_TOKENS * CHARACTERS_PER_TOKEN)
_GONE: Final = "the replica that had this request is gone"


@dataclass(frozen=True, slots=True)
class Served:
    """What a replica serves.

    Attributes:
        app: the ASGI application, started.
        tokens: tokens of each response that is open, by a name in which the request's own is contained.
        check: raises if it can serve no more. kv_tokens: of its KV cache.
    """

    app: App
    tokens: Callable[[], Mapping[str, int]]
    check: Callable[[], None]
    kv_tokens: int = 0


#: Makes what a replica serves from the settings, and ends it.
Serves = Callable[[RaySettings], AbstractAsyncContextManager[Served]]


class Replica:
    """One engine."""

    async def __init__(self, serves: Serves, settings: dict[str, Any]) -> None:  # type: ignore[misc]
        self._stack = AsyncExitStack()
        self._served = await self._stack.enter_async_context(serves(RaySettings(**settings)))
        self._work = OpenWork(self._served.kv_tokens)
        self._open: set[str] = set()

    async def handle(self, offer: Offer, scope: dict[str, Any], body: bytes) -> AsyncGenerator[list[Message], None]:
        """One HTTP request: the ASGI messages of its response, as many at a time as there are."""
        messages: asyncio.Queue[Message | None] = asyncio.Queue()
        asked, gone = [body], asyncio.Event()

        async def receive() -> Message:
            if asked:
                return {"type": "http.request", "body": asked.pop(), "more_body": False}
            await gone.wait()
            return {"type": "http.disconnect"}

        async def run() -> None:
            try:
                await self._served.app(dict(scope), receive, messages.put)
            finally:
                messages.put_nowait(None)

        self._work.opened(offer)
        self._open.add(offer.name)
        task = asyncio.create_task(run())
        try:
            ended = False
            while not ended:
                batch = [await messages.get()]
                while not messages.empty():
                    batch.append(messages.get_nowait())
                ended = batch[-1] is None
                if found := [m for m in batch if m is not None]:
                    yield found
            await task
        finally:
            # Where the client has gone, vLLM sees that and aborts the request.
            gone.set()
            task.cancel()
            self._open.discard(offer.name)
            self._work.ended(offer.name)

    def _report(self) -> Report:
        tokens: dict[str, int] = {}
        for name, out in self._served.tokens().items():
            tokens |= {own: out for own in _names_in(name) if own in self._open}
        running = sum(n > 0 for n in tokens.values())
        return self._work.report(time.time(), tokens, running, len(self._open) - running)

    async def record_routing_stats(self) -> dict[str, Any]:
        return stats_of(self._report())

    async def record_autoscaling_stats(self) -> dict[str, float]:
        return {"work": self._report().work[-1]}

    async def check_health(self) -> None:
        self._served.check()

    async def __del__(self) -> None:
        await self._stack.aclose()


def _names_in(name: str) -> list[str]:
    """The parts of vLLM's name of a request that may be ours."""
    return [part for part in name.split("-") if len(part) == 32]


class Forward:
    """The application within the ingress: sends each request to a replica, and passes on what comes back."""

    def __init__(self, replicas: DeploymentHandle) -> None:
        self._replicas = replicas.options(stream=True)
        self._history = past_lengths()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        body = b""
        while (message := await receive())["type"] == "http.request":
            body += message.get("body", b"")
            if not message.get("more_body", False):
                break
        path = path_of(scope)
        name = uuid.uuid4().hex
        sent = {key: scope[key] for key in _SCOPE if key in scope}
        # vLLM names the request by it, so that its tokens can be followed; a client's own name stays in front.
        given = [v for n, v in scope["headers"] if n.lower() == _REQUEST_ID]
        kept = [(n, v) for n, v in scope["headers"] if n.lower() != _REQUEST_ID]
        sent["headers"] = [*kept, (_REQUEST_ID, b"-".join([*given[:1], name.encode()]))]
        started = events = complete = False
        try:
            async for batch in self._replicas.handle.remote(self._offer(name, path, body), sent, body):
                for message in batch:
                    if message["type"] == "http.response.start":
                        started = True
                        kinds = [v for n, v in message.get("headers", ()) if n.lower() == b"content-type"]
                        events = any(v.startswith(b"text/event-stream") for v in kinds)
                    else:
                        complete = not message.get("more_body", False)
                    await send(message)
        except (RayError, RayServeException) as error:
            if complete:
                return
            if not started:
                full = "BackPressure" in type(error).__name__
                what = "all replicas are full" if full else _GONE
                await refuse(send, path, 503, "queue" if full else "engine_failed", what, retry_after_s=1)
            elif events:
                event = b"data: " + error_body(path, 503, _GONE) + b"\n\ndata: [DONE]\n\n"
                await send({"type": "http.response.body", "body": event})
            else:
                raise

    def _offer(self, name: str, path: str, body: bytes) -> Offer:
        ask = bodies.ASKS.get(path)
        parsed = bodies.parse(body) if ask is not None and not bodies.too_many(body) else None
        asked = ask(parsed) if ask is not None and parsed is not None else None
        if parsed is None or asked is None:
            return Offer(name, int(len(body) / CHARACTERS_PER_TOKEN), self._history.distribution(LONGEST))
        text = "".join(f"\0{m.role}\0{m.content}" for m in asked.chats[0])
        lengths = _lengths(parsed) or self._history.distribution(asked.limit or LONGEST)
        return Offer(name, int(len(text) / CHARACTERS_PER_TOKEN), lengths, prefix_chain(text))


def prefix_chain(text: str) -> tuple[bytes, ...]:
    """Hashes of the beginnings of a prompt's text, one for about every ``PREFIX_TOKENS`` tokens."""
    chain, running = [], blake2b(digest_size=8)
    for start in range(0, len(text) - _CHARACTERS + 1, _CHARACTERS):
        running.update(text[start : start + _CHARACTERS].encode("utf-8", "surrogatepass"))
        chain.append(running.digest())
    return tuple(chain)


def _lengths(body: Mapping[str, Any]) -> LengthDistribution | None:
    """The prediction that the middleware has put into a body."""
    given = body.get(bodies.XARGS)
    try:
        return LengthDistribution.from_wire(given[keys.LENGTHS]) if isinstance(given, Mapping) else None
    except (KeyError, PredictionError):
        return None


class Ingress:
    """Predicts, and forwards."""

    def __init__(self, replicas: DeploymentHandle, settings: dict[str, Any]) -> None:
        self._app = PredictionMiddleware(
            Forward(replicas), RaySettings(**settings).middleware(level="full", shadow=False)
        )

    def __serve_build_asgi_app__(self) -> App:
        return self._app


def application(settings: RaySettings, serves: Serves) -> serve.Application:
    """The application for :func:`ray.serve.run`; ``serves`` makes what each replica serves."""
    given = settings.model_dump(exclude_defaults=True)
    scaling: dict[str, Any] = {"num_replicas": settings.replicas}
    if settings.max_replicas is not None:
        policy = AutoscalingPolicy(policy_function=ByWork, policy_kwargs={"target_work": settings.target_work})
        scaling = {
            "autoscaling_config": AutoscalingConfig(
                min_replicas=settings.replicas,
                max_replicas=settings.max_replicas,
                upscale_delay_s=settings.upscale_delay_s,
                downscale_delay_s=settings.downscale_delay_s,
                policy=policy,
            )
        }
    router = RequestRouterConfig(
        request_router_class=WorkRouter,
        request_router_kwargs={"rule": settings.router},
        request_routing_stats_period_s=settings.report_period_s,
        request_routing_stats_timeout_s=10.0,
    )
    replica = serve.deployment(Replica).options(
        **scaling,
        max_ongoing_requests=settings.max_requests,
        graceful_shutdown_timeout_s=settings.drain_s,
        health_check_period_s=settings.health_period_s,
        request_router_config=router,
        ray_actor_options={"num_cpus": settings.cpus, "num_gpus": settings.gpus},
    )
    ingress = serve.deployment(serve.ingress()(Ingress)).options(
        num_replicas=settings.ingress_replicas,
        max_ongoing_requests=settings.max_requests * 16,
        graceful_shutdown_timeout_s=settings.drain_s,
        ray_actor_options={"num_cpus": settings.ingress_cpus},
    )
    return ingress.bind(replica.bind(serves, given), given)
