"""The bounded queue: how much work is open, how fast the engine is, and when a request is refused."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from front_helpers import ByWords, Recorder

from ecoserve.serving.adapter.middleware import PredictionMiddleware
from ecoserve.serving.adapter.middleware_settings import MiddlewareSettings
from ecoserve.serving.adapter.work_bound import WorkBound


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def at_capacity(bound: WorkBound, clock: Clock, tokens_per_s: int, engine: int = 0) -> None:
    for _ in range(201):
        clock.now += 0.1
        bound.step(engine, tokens_per_s // 10, waiting=True)


def test_only_time_in_which_requests_wait_counts_for_the_rate() -> None:
    clock = Clock()
    bound = WorkBound(1.0, clock)
    with bound.serving(1e9):
        for _ in range(100):
            clock.now += 1.0
            bound.step(0, 5, waiting=False)
        assert bound.rate() is None
        assert bound.retry_after_s() is None, "nothing is refused before the engine was seen at its capacity"
    at_capacity(bound, clock, 1000)
    assert bound.rate() == pytest.approx(1000, rel=1e-3)
    clock.now += 3600
    bound.step(0, 1, waiting=False)
    assert bound.rate() == pytest.approx(1000, rel=1e-3)
    at_capacity(bound, clock, 500, engine=1)
    assert bound.rate() == pytest.approx(1500, rel=1e-3), "engines add up"


def test_a_rate_that_was_too_low_does_not_keep_requests_out_for_good() -> None:
    clock = Clock()
    bound = WorkBound(1.0, clock)
    at_capacity(bound, clock, 10)
    with bound.serving(50.0):
        assert bound.retry_after_s() == 4
        for _ in range(100):  # the engine is not full any more, and faster
            clock.now += 0.1
            bound.step(0, 10, waiting=False)
        assert bound.retry_after_s() is None


def test_retry_after_is_the_time_until_the_open_work_is_below_the_bound() -> None:
    clock = Clock()
    bound = WorkBound(10.0, clock)
    at_capacity(bound, clock, 100)
    bound.finished(400)
    with bound.serving(950.0):
        assert bound.retry_after_s() is None
        with bound.serving(None):
            assert bound.open_tokens() == 950 + 400, "without a prediction: the mean of finished ones"
            assert bound.retry_after_s() == 4
        assert bound.retry_after_s() is None
    assert bound.open_tokens() == 0
    with WorkBound(None, clock).serving(1e12):
        assert WorkBound(None, clock).retry_after_s() is None


def test_a_request_beyond_the_bound_gets_429_and_one_on_an_empty_server_is_served_however_long() -> None:
    enough = asyncio.Event()

    class Slow(Recorder):
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            await enough.wait()
            await super().__call__(scope, receive, send)

    settings = MiddlewareSettings(max_queue_s=1.5, predict_timeout_ms=60_000)
    middleware = PredictionMiddleware(Slow(), settings=settings, predictor=ByWords())

    async def go() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app=middleware)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            await middleware._start()
            bound = middleware._bound
            assert bound is not None
            bound._clock = clock = Clock()
            at_capacity(bound, clock, 10)
            long = {"prompt": "w " * 100, "max_tokens": 50, "n": 2}
            first = asyncio.ensure_future(client.post("/v1/completions", json=long))
            while not bound.open_tokens():
                await asyncio.sleep(0)
            assert bound.open_tokens() == 100, "two responses, closed at their limit"
            second = await client.post("/v1/messages", json={"messages": []})
            enough.set()
            return [second, await first, await client.post("/v1/completions", json=long)]

    refused, *served = asyncio.run(go())
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "9")
    assert refused.json()["error"]["type"] == "rate_limit_error"
    assert [s.status_code for s in served] == [200, 200]


def test_of_a_burst_only_what_fits_comes_in() -> None:
    """Requests that wait for their prediction count like the mean of finished ones."""
    middleware = PredictionMiddleware(
        Recorder(), settings=MiddlewareSettings(max_queue_s=1.0, predict_timeout_ms=60_000), predictor=ByWords()
    )

    async def go() -> list[int]:
        transport = httpx.ASGITransport(app=middleware)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            await middleware._start()
            bound = middleware._bound
            assert bound is not None
            bound._clock = clock = Clock()
            at_capacity(bound, clock, 100)
            bound.finished(20)
            asked = [client.post("/v1/completions", json={"prompt": "w " * 20, "max_tokens": 50}) for _ in range(30)]
            return [answer.status_code for answer in await asyncio.gather(*asked)]

    statuses = asyncio.run(go())
    assert statuses.count(429) == 30 - 6
    assert set(statuses) == {200, 429}
