"""The requests of the fuzz study before a recording application: none brings a key to where vLLM would read it."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from typing import Any

import fuzz

from ecoserve.serving.adapter.middleware import PredictionMiddleware
from ecoserve.serving.adapter.middleware_settings import MiddlewareSettings

PATHS = [
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
    "/inference/v1/generate",
    "/tokenize",
]


def keys_in(body: Any) -> set[str]:
    found: set[str] = set()
    for path in (("vllm_xargs",), ("extra_args",), ("sampling_params", "extra_args")):
        holder = body
        for name in path:
            holder = holder.get(name) if isinstance(holder, dict) else None
        found |= set(fuzz.KEYS) & holder.keys() if isinstance(holder, dict) else set()
    return found


def as_vllm_reads(raw: bytes) -> Any:
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        return None


def test_no_request_of_the_study_brings_a_key_to_vllm() -> None:
    tried, statuses, arrived = 0, Counter[int](), []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        raw = (await receive())["body"]
        kind = next(v for n, v in scope["headers"] if n == b"content-type").partition(b";")[0]
        if kind.endswith(b"json") and (keys := keys_in(as_vllm_reads(raw))):
            arrived.append((keys, raw[:300]))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def go() -> None:
        nonlocal tried
        middleware = PredictionMiddleware(app, settings=MiddlewareSettings(client_slos="off"))
        dice = random.Random(7)
        for _ in range(1500):
            sent = fuzz.request(dice, PATHS, 2**12)
            tried += bool(keys_in(as_vllm_reads(sent.body)))

            async def receive(body: bytes = sent.body) -> Any:
                return {"type": "http.request", "body": body, "more_body": False}

            async def send(message: Any) -> None:
                if "status" in message:
                    statuses[message["status"]] += 1

            headers = [(n.encode(), v.encode()) for n, v in sent.headers]
            await middleware({"type": "http", "method": "POST", "path": sent.path, "headers": headers}, receive, send)

    asyncio.run(go())
    assert arrived == []
    assert tried > 300
    assert set(statuses) == {200, 400}
