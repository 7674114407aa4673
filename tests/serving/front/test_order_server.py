"""``ecoserve serve`` in level ``order``: vLLM's own scheduler serves by rank, clients' priorities first."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from front_helpers import Server

from ecoserve.serving.core import keys
from ecoserve.serving.online.refit import unpack

pytestmark = [pytest.mark.server, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def server(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """It serves one request at a time."""
    folder = tmp_path_factory.mktemp("order")
    temporary = folder / "tmp"
    temporary.mkdir()
    started = Server(
        [
            *(str(tiny_model), "--level", "order", "--served-model-name", "tiny", "--dtype", "float32"),
            *("--max-num-seqs", "1", "--max-model-len", "2048", "--distributed-executor-backend", "uni"),
            *("--enforce-eager", "--additional-config", '{"ecoserve": {"ageing_tokens_per_s": 0}}'),
            *("--replay", "--learn", str(folder / "learned")),
        ],
        folder / "server.log",
        temporary,
    )
    try:
        started.wait()
        yield started
    finally:
        started.stop()


def test_the_level_and_its_reason_are_said(server: Server) -> None:
    assert server.log.read_text().splitlines().count("ecoserve: level order: asked for") == 1
    page = httpx.get(f"{server.url}/metrics", timeout=30).text
    assert 'ecoserve_level_info{level="order",model_name="tiny",reason="asked for"} 1.0' in page


def test_requests_are_served_by_rank_and_clients_priorities_first(server: Server) -> None:
    """All wait behind one stream, which its client then leaves: what is served next is what ranks first."""
    text, chat = {"prompt": "a", "ignore_eos": True}, {"messages": [{"role": "user", "content": "hi"}]}
    waiting: dict[str, tuple[str, dict[str, Any], dict[str, str]]] = {
        "long": ("/v1/completions", {**text, "max_tokens": 900}, {}),
        "later": ("/v1/completions", {**text, "max_tokens": 2, "priority": 1}, {}),
        "short": ("/v1/completions", {**text, "max_tokens": 8}, {}),
        "medium": ("/v1/responses", {"input": "hi", "max_output_tokens": 90}, {}),
        "shorter": ("/v1/messages", {**chat, "max_tokens": 4}, {}),
        "urgent": ("/v1/chat/completions", {**chat, "max_tokens": 90}, {"x-vllm-priority": "-1"}),
        "most urgent": ("/v1/completions", {**text, "max_tokens": 200, "priority": -2}, {}),
    }
    served: list[tuple[str, int]] = []

    def ask(name: str) -> None:
        path, body, head = waiting[name]
        answer = httpx.post(f"{server.url}{path}", json={"model": "tiny", **body}, headers=head, timeout=Server.START_S)
        served.append((name, answer.status_code))

    threads = [threading.Thread(target=ask, args=(name,)) for name in waiting]
    first = {"model": "tiny", **text, "max_tokens": 2000, "stream": True}
    with httpx.stream("POST", f"{server.url}/v1/completions", json=first, timeout=Server.START_S) as stream:
        pieces = stream.iter_lines()
        next(pieces)
        for thread in threads:
            thread.start()
        until(lambda: server.metrics()["vllm:num_requests_waiting"] == len(waiting))
    for thread in threads:
        thread.join(Server.START_S)
    order = ["most urgent", "urgent", "shorter", "short", "medium", "long", "later"]
    assert served == [(name, 200) for name in order]


def test_zz_lengths_are_learned_whichever_way_they_are_asked_for(server: Server) -> None:
    """Exactly, without a class of ours in the engine. The last test of this module: it ends the server."""

    def learned() -> float:
        return server.metrics()["ecoserve_learned_answers_total"]

    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", timeout=300, max_retries=0) as client:
        hello: Any = [{"role": "user", "content": "Hello"}]

        def forced(tokens: int) -> dict[str, Any]:
            return {"model": "tiny", "extra_body": {"vllm_xargs": {keys.REPLAY_TOKENS: tokens}}}

        before = learned()
        client.chat.completions.create(messages=hello, **forced(41))
        list(client.chat.completions.create(messages=hello, stream=True, **forced(42)))
        client.completions.create(prompt=["one", "two"], max_tokens=80, **forced(43))
        client.completions.create(prompt="one", n=2, temperature=1.0, max_tokens=80, **forced(44))
        list(client.completions.create(prompt="one", max_tokens=80, stream=True, **forced(45)))
        client.completions.create(prompt="one", max_tokens=46, **forced(80))
        client.responses.create(input="Hello", **forced(47))
        # Its length is the client's doing.
        client.completions.create(model="tiny", prompt="one", max_tokens=48, extra_body={"ignore_eos": True})
        until(lambda: learned() == before + 9)
    server.process.terminate()
    assert server.process.wait(Server.START_S) == 0
    arrays, _ = unpack((server.log.parent / "learned" / "answers.safetensors").read_bytes())
    found = Counter(zip(arrays["lengths"].tolist(), arrays["ended"].tolist(), strict=True))
    expected = {
        (41, True): 1,
        (42, True): 1,
        (43, True): 2,
        (44, True): 2,
        (45, True): 1,
        (46, False): 1,
        (47, True): 1,
    }
    assert {key: found[key] for key in (*expected, (48, True), (48, False))} == {
        **expected,
        (48, True): 0,
        (48, False): 0,
    }


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + Server.START_S
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)
