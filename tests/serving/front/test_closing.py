"""Responses that are open when the server stops, and the stat logger of the front end."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import pytest

from ecoserve.serving.adapter.open_responses import OpenResponses

SCOPE: dict[str, Any] = {"type": "http", "method": "POST", "path": "/v1/completions"}


async def receive() -> dict[str, Any]:
    return {"type": "http.request", "body": b"", "more_body": False}


class Sent(list[dict[str, Any]]):
    async def __call__(self, message: Any) -> None:
        self.append(message)

    @property
    def status(self) -> int:
        return int(self[0]["status"])

    @property
    def retry_after(self) -> int:
        return int(dict(self[0]["headers"])[b"retry-after"])

    @property
    def message(self) -> str:
        return str(json.loads(self[1]["body"])["error"]["message"])


def stop_while_open(app: Any, engine: Any = None) -> Sent:
    """Open one response of ``app``, let the server stop, and return what was sent."""
    sent = Sent()

    async def go() -> None:
        responses = OpenResponses()
        server = SimpleNamespace(should_exit=False)
        watch = asyncio.ensure_future(responses.watch(server, engine))
        request = asyncio.ensure_future(responses.run(app, SCOPE, receive, sent))
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


def test_a_stream_that_the_drain_cuts_off_ends_with_the_reason() -> None:
    """vLLM ends it by itself, with an error about its engine."""
    engine = SimpleNamespace(errored=False, shutdown=lambda timeout=None: None)

    async def stream(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await asyncio.sleep(0.01)
        engine.shutdown(timeout=0)
        body = b'data: {"error": {"message": "EngineCore encountered an issue.", "code": 500}}\n\n'
        await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})

    _, event, done = stop_while_open(stream, engine)
    assert json.loads(event["body"].removeprefix(b"data: "))["error"]["message"] == "the server is shutting down"
    assert event["more_body"]
    assert done["body"] == b"data: [DONE]\n\n"


def test_who_has_no_answer_yet_gets_503(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OpenResponses, "engine_failed", False)

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(3600)

    sent = stop_while_open(slow)
    assert (sent.status, sent.message, sent.retry_after) == (503, "the server is shutting down", 1)
    assert not OpenResponses.engine_failed
    sent = stop_while_open(slow, SimpleNamespace(errored=True, shutdown=None))
    assert OpenResponses.engine_failed
    assert (sent.status, sent.message) == (503, "the engine has failed; the server's log says why")


async def fails(scope: Any, receive: Any, send: Any) -> None:
    raise RuntimeError("cannot schedule new futures after shutdown")


async def answers_500(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 500, "headers": []})
    await send({"type": "http.response.body", "body": b"x"})


@pytest.mark.parametrize("app", [fails, answers_500])
def test_from_the_first_moment_of_the_drain_nothing_new_is_served_and_nothing_gets_500(app: Any) -> None:
    """The moment is when vLLM shuts its engine client down; requests that were already on their way count too."""
    calls: list[float] = []
    engine = SimpleNamespace(errored=False, shutdown=lambda timeout=None: calls.append(timeout))
    under_way, new, health = Sent(), Sent(), Sent()

    async def go() -> None:
        responses = OpenResponses()
        watch = asyncio.ensure_future(responses.watch(SimpleNamespace(should_exit=False), engine))
        await asyncio.sleep(0)
        drained = asyncio.Event()

        async def late(scope: Any, receive: Any, send: Any) -> None:
            await drained.wait()
            await app(scope, receive, send)

        request = asyncio.ensure_future(responses.run(late, SCOPE, receive, under_way))
        await asyncio.sleep(0)
        engine.shutdown(timeout=30)
        drained.set()
        await request
        await responses.run(app, SCOPE, receive, new)
        await responses.run(app, {**SCOPE, "method": "GET", "path": "/health"}, receive, health)
        watch.cancel()

    asyncio.run(go())
    assert calls == [30]
    for sent in (under_way, new, health):
        assert (sent.status, sent.message) == (503, "the server is shutting down")
        assert 25 < sent.retry_after <= 30
        assert dict(sent[0]["headers"])[b"connection"] == b"close"


def test_what_ends_by_itself_is_left_alone() -> None:
    async def quick(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x"})

    assert [m["type"] for m in stop_while_open(quick)] == ["http.response.start", "http.response.body"]


def test_a_cancelled_request_stays_cancelled_while_the_server_runs() -> None:
    async def slow(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(3600)

    async def go() -> None:
        request = asyncio.ensure_future(OpenResponses().run(slow, SCOPE, None, None))  # type: ignore[arg-type]
        await asyncio.sleep(0.01)
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request

    asyncio.run(go())
