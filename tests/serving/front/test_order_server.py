"""``ecoserve serve`` in level ``order``: vLLM's own scheduler serves by rank, clients' priorities first."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from front_helpers import ROOT, Server

from ecoserve.data import load_trace
from ecoserve.data.measuring import THINK, THOUGHT, load_tokenizer
from ecoserve.serving.client_run import ClientRunSettings, run_client
from ecoserve.serving.collect import CollectSettings, collect
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
            *("--reasoning-parser-plugin", str(ROOT / "scripts" / "tiny_reasoning_parser.py")),
            *("--reasoning-parser", "until_a_full_stop"),
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


def test_a_server_that_thinks_is_replayed_and_collected(server: Server, tmp_path: Path) -> None:
    """vLLM's own counts and reasoning: what is said up to a full stop is thinking."""
    rows = [{"prompt": f"question {i}", "response_tokens": 5 + i, "arrival_s": i / 50} for i in range(6)]
    source = tmp_path / "prompts.jsonl"
    source.write_text("".join(json.dumps({"conversation": f"c{i}", **r}) + "\n" for i, r in enumerate(rows)))
    settings = ClientRunSettings(
        url=server.url, trace=str(source), split=None, requests=6, max_tokens=64, temperature=1.0
    )
    run = run_client(settings)
    assert [(r.status, r.output_tokens) for r in run.rows] == [("completed", 5 + i) for i in range(6)]
    for row in run.rows:
        assert row.arrival_s < (row.first_token_s or 0.0) < (row.finish_s or 0.0)
        assert (row.thinking_tokens or 0) <= row.output_tokens
    # Full stops are rare: nearly all of it is thinking, and its first token the first token.
    assert 22 < sum(row.thinking_tokens or 0 for row in run.rows) <= 45
    stop = get_tokenizer(server).convert_tokens_to_ids(".")
    out = tmp_path / "lengths.jsonl"
    collect(
        CollectSettings(
            prompts=str(source), output=out, url=server.url, samples=4, max_tokens=24, temperature=1.0, concurrency=1,
            body={"logit_bias": {str(stop): 4}, "min_tokens": 3},
        )
    )  # fmt: skip
    records = load_trace(out).records
    ended = [r for r in records if THOUGHT in (r.response or "")]
    assert len(records) == 24
    assert 0 < len(ended) < 24
    for r in records:
        thinking, tokens, text = r.thinking_tokens or 0, r.response_tokens or 0, r.response or ""
        assert (0 <= thinking < tokens) if r in ended else (thinking == (tokens if THINK in text else 0))
        assert r.censored == (tokens == 24)


def get_tokenizer(server: Server) -> Any:
    return load_tokenizer(httpx.get(f"{server.url}/v1/models", timeout=30).json()["data"][0]["root"])


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
