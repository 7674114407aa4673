"""What the front door's tests share: an ASGI application that records what reaches it, and predictors to order."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import httpx

from ecoserve.data import Message
from ecoserve.lengths import LengthDistribution
from ecoserve.serving.adapter.front_settings import FrontSettings
from ecoserve.serving.adapter.middleware import PredictionMiddleware

Chat = Sequence[Message]


class ByWords:
    """Predicts as many tokens as the last message has words, and remembers what it was asked."""

    def __init__(self, delay_s: float = 0.0, error: Exception | None = None) -> None:
        self.delay_s = delay_s
        self.error = error
        self.calls: list[list[Chat]] = []

    def predict(self, texts: Sequence[Chat], /) -> list[LengthDistribution]:
        self.calls.append(list(texts))
        time.sleep(self.delay_s)
        if self.error is not None:
            raise self.error
        return [LengthDistribution.point(max(1, len(chat[-1].content.split()))) for chat in texts]


class Recorder:
    """An ASGI application: reads the whole body, keeps it and its headers, answers 200 with the body."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.headers: list[dict[str, str]] = []
        self.events: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            while True:
                message = await receive()
                await send({"type": f"{message['type']}.complete"})
                if message["type"] == "lifespan.shutdown":
                    return
        body = b""
        while True:
            message = await receive()
            self.events.append(message["type"])
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        self.bodies.append(body)
        self.headers.append({n.decode().lower(): v.decode() for n, v in scope["headers"]})
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
        await send({"type": "http.response.body", "body": body})

    @property
    def last(self) -> Any:
        """The last body, parsed."""
        return json.loads(self.bodies[-1])


def with_client(
    use: Callable[[httpx.AsyncClient, Recorder], Awaitable[Any]],
    predictor: ByWords | None = None,
    **settings: Any,
) -> Recorder:
    """Run ``use`` with a client whose requests go through the middleware to a recorder."""
    recorder = Recorder()
    middleware = PredictionMiddleware(recorder, settings=FrontSettings(**settings), predictor=predictor)

    async def go() -> None:
        transport = httpx.ASGITransport(app=middleware)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            await use(client, recorder)

    asyncio.run(go())
    return recorder


def counted(outcome: str) -> float:
    """How many requests the process has counted with this outcome."""
    from ecoserve.serving.adapter.metrics import front_families

    return float(front_families().predictions.labels(outcome)._value.get())
