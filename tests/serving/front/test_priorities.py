"""Level ``order`` before a recording application: the priority that reaches vLLM, for every way to ask."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from front_helpers import ByWords, Recorder, with_client

from ecoserve.data import Record
from ecoserve.lengths import LengthDistribution
from ecoserve.serving.core import keys
from ecoserve.serving.core.request_priority import RANKS, RequestPriority
from ecoserve.serving.workload import LoadRequest

NOW = 1.8e9
TEXT = "one two three four five"  # 23 characters: 6 tokens by estimate, 5 predicted
CHAT = [{"role": "user", "content": TEXT}]
LIMIT = 1000
HEADER = "x-vllm-priority"


def rank(lengths: list[int], prompt_tokens: float, limit: int | None = None, client: int = 0) -> int:
    known = [LengthDistribution.point(n) for n in lengths]
    return RequestPriority().of(known, prompt_tokens, NOW, limit=limit, client=client)


def asked(
    monkeypatch: pytest.MonkeyPatch, path: str, body: Any, head: dict[str, str] | None = None, **settings: Any
) -> tuple[Any, int | None]:
    """The body that reaches vLLM, and the priority in its header."""

    async def use(client: httpx.AsyncClient, app: Recorder) -> None:
        await client.post(path, content=json.dumps(body), headers={"content-type": "application/json", **(head or {})})

    monkeypatch.setattr("ecoserve.serving.adapter.middleware.time.time", lambda: NOW)
    seen = with_client(use, ByWords(), **{"level": "order", **settings})
    assert seen.headers[-1]["content-length"] == str(len(seen.bodies[-1]))
    header = seen.headers[-1].get(HEADER)
    return seen.last, None if header is None else int(header)


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        ("/v1/chat/completions", {"messages": CHAT}, rank([5], 6)),
        ("/v1/chat/completions", {"messages": CHAT, "max_tokens": 3, "n": 4}, rank([3], 6)),
        ("/v1/chat/completions", {"messages": []}, rank([], 0)),
        ("/v1/completions", {"prompt": [TEXT, "w " * 12], "max_tokens": 50}, rank([5, 12], 6)),
        ("/v1/completions", {"prompt": [5, 6, 7]}, rank([], 3, limit=16)),
        ("/v1/completions", {"prompt": [[5], [6, 7, 8]], "max_tokens": 9}, rank([], 2, limit=9)),
        ("/v1/responses", {"input": TEXT, "max_output_tokens": 2}, rank([2], 6)),
        ("/v1/messages", {"messages": CHAT, "max_tokens": 100}, rank([5], 6)),
        ("/v1/chat/completions/batch", {"messages": [CHAT], "max_tokens": 7}, rank([], 0, limit=7)),
        (
            "/inference/v1/generate",
            {"token_ids": [1, 2, 3, 4], "sampling_params": {"max_tokens": 8}},
            rank([], 4, limit=8),
        ),
    ],
)
def test_every_way_to_ask_gets_its_priority(
    monkeypatch: pytest.MonkeyPatch, path: str, body: dict[str, Any], expected: int
) -> None:
    new, header = asked(monkeypatch, path, body)
    assert header == expected
    assert new == (body if path == "/v1/messages" else {**body, "priority": expected})


@pytest.mark.parametrize(
    ("head", "stated", "client"),
    [
        ({}, {"priority": -3}, -3),
        ({}, {"priority": "4"}, 4),
        ({HEADER: "7"}, {"priority": -3}, 7),
        ({"X-Vllm-Priority": "soon"}, {"priority": 2}, 2),
    ],
)
def test_the_clients_own_priority_ranks_first(
    monkeypatch: pytest.MonkeyPatch, head: dict[str, str], stated: dict[str, Any], client: int
) -> None:
    new, header = asked(monkeypatch, "/v1/chat/completions", {"messages": CHAT, **stated}, head)
    assert new["priority"] == header == rank([5], 6, client=client)
    assert client * RANKS <= header < (client + 1) * RANKS


@pytest.mark.parametrize("stated", [None, "high", 1.5, [1]])
def test_a_priority_that_vllm_refuses_is_left_to_it(monkeypatch: pytest.MonkeyPatch, stated: Any) -> None:
    body = {"messages": CHAT, "priority": stated}
    assert asked(monkeypatch, "/v1/chat/completions", body) == (body, None)


def test_bodies_that_are_not_parsed_are_ranked_by_their_size(monkeypatch: pytest.MonkeyPatch) -> None:
    body = {"messages": [{"role": "user", "content": "x" * 5000}]}
    new, header = asked(monkeypatch, "/v1/chat/completions", body, {HEADER: "1"}, max_body_bytes=1024)
    assert new == body
    assert header == rank([], len(json.dumps(body)) / 4, client=1)


def test_other_paths_and_other_levels_keep_their_priorities(monkeypatch: pytest.MonkeyPatch) -> None:
    body = {"input": TEXT, "priority": 3}
    assert asked(monkeypatch, "/v1/embeddings", body) == (body, None)
    chat = {"messages": CHAT, "priority": 3}
    for level in ("full", "auto"):
        new, header = asked(monkeypatch, "/v1/chat/completions", chat, {HEADER: "5"}, level=level)
        assert (new["priority"], header) == (3, 5)
        assert keys.LENGTHS in new["vllm_xargs"]


def test_a_trusted_clients_prediction_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    own = {"vllm_xargs": {keys.LENGTHS: LengthDistribution.point(77).to_wire()}}
    _, header = asked(monkeypatch, "/v1/chat/completions", {"messages": CHAT, **own}, trust_client=True)
    assert header == rank([77], 6)
    _, header = asked(monkeypatch, "/v1/chat/completions", {"messages": CHAT, **own})
    assert header == rank([5], 6)


def test_simulations_of_order_have_the_priorities_that_are_served(monkeypatch: pytest.MonkeyPatch) -> None:
    _, header = asked(monkeypatch, "/v1/chat/completions", {"messages": CHAT, "max_tokens": LIMIT})
    record = Record("r", "c", prompt=TEXT)
    one = LoadRequest("r", NOW, record, 6, 9, LengthDistribution.point(5))
    assert one.priority("order", LIMIT) == header
    assert one.priority("vllm", LIMIT) == 0
