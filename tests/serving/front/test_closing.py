"""Responses that are open when the server stops, and the stat logger of the front end."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import pytest

from ecoserve.serving.adapter.middleware import OpenResponses


def stop_while_open(app: Any) -> list[dict[str, Any]]:
    """Open one response of ``app``, let the server stop, and return what was sent."""
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def go() -> None:
        responses = OpenResponses()
        server = SimpleNamespace(should_exit=False)
        watch = asyncio.ensure_future(responses.watch(server))
        request = asyncio.ensure_future(responses.run(app, {"type": "http"}, receive, send))
        await asyncio.sleep(0.05)
        server.should_exit = True
        await asyncio.wait_for(asyncio.gather(request, watch), 30)

    asyncio.run(go())
    return sent


def test_a_stream_ends_with_an_error_event() -> None:
    async def stream(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"data: {}\n\n", "more_body": True})
        await asyncio.sleep(3600)

    *_, last = stop_while_open(stream)
    events = [line.removeprefix("data: ") for line in last["body"].decode().split("\n\n") if line]
    assert json.loads(events[0])["error"]["code"] == 503
    assert events[1] == "[DONE]"
    assert not last.get("more_body")


def test_who_has_no_answer_yet_gets_503() -> None:
    async def slow(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(3600)

    start, body = stop_while_open(slow)
    assert start["status"] == 503
    assert json.loads(body["body"])["error"]["message"] == "the server is shutting down"


def test_what_ends_by_itself_is_left_alone() -> None:
    async def quick(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x"})

    assert [m["type"] for m in stop_while_open(quick)] == ["http.response.start", "http.response.body"]


def test_a_cancelled_request_stays_cancelled_while_the_server_runs() -> None:
    async def slow(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(3600)

    async def go() -> None:
        request = asyncio.ensure_future(OpenResponses().run(slow, {"type": "http"}, None, None))  # type: ignore[arg-type]
        await asyncio.sleep(0.01)
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request

    asyncio.run(go())
