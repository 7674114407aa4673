"""``ecoserve predict-server``: predicted lengths over HTTP, for gateways that choose replicas themselves.

``POST /predict`` + the path that the client called, with the body that the client sent, gives for each context the
length, its quantiles and the expected KV x time. Bodies are read by the rules of the middleware
(:mod:`~ecoserve.serving.adapter.bodies`), and nothing in them is taken for a prediction. vLLM is not imported.
"""

from __future__ import annotations

import hmac
import math
import signal
import sys
from argparse import Namespace
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException

from ecoserve.data.measuring import CHARACTERS_PER_TOKEN
from ecoserve.lengths import MAX_LENGTH, LengthDistribution
from ecoserve.predictor import Predicts
from ecoserve.serving.adapter import bodies
from ecoserve.serving.adapter.metrics import middleware_metrics
from ecoserve.serving.adapter.middleware_settings import MiddlewareSettings
from ecoserve.serving.adapter.prediction_service import Chat, PredictionService, shared_predictor
from ecoserve.serving.adapter.refusals import error_body
from ecoserve.serving.routing import RestOfResponse

#: What comes before the path that the client called.
PREFIX: Final = "/predict"
QUANTILES: Final = (0.1, 0.5, 0.9, 0.99)
#: Seconds that requests in progress have once the server is asked to stop.
_DRAIN_S: Final = 5


def predict_server(settings: MiddlewareSettings, host: str, port: int) -> None:
    """Serve the predictor of ``settings`` until SIGTERM or SIGINT; what is in progress is answered, and the exit code
    is 0.

    Raises:
        CheckpointError: if the predictor cannot be loaded. ConfigError: if the address cannot be listened at.
    """
    import uvicorn

    from ecoserve.serving.adapter.server import check_address

    assert settings.predictor is not None
    check_address(Namespace(uds=None, host=host, port=port))
    predictor = shared_predictor(settings.predictor)
    app = prediction_app(predictor, settings, predictor.config.served_model or "")
    config = uvicorn.Config(app, host, port, log_level="warning", timeout_graceful_shutdown=_DRAIN_S)
    # Once it has drained, uvicorn raises the signal again.
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: sys.exit(0))
    print(f"ecoserve: predictions at http://{host}:{port}{PREFIX}/v1/chat/completions", file=sys.stderr)
    uvicorn.Server(config).run()


def prediction_app(predictor: Predicts, settings: MiddlewareSettings, served_model: str = "") -> FastAPI:
    """The ASGI application; ``settings``: its ``predict_*``, ``max_body_bytes`` and ``api_key`` count."""
    service: PredictionService[LengthDistribution]

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        nonlocal service
        middleware_metrics().serve(served_model, settings)
        service = PredictionService(predictor, settings)
        await service.warm_up()
        yield
        service.close()

    app = FastAPI(title="ecoserve predict-server", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)

    async def predict(request: Request) -> Response:
        path = request.url.path.removeprefix(PREFIX)
        if settings.api_key is not None:
            scheme, _, given = request.headers.get("authorization", "").partition(" ")
            if not hmac.compare_digest(given.encode(), settings.api_key.encode()) or scheme.lower() != "bearer":
                raise HTTPException(401, "the key is missing or wrong; send Authorization: Bearer KEY")
        ask = _asked(path, await _read(request, settings.max_body_bytes))
        prompt_tokens = _prompt_tokens(request, ask.chats)
        lengths, outcome = await service.predict(ask.requests())
        middleware_metrics().predictions.labels(outcome).inc()
        if lengths is None:
            raise HTTPException(503, f"no prediction was made ({outcome}); route this request without one")
        limit = ask.limit
        lengths = [d if limit is None else d.closed_at(min(limit, MAX_LENGTH)) for d in lengths]
        found = [_prediction(d, n) for d, n in zip(lengths, prompt_tokens, strict=True)]
        longest = max(d.mean() for d in lengths)
        return JSONResponse(
            {
                "served_model": served_model,
                "predictions": found,
                # What Dynamo's router reads in a request body.
                "nvext": {"agent_hints": {"osl": math.ceil(longest)}},
            }
        )

    for path in bodies.ASKS:
        app.add_api_route(PREFIX + path, predict, methods=["POST"])

    async def health() -> Response:
        return Response(status_code=200)

    async def metrics() -> Response:
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

    app.add_api_route("/health", health)
    app.add_api_route("/metrics", metrics)

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        what = error.detail
        if error.status_code == 404:
            what = f"there is no {request.url.path}; POST to {', '.join(PREFIX + path for path in bodies.ASKS)}"
        return Response(error_body(request.url.path, error.status_code, what), error.status_code, error.headers)

    return app


def _prediction(lengths: LengthDistribution, prompt_tokens: int) -> dict[str, Any]:
    rest = RestOfResponse(lengths)
    return {
        "mean_tokens": round(lengths.mean(), 1),
        "quantiles_tokens": {f"{q:g}": lengths.quantile(q) for q in QUANTILES},
        "prompt_tokens": prompt_tokens,
        "kv_token_steps": round(rest.kv_time(prompt_tokens)),
        "work_tokens": round(prompt_tokens + rest.work(prompt_tokens, 0)[-1]),
    }


async def _read(request: Request, most: int) -> bytes:
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > most:
            raise HTTPException(413, f"the body is longer than {most:,} bytes", {"connection": "close"})
        parts.append(part)
    return b"".join(parts)


def _asked(path: str, raw: bytes) -> bodies.Ask:
    if bodies.too_many(raw):
        raise HTTPException(413, f"the body has more than {bodies.MOST_COMMAS:,} commas")
    body = bodies.parse(raw)
    if body is None:
        raise HTTPException(400, "the body is no JSON object; send the body of the client's request")
    ask = bodies.ASKS[path](body)
    if ask is None:
        raise HTTPException(400, f"the body has no prompt in text that {path} would read")
    return ask


def _prompt_tokens(request: Request, chats: Sequence[Chat]) -> list[int]:
    """As the gateway has counted them (``?prompt_tokens=N`` for each context), else estimated from the characters."""
    given = request.query_params.getlist("prompt_tokens")
    if not given:
        return [math.ceil(sum(len(m.content) for m in chat) / CHARACTERS_PER_TOKEN) for chat in chats]
    if len(given) != len(chats) or not all(n.isdecimal() and int(n) <= MAX_LENGTH for n in given):
        raise HTTPException(400, f"prompt_tokens is no number of tokens for each of {len(chats)} prompts")
    return [int(n) for n in given]
