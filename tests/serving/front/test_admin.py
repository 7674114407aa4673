"""Admin calls before a recording application: who may make them, what they change, and what stays when they fail."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from front_helpers import ByWords, Recorder, with_client

from ecoserve.lengths import LengthDistribution
from ecoserve.serving.adapter.level_file import LEVEL, PREDICTOR
from ecoserve.serving.core import keys

KEY = {"authorization": "Bearer open-sesame"}
CHAT = {"model": "m", "messages": [{"role": "user", "content": "one two three four"}]}
Use = Callable[[httpx.AsyncClient, Recorder], Awaitable[None]]


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))


def admin(use: Use, **settings: Any) -> Recorder:
    return with_client(use, ByWords(), **{"admin_key": "open-sesame", "level": "full", **settings})


@pytest.mark.parametrize("given", [{}, {"authorization": "Bearer no"}, {"authorization": "Basic open-sesame"}])
def test_without_the_key_nothing_is_said_or_changed(given: dict[str, str], tmp_path: Path) -> None:
    async def use(client: httpx.AsyncClient, app: Recorder) -> None:
        for call in (client.get("/ecoserve/level", headers=given), client.post("/ecoserve/level", headers=given)):
            assert (await call).status_code == 401

    assert admin(use).bodies == []
    assert not (tmp_path / LEVEL).exists()


def test_without_an_admin_key_the_calls_are_not_there() -> None:
    async def use(client: httpx.AsyncClient, app: Recorder) -> None:
        await client.post("/ecoserve/level", json={"level": "shadow"}, headers=KEY)

    assert admin(use, admin_key=None).last == {"level": "shadow"}, "it is passed on like any other"


def test_the_level_is_set_for_all_processes(tmp_path: Path) -> None:
    async def use(client: httpx.AsyncClient, app: Recorder) -> None:
        assert (await client.get("/ecoserve/level", headers=KEY)).json() == {"level": "full"}
        answer = await client.post("/ecoserve/level", json={"level": "shadow"}, headers=KEY)
        assert answer.json() == {"level": "shadow", "was": "full"}
        assert (await client.get("/ecoserve/level", headers=KEY)).json() == {"level": "shadow"}

    assert admin(use).bodies == []
    assert (tmp_path / LEVEL).read_text() == "shadow"


@pytest.mark.parametrize(
    ("settings", "call", "body", "status", "says"),
    [
        ({}, "level", b'{"level": "off"}', 400, "not one of shadow, order, full"),
        ({"level": "order"}, "level", b'{"level": "full"}', 400, "not one of shadow, order"),
        ({"level": "auto"}, "level", b'{"level": "shadow"}', 409, "ecoserve serve"),
        ({}, "level", b"[1]", 400, "not a JSON object"),
        ({}, "level", b'{"level": "' + b"x" * 5000 + b'"}', 400, "not a JSON object"),
        ({}, "predictor", b'{"checkpoint": 7}', 400, "a path"),
        ({}, "predictor", b'{"checkpoint": "/no/such/place"}', 400, "/no/such/place"),
        ({}, "nonsense", b"{}", 404, "no such call"),
    ],
)
def test_what_cannot_be_is_one_line_and_changes_nothing(
    settings: dict[str, Any], call: str, body: bytes, status: int, says: str, tmp_path: Path
) -> None:
    async def use(client: httpx.AsyncClient, app: Recorder) -> None:
        answer = await client.post(f"/ecoserve/{call}", content=body, headers=KEY)
        assert answer.status_code == status
        assert says in answer.json()["error"]
        await client.post("/v1/chat/completions", json=CHAT)

    seen = admin(use, **settings)
    assert len(seen.bodies) == 1, "the predictor is still in use"
    assert not any((tmp_path / name).exists() for name in (LEVEL, PREDICTOR))


def test_in_shadow_level_order_sets_no_priorities() -> None:
    async def use(client: httpx.AsyncClient, app: Recorder) -> None:
        await client.post("/v1/chat/completions", json=CHAT)
        await client.post("/ecoserve/level", json={"level": "shadow"}, headers=KEY)
        await client.post("/v1/chat/completions", json=CHAT)
        await client.post("/ecoserve/level", json={"level": "order"}, headers=KEY)
        await client.post("/v1/chat/completions", json=CHAT)

    seen = admin(use, level="order")
    assert ["x-vllm-priority" in h for h in seen.headers] == [True, False, True]


def test_a_new_checkpoint_is_used_in_every_process_and_requests_that_wait_are_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Always(ByWords):
        def predict(self, texts: Any) -> Any:
            return [LengthDistribution.point(77) for _ in texts]

    monkeypatch.setattr("ecoserve.predictor.load_predictor", lambda path: Always())
    lengths = []

    async def use(client: httpx.AsyncClient, app: Recorder) -> None:
        waiting = asyncio.ensure_future(client.post("/v1/chat/completions", json=CHAT))
        await asyncio.sleep(0)
        answer = await client.post("/ecoserve/predictor", json={"checkpoint": "new"}, headers=KEY)
        assert answer.json() == {"checkpoint": "new"}
        await waiting
        await client.post("/v1/chat/completions", json=CHAT)
        # The other process of this server.
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as second:
            await second.post("/v1/chat/completions", json=CHAT)
            for _ in range(60):
                await asyncio.sleep(0.1)
                await second.post("/v1/chat/completions", json=CHAT)
                lengths.append(predicted(other))
                if lengths[-1] == 77:
                    break

    from ecoserve.serving.adapter.middleware import PredictionMiddleware
    from ecoserve.serving.adapter.middleware_settings import MiddlewareSettings

    other = Recorder()
    settings = MiddlewareSettings(admin_key="open-sesame", level="full")
    transport = httpx.ASGITransport(app=PredictionMiddleware(other, settings=settings, predictor=ByWords()))
    seen = admin(use)
    assert predicted(seen) == 77
    assert lengths[-1] == 77


def predicted(app: Recorder) -> int:
    return LengthDistribution.from_wire(app.last["vllm_xargs"][keys.LENGTHS]).quantile(0.5)
