"""``ecoserve serve`` in level ``order``: vLLM's own scheduler serves by rank, clients' priorities first."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from front_helpers import Server

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


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + Server.START_S
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)
