"""The middleware before a recording application: what reaches vLLM, and in which state."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from front_helpers import ByWords, Recorder, counted, with_client
from hypothesis import given, settings
from hypothesis import strategies as st

from ecoserve.errors import ConfigError
from ecoserve.lengths import LengthDistribution
from ecoserve.options import to_environment
from ecoserve.serving.adapter.middleware import PredictionMiddleware
from ecoserve.serving.adapter.middleware_settings import MiddlewareSettings
from ecoserve.serving.core import keys

CHAT = {"model": "m", "messages": [{"role": "user", "content": "one two three four"}]}


def sent(body: Any) -> LengthDistribution:
    return LengthDistribution.from_wire(body["vllm_xargs"][keys.LENGTHS])


def test_a_chat_gets_its_distribution_and_a_right_content_length() -> None:
    async def use(client: httpx.AsyncClient, app: Recorder) -> None:
        answer = await client.post("/v1/chat/completions", json=CHAT)
        assert answer.json() == app.last

    seen = with_client(use, ByWords())
    assert sent(seen.last) == LengthDistribution.point(4)
    assert {k: v for k, v in seen.last.items() if k != "vllm_xargs"} == CHAT
    assert int(seen.headers[-1]["content-length"]) == len(seen.bodies[-1])


def test_a_batch_of_prompts_gets_a_list_and_the_default_limit_closes_it() -> None:
    async def use(client: httpx.AsyncClient, app: Recorder) -> None:
        await client.post("/v1/completions", json={"prompt": ["a b", "w " * 40]})

    flat = with_client(use, ByWords()).last["vllm_xargs"][keys.LENGTHS_BATCH]
    size = int(flat[1])
    assert flat[0] == 2
    assert LengthDistribution.from_wire(flat[2 : 2 + size]) == LengthDistribution.point(2)
    assert LengthDistribution.from_wire(flat[3 + size :]) == LengthDistribution.point(16, "max_tokens")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": [1, 2, 3]}),
        ("/v1/completions", {"prompt": [[1], [2]]}),
        ("/v1/chat/completions", {"messages": "nonsense"}),
        ("/v1/embeddings", {"input": "hello"}),
        ("/tokenize", {"prompt": "hello"}),
    ],
)
def test_what_is_not_predicted_passes_untouched(path: str, body: Any) -> None:
    async def use(client: httpx.AsyncClient, app: Recorder) -> None:
        await client.post(path, content=json.dumps(body), headers={"content-type": "application/json"})

    predictor = ByWords()
    assert with_client(use, predictor).bodies == [json.dumps(body).encode()]
    assert predictor.calls == []


@given(st.binary(max_size=300), st.sampled_from(["/v1/chat/completions", "/v1/completions", "/v1/x"]))
@settings(max_examples=60, deadline=None)
def test_any_bytes_that_are_no_object_pass_untouched(raw: bytes, path: str) -> None:
    async def use(client: httpx.AsyncClient, app: Recorder) -> None:
        await client.post(path, content=raw, headers={"content-type": "application/json"})

    seen = with_client(use, ByWords())
    assert seen.bodies == [raw]
    assert seen.headers[0].get("content-length", "0") == str(len(raw))


def test_compressed_bodies_pass_untouched() -> None:
    raw = gzip.compress(json.dumps(CHAT).encode())

    async def use(client: httpx.AsyncClient, app: Recorder) -> None:
        head = {"content-type": "application/json", "content-encoding": "gzip"}
        await client.post("/v1/chat/completions", content=raw, headers=head)

    assert with_client(use, ByWords()).bodies == [raw]


def test_other_content_types_pass_untouched() -> None:
    async def use(client: httpx.AsyncClient, app: Recorder) -> None:
        await client.post("/v1/chat/completions", content=json.dumps(CHAT), headers={"content-type": "text/plain"})

    predictor = ByWords()
    assert with_client(use, predictor).last == CHAT
    assert predictor.calls == []


async def _pieces(raw: bytes, size: int) -> AsyncIterator[bytes]:
    for at in range(0, len(raw), size):
        yield raw[at : at + size]


LONG = json.dumps({**CHAT, "user": "x" * 5000}).encode()
SPOOFED = json.dumps({**CHAT, "vllm_xargs": {keys.LENGTHS: [1.0]}}).encode()
DISGUISED = SPOOFED.replace(b"ecoserve_", b"e\\u0063oserve_")
JSON = {"content-type": "application/json"}


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (LONG, 200),
        (SPOOFED + b" " * 5000, 413),
        (DISGUISED + b" " * 5000, 413),
        (SPOOFED.decode().encode("utf-16") + b" \0" * 2500, 413),
    ],
)
def test_over_long_bodies_pass_untouched_or_are_refused(raw: bytes, status: int, chunked: bool) -> None:
    before = counted("bypassed")

    async def use(client: httpx.AsyncClient, app: Recorder) -> None:
        content = _pieces(raw, 700) if chunked else raw
        assert (await client.post("/v1/chat/completions", content=content, headers=JSON)).status_code == status

    predictor = ByWords()
    assert with_client(use, predictor, max_body_bytes=2048).bodies == [raw] * (status == 200)
    assert predictor.calls == []
    assert counted("bypassed") == before + 1
    if status == 413:
        trusting = {"trust_client": True, "replay": True, "max_body_bytes": 2048}
        status = 200
        assert with_client(use, predictor, **trusting).bodies == [raw]


def test_bodies_of_very_many_values_are_not_taken_apart() -> None:
    many = json.dumps({"messages": [{"role": "user", "content": "x"}] * 60_000}).encode()

    async def use(client: httpx.AsyncClient, app: Recorder) -> None:
        await client.post("/v1/chat/completions", content=many, headers=JSON)
        await client.post("/v1/chat/completions", content=many[:-1] + b"," + DISGUISED[1:], headers=JSON)

    predictor = ByWords()
    seen = with_client(use, predictor)
    assert seen.bodies[0] == many
    assert seen.last["vllm_xargs"] == {}
    assert predictor.calls == []


@pytest.mark.parametrize(
    ("kind", "field", "status"),
    [
        ("", b'{"seed": "\0\xff\xfe"}', 200),
        ("", b'{"ecoserve_lengths": [1.0]}', 400),
        ("", b'{"\\u0065coserve_lengths": [1.0]}', 400),
        ("; charset=utf-7", b"{}", 400),
        ('; charset="UTF-8"', b"{}", 200),
    ],
)
def test_forms_bring_no_keys_either(kind: str, field: bytes, status: int) -> None:
    """vLLM reads vllm_xargs as JSON in a form where audio is transcribed."""
    body = b'--x\r\ncontent-disposition: form-data; name="vllm_xargs"\r\n\r\n' + field + b"\r\n--x--\r\n"

    async def use(client: httpx.AsyncClient, app: Recorder) -> None:
        head = {"content-type": f"multipart/form-data; boundary=x{kind}"}
        assert (await client.post("/v1/audio/transcriptions", content=body, headers=head)).status_code == status

    assert with_client(use).bodies == [body] * (status == 200)


def test_the_first_of_two_content_types_counts_as_it_does_for_vllm() -> None:
    async def use(client: httpx.AsyncClient, app: Recorder) -> None:
        head = [("content-type", "application/json"), ("content-type", "text/plain")]
        await client.post("/v1/completions", content=SPOOFED, headers=head)

    assert with_client(use).last["vllm_xargs"] == {}


def test_a_body_in_pieces_without_a_length_is_put_together() -> None:
    raw = json.dumps(CHAT).encode()

    async def use(client: httpx.AsyncClient, app: Recorder) -> None:
        head = {"content-type": "application/json"}
        await client.post("/v1/chat/completions", content=_pieces(raw, 7), headers=head)

    seen = with_client(use, ByWords())
    assert sent(seen.last).mean() == 4
    assert "content-length" not in seen.headers[0]


# -- clients that speak for themselves --------------------------------------------------------------------------


def test_client_keys_are_dropped_everywhere_unless_allowed() -> None:
    mine = LengthDistribution.point(77).to_wire()
    xargs = {keys.LENGTHS: mine, keys.REPLAY_TOKENS: 9, keys.DEADLINE: 1.5, "session_id": "s"}

    async def use(client: httpx.AsyncClient, app: Recorder) -> None:
        await client.post("/v1/chat/completions", json={**CHAT, "vllm_xargs": xargs})
        await client.post("/inference/v1/generate", json={"sampling_params": {"extra_args": xargs}})

    chat, generate = (json.loads(b) for b in with_client(use, ByWords()).bodies)
    assert chat["vllm_xargs"] == {keys.LENGTHS: LengthDistribution.point(4).to_wire(), "session_id": "s"}
    assert generate == {"sampling_params": {"extra_args": {"session_id": "s"}}}

    chat, generate = (json.loads(b) for b in with_client(use, ByWords(), trust_client=True).bodies)
    assert chat["vllm_xargs"] == {keys.LENGTHS: mine, keys.DEADLINE: 1.5, "session_id": "s"}
    assert keys.REPLAY_TOKENS not in generate["sampling_params"]["extra_args"]

    chat, _ = (json.loads(b) for b in with_client(use, ByWords(), replay=True).bodies)
    assert chat["vllm_xargs"][keys.REPLAY_TOKENS] == 9
    assert chat["vllm_xargs"][keys.LENGTHS] != mine


def test_keys_are_dropped_without_a_predictor_too() -> None:
    async def use(client: httpx.AsyncClient, app: Recorder) -> None:
        await client.post("/v1/chat/completions", json={**CHAT, "vllm_xargs": {keys.LENGTHS: [1.0]}})

    assert with_client(use).last == {**CHAT, "vllm_xargs": {}}


# -- when prediction fails ----------------------------------------------------------------------------------------


def test_a_late_prediction_is_not_waited_for() -> None:
    before = counted("timeout")

    async def use(client: httpx.AsyncClient, app: Recorder) -> None:
        await client.post("/v1/chat/completions", json=CHAT)

    assert with_client(use, ByWords(delay_s=0.4), predict_timeout_ms=20).last == CHAT
    assert counted("timeout") == before + 1


def test_a_failing_predictor_harms_no_request() -> None:
    before = counted("error")

    async def use(client: httpx.AsyncClient, app: Recorder) -> None:
        for _ in range(3):
            assert (await client.post("/v1/chat/completions", json=CHAT)).status_code == 200

    assert with_client(use, ByWords(error=RuntimeError("broken"))).last == CHAT
    assert counted("error") == before + 3


# -- API keys -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "predicted"),
    [
        (None, False),
        ("Bearer wrong", False),
        ("Bearer ", False),
        ("Basic secret", False),
        ("secret", False),
        ("Bearer secret", True),
        ("bearer other", True),
    ],
)
def test_nothing_is_done_for_clients_without_the_key(header: str | None, predicted: bool) -> None:
    recorder, predictor = Recorder(), ByWords()
    middleware = PredictionMiddleware(recorder, settings=MiddlewareSettings(), predictor=predictor)
    vllm_app = SimpleNamespace(state=SimpleNamespace(args=SimpleNamespace(api_key=["secret", "other"])))

    async def as_vllm_does(scope: Any, receive: Any, send: Any) -> None:
        scope["app"] = vllm_app
        await middleware(scope, receive, send)

    async def go() -> None:
        transport = httpx.ASGITransport(app=as_vllm_does)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            head = {} if header is None else {"authorization": header}
            await client.post("/v1/chat/completions", json=CHAT, headers=head)

    asyncio.run(go())
    assert (len(predictor.calls) == 1) is predicted
    assert (recorder.last != CHAT) is predicted, "who has no key is handed on byte for byte, for vLLM to refuse"


def test_the_key_of_the_environment_counts_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "from-env")

    async def use(client: httpx.AsyncClient, app: Recorder) -> None:
        await client.post("/v1/chat/completions", json=CHAT)
        await client.post("/v1/chat/completions", json=CHAT, headers={"authorization": "Bearer from-env"})

    first, second = (json.loads(b) for b in with_client(use, ByWords()).bodies)
    assert first == CHAT
    assert sent(second).mean() == 4


# -- disconnects ----------------------------------------------------------------------------------------------------


def _drive(messages: list[dict[str, Any]], settings: MiddlewareSettings | None = None) -> list[str]:
    """Feed ``messages`` to the middleware by hand; returns the types that the application was given."""
    given: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while (message := await receive())["type"] != "http.disconnect":
            given.append(message["type"])
        given.append("http.disconnect")

    queue = list(messages)

    async def receive() -> dict[str, Any]:
        return queue.pop(0)

    async def send(message: Any) -> None:
        raise AssertionError("no handler")

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/chat/completions",
        "headers": [(b"content-type", b"application/json")],
    }
    middleware = PredictionMiddleware(app, settings=settings or MiddlewareSettings(), predictor=ByWords())
    asyncio.run(middleware(scope, receive, send))
    return given


def test_vllm_learns_of_a_disconnect_after_the_body() -> None:
    raw = json.dumps(CHAT).encode()
    given = _drive(
        [
            {"type": "http.request", "body": raw[:10], "more_body": True},
            {"type": "http.request", "body": raw[10:], "more_body": False},
            {"type": "http.disconnect"},
        ]
    )
    assert given == ["http.request", "http.disconnect"]


def test_vllm_learns_of_a_disconnect_within_the_body() -> None:
    given = _drive([{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}])
    assert given == ["http.request", "http.disconnect"]


# -- starting -------------------------------------------------------------------------------------------------------


def _lifespan(middleware: PredictionMiddleware) -> list[dict[str, Any]]:
    sent: list[dict[str, Any]] = []
    queue = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]

    async def receive() -> dict[str, Any]:
        return queue.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(middleware({"type": "lifespan"}, receive, send))
    return sent


def test_start_and_stop_reach_the_application() -> None:
    sent = _lifespan(PredictionMiddleware(Recorder(), settings=MiddlewareSettings(), predictor=ByWords()))
    assert [m["type"] for m in sent] == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


def test_a_server_does_not_start_with_a_checkpoint_that_cannot_be_loaded(tmp_path: Any) -> None:
    sent = _lifespan(PredictionMiddleware(Recorder(), settings=MiddlewareSettings(predictor=str(tmp_path / "none"))))
    assert [m["type"] for m in sent] == ["lifespan.startup.failed"]
    assert str(tmp_path) in sent[0]["message"]


def test_settings_come_from_the_environment_and_go_back_into_it() -> None:
    env = {"ECOSERVE_PREDICT_TIMEOUT_MS": "80", "ECOSERVE_TRUST_CLIENT": "1", "ECOSERVE_API_KEY": "", "OTHER": "x"}
    read = MiddlewareSettings.read(env)
    assert read == MiddlewareSettings(predict_timeout_ms=80.0, trust_client=True)
    assert MiddlewareSettings.read(to_environment(read)) == read
    with pytest.raises(ConfigError, match="ECOSERVE_PREDICT_BATCH"):
        MiddlewareSettings.read({"ECOSERVE_PREDICT_BATCH": "many"})
