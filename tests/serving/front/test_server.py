"""``ecoserve serve`` as operators meet it: a real server, a trained predictor, the ``openai`` client, SIGTERM."""

from __future__ import annotations

import asyncio
import json
import math
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from front_helpers import Server, descendants, running

from ecoserve.errors import ConfigError
from ecoserve.serving.client_run import ClientRunSettings, run_client
from ecoserve.serving.core import keys
from ecoserve.serving.length_source import LengthSource
from ecoserve.serving.workload import make_load, trace_for

pytestmark = [pytest.mark.server, pytest.mark.filterwarnings("ignore")]

KEY = "a-secret"
ADMIN = "another"
BLOCKS = 64


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small trained predictor."""
    from ecoserve.data import synthetic_trace
    from ecoserve.predictor import train_predictor

    folder = tmp_path_factory.mktemp("predictor") / "lightgbm"
    train_predictor(synthetic_trace(600, seed=0), backend="lightgbm", output_dir=folder, seed=0)
    return folder


@pytest.fixture(scope="module")
def server(tiny_model: Path, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    temporary = folder / "tmp"
    temporary.mkdir()
    started = Server(
        [
            str(tiny_model),
            *("--predictor", str(checkpoint), "--replay", "--predict-timeout-ms", "20000"),
            *("--api-key", KEY, "--served-model-name", "tiny", "--enforce-eager", "--dtype", "float32"),
            *("--num-gpu-blocks-override", str(BLOCKS + 1), "--block-size", "32", "--max-model-len", "1024"),
            *("--max-num-seqs", "64", "--distributed-executor-backend", "uni"),
        ],
        folder / "server.log",
        temporary,
        ECOSERVE_ADMIN_KEY=ADMIN,
    )
    try:
        started.wait()
        yield started
    finally:
        started.stop()


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, timeout=300, max_retries=0) as made:
        yield made


def chat(text: str) -> Any:
    return [{"role": "user", "content": text}]


def test_chat_completion_and_stream(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="tiny", messages=chat("Explain rain"), max_tokens=12)
    assert answer.usage is not None
    assert 1 <= answer.usage.completion_tokens <= 12
    assert answer.choices[0].finish_reason in ("stop", "length")
    pieces = list(client.chat.completions.create(model="tiny", messages=chat("Hello"), max_tokens=12, stream=True))
    assert pieces[-1].choices[0].finish_reason in ("stop", "length")
    text = client.completions.create(model="tiny", prompt="Once upon a time", max_tokens=5)
    assert text.usage is not None
    assert text.usage.completion_tokens <= 5
    responses = client.responses.create(model="tiny", input="Hello there", max_output_tokens=5)
    assert responses.status in ("completed", "incomplete")


def test_levels_are_switched_under_load_and_no_request_is_lost(server: Server) -> None:
    headers = {"authorization": f"Bearer {ADMIN}"}
    before = server.metrics()
    answered: list[bool] = []

    async def ask(client: openai.AsyncOpenAI, number: int) -> None:
        await asyncio.sleep(0.05 * number)
        answer = await client.chat.completions.create(
            model="tiny", messages=chat(f"Number {number}"), max_tokens=1 + number % 60
        )
        answered.append(bool(answer.choices[0].finish_reason))

    async def switch(client: httpx.AsyncClient) -> None:
        for level in ("shadow", "order", "full", "shadow", "full"):
            answer = await client.post(f"{server.url}/ecoserve/level", json={"level": level}, headers=headers)
            assert answer.json()["level"] == level
            await asyncio.sleep(1.0)

    async def go() -> None:
        async with (
            openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=KEY, timeout=300, max_retries=0) as client,
            httpx.AsyncClient(timeout=60) as admin,
        ):
            await asyncio.gather(switch(admin), *(ask(client, n) for n in range(100)))

    asyncio.run(go())
    after = server.metrics()
    assert len(answered) == 100
    assert after["ecoserve_finished_total"] - before["ecoserve_finished_total"] == 100
    assert {line.split("level ")[1].split()[0] for line in server.log.read_text().splitlines() if "(was " in line} >= {
        "shadow",
        "order",
    }


def test_every_way_to_ask_brings_its_prediction_to_the_scheduler(client: openai.OpenAI, server: Server) -> None:
    before = server.metrics()
    client.chat.completions.create(model="tiny", messages=chat("Explain rain"), max_tokens=3)
    client.completions.create(model="tiny", prompt=["one", "two", "three"], max_tokens=3)
    client.responses.create(model="tiny", input="Hello there", max_output_tokens=3)
    many = client.chat.completions.create(model="tiny", messages=chat("Several"), max_tokens=3, n=2, temperature=1.0)
    assert len(many.choices) == 2
    client.completions.create(model="tiny", prompt=[5, 6, 7], max_tokens=3)
    after = server.metrics()

    def grown(name: str) -> float:
        return after[name] - before.get(name, 0.0)

    assert grown("ecoserve_predictions_total{made}") == 4
    assert grown("ecoserve_predictions_total{bypassed}") == 1
    assert grown("ecoserve_predictions_used_total") == 1 + 3 + 1 + 2
    assert grown("ecoserve_predictions_missing_total") == 1
    assert grown("ecoserve_predictions_refused_total") == 0
    assert grown("ecoserve_prediction_seconds_count") == 4
    assert grown("ecoserve_prediction_error_ratio_count") == 7
    assert grown("ecoserve_finished_total") == 8
    assert after["ecoserve_kv_usable_blocks"] == BLOCKS
    assert after["ecoserve_kv_held_blocks"] == 0
    assert after["ecoserve_running_requests"] == 0
    assert after["vllm:request_success_total"] > 0, "vLLM's own metrics are still there"


def test_64_at_once(server: Server) -> None:
    async def go() -> list[Any]:
        async with openai.AsyncOpenAI(
            base_url=f"{server.url}/v1", api_key=KEY, timeout=300, max_retries=0
        ) as concurrent:
            one = concurrent.chat.completions.create
            return await asyncio.gather(
                *(one(model="tiny", messages=chat(f"Tell me about {i}"), max_tokens=60) for i in range(64))
            )

    answers = asyncio.run(go())
    assert len(answers) == 64
    assert all(1 <= a.usage.completion_tokens <= 60 for a in answers)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": chat("word " * 3000)}),
        ("/v1/completions", {"prompt": [5] * 1024, "max_tokens": 1}),
        ("/v1/completions", {"prompt": [5] * 5000}),
        ("/v1/completions", {"prompt": "x", "max_tokens": -1}),
    ],
)
def test_what_can_never_fit_is_refused_with_400(server: Server, path: str, body: dict[str, Any]) -> None:
    head = {"authorization": f"Bearer {KEY}"}
    answer = httpx.post(f"{server.url}{path}", json={"model": "tiny", **body}, headers=head, timeout=60)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]


def test_the_longest_prompt_there_can_be_is_served(server: Server) -> None:
    """max_model_len is half of the KV here; vLLM does not start where one request would not fit (see below)."""
    head = {"authorization": f"Bearer {KEY}"}
    body = {"model": "tiny", "prompt": [5] * 1023, "max_tokens": 1}
    answer = httpx.post(f"{server.url}/v1/completions", json=body, headers=head, timeout=60)
    assert answer.status_code == 200
    assert answer.json()["usage"] == {**answer.json()["usage"], "prompt_tokens": 1023, "completion_tokens": 1}


def test_bodies_that_are_no_json_get_vllms_answer(server: Server) -> None:
    head = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
    answer = httpx.post(f"{server.url}/v1/completions", content=b'{"model":', headers=head, timeout=60)
    assert answer.status_code == 400


def test_nothing_is_predicted_for_clients_without_the_key(server: Server) -> None:
    before = server.metrics()
    body = {"model": "tiny", "prompt": "hello"}
    for head in ({}, {"authorization": "Bearer other"}):
        assert httpx.post(f"{server.url}/v1/completions", json=body, headers=head, timeout=60).status_code == 401
    assert server.metrics()["ecoserve_prediction_seconds_count"] == before["ecoserve_prediction_seconds_count"]


def test_clients_do_not_predict_for_themselves(client: openai.OpenAI, server: Server) -> None:
    before = server.metrics()
    client.completions.create(
        model="tiny", prompt="hello", max_tokens=2, extra_body={"vllm_xargs": {keys.LENGTHS: [1.0, 0.0, 0.0, 1.0, 1.0]}}
    )
    after = server.metrics()
    assert after["ecoserve_client_keys_dropped_total"] == before["ecoserve_client_keys_dropped_total"] + 1
    assert after["ecoserve_predictions_total{made}"] == before["ecoserve_predictions_total{made}"] + 1


def test_deadlines_reach_the_schedulers_tasks(client: openai.OpenAI, server: Server) -> None:
    """The scheduler counts them from its own Task; 600 s are met on any machine."""
    before = server.metrics()
    easy = {"x-slo-ttft-ms": "600000", "x-slo-tpot-ms": "600000"}
    client.chat.completions.create(model="tiny", messages=chat("Hello"), max_tokens=4, extra_headers=easy)
    client.completions.create(
        model="tiny", prompt=[5, 6], max_tokens=4, extra_body={"slo": {"ttft_ms": 600_000}, "ignore_eos": True}
    )
    client.responses.create(model="tiny", input="Hello", max_output_tokens=4, extra_headers={"x-slo-ttft-ms": "600000"})
    with pytest.raises(openai.BadRequestError, match="x-slo-ttft-ms: 'soon' is not a number of milliseconds"):
        client.completions.create(model="tiny", prompt="hello", extra_headers={"x-slo-ttft-ms": "soon"})
    forged = {"vllm_xargs": {keys.SLO_TTFT: 600.0}}
    client.completions.create(model="tiny", prompt="hello", max_tokens=2, extra_body=forged)
    after = server.metrics()

    def grown(name: str) -> float:
        return after[name] - before.get(name, 0.0)

    assert grown("ecoserve_slo_requests_total") == 3
    assert grown("ecoserve_ttft_met_total") == 3
    assert grown("ecoserve_ttft_missed_total") == 0
    assert grown("ecoserve_tpot_met_total") == 1
    assert grown("ecoserve_slo_stated_total{client}") == 3
    assert grown("ecoserve_slo_values_total{accepted}") == 4
    assert grown("ecoserve_slo_values_total{refused}") == 1
    assert grown("ecoserve_client_keys_dropped_total") == 1
    assert after["ecoserve_policy_info{ecoserve}"] == 1


def settings(server: Server, **more: Any) -> ClientRunSettings:
    known: dict[str, Any] = {
        "url": server.url,
        "api_key": KEY,
        "trace": "synthetic:400",
        "rate_rps": math.inf,
        "requests": 100,
        "max_tokens": 120,
        "max_prompt_tokens": 800,
    }
    return ClientRunSettings(**{**known, **more})


def test_a_trace_is_replayed_through_the_api(server: Server) -> None:
    asked = settings(server)
    result = run_client(asked)
    load = make_load(
        trace_for(asked.trace, None, None, "dev"),
        requests=100,
        rate_rps=math.inf,
        seed=0,
        lengths=LengthSource("none"),
        max_tokens=120,
        max_prompt_tokens=800,
    )
    assert {r.request_id: (r.status, r.output_tokens) for r in result.rows} == {
        r.name: ("completed", r.response_tokens) for r in load
    }
    assert all(0 < (r.ttft_s or 0) <= (r.e2el_s or 0) for r in result.rows)
    summary = result.summary()
    assert (summary["policy"], summary["lengths"], summary["other_length"]) == ("ecoserve", "server", 0)
    assert summary["steps"] > 50


def test_a_closed_loop_waits_for_the_answer(server: Server, tmp_path: Path) -> None:
    trace = tmp_path / "sessions.jsonl"
    turns = [
        {"conversation": f"c{k}", "turn": n, "prompt_tokens": 20 + 20 * n, "response_tokens": 10, "think_s": 0.1 * n}
        for k in range(2)
        for n in range(3)
    ]
    trace.write_text("".join(json.dumps(turn) + "\n" for turn in turns))
    rows = run_client(settings(server, trace=str(trace), requests=6)).rows
    assert [row.status for row in rows] == ["completed"] * 6
    # By their earliest arrival: the first turns of both, then the second ones, then the third.
    for n in (1, 2):
        for before, row in zip(rows[2 * n - 2 : 2 * n], rows[2 * n : 2 * n + 2], strict=True):
            assert before.finish_s is not None
            assert row.arrival_s >= before.finish_s + 0.1 * n


def test_what_the_server_refuses_is_a_row_and_no_end(server: Server) -> None:
    result = run_client(settings(server, requests=3, temperature=1.5, max_tokens=4000, replay=False))
    assert {r.status for r in result.rows} <= {"completed", "rejected"}
    result = run_client(settings(server, requests=3, timeout_s=0.001, replay=False))
    assert [r.status for r in result.rows] == ["failed"] * 3
    assert result.rows[0].error == "no end after 0.001 s"
    assert result.summary()["failed"] == 3


def test_a_run_that_cannot_be_is_said_before_it_starts(server: Server) -> None:
    with pytest.raises(ConfigError, match="API key"):
        run_client(settings(server, api_key="other"))
    with pytest.raises(ConfigError, match="does not serve"):
        run_client(settings(server, model="large"))
    with pytest.raises(ConfigError, match="no server answers"):
        run_client(settings(server, url="http://127.0.0.1:9"))


def test_sigterm_ends_a_server_that_is_still_starting(tiny_model: Path, tmp_path: Path, short_tmp: Path) -> None:
    """vLLM itself swallows it while it waits for its engine, and goes on waiting."""
    starting = Server([str(tiny_model), "--enforce-eager"], tmp_path / "server.log", short_tmp)
    try:
        deadline = time.monotonic() + Server.START_S
        # The tracker of shared memory and the engine: from now on the server waits for the engine.
        while len(descendants(starting.process.pid)) < 2 and time.monotonic() < deadline:
            time.sleep(0.1)
        processes = descendants(starting.process.pid)
        assert len(processes) >= 2
        starting.process.send_signal(signal.SIGTERM)
        assert starting.process.wait(Server.START_S) == 128 + signal.SIGTERM
        gone(processes)
        assert not list(short_tmp.glob("ecoserve-metrics-*"))
    finally:
        starting.stop()


def gone(processes: list[int]) -> None:
    """Wait for what a server has started to end."""
    deadline = time.monotonic() + Server.START_S
    while any(running(p) for p in processes) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not [p for p in processes if running(p)]


def test_zz_sigterm_ends_open_streams_and_leaves_nothing_behind(server: Server) -> None:
    """The last test of this module: it ends the server."""
    ends: list[str] = []
    tokens = [0] * 16

    def stream(index: int) -> None:
        body = {"model": "tiny", "prompt": "go on", "max_tokens": 1000, "ignore_eos": True, "stream": True}
        head = {"authorization": f"Bearer {KEY}"}
        try:
            with httpx.stream(
                "POST", f"{server.url}/v1/completions", json=body, headers=head, timeout=Server.START_S
            ) as answer:
                for line in answer.iter_lines():
                    tokens[index] += line.startswith("data:")
            ends.append("ended")
        except httpx.ReadTimeout:
            ends.append("left hanging")
        except httpx.HTTPError as error:
            ends.append(type(error).__name__)

    temporary = server.log.parent / "tmp"
    assert len(list(temporary.glob("ecoserve-metrics-*"))) == 1
    threads = [threading.Thread(target=stream, args=(i,)) for i in range(16)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + Server.START_S
    while not all(tokens) and time.monotonic() < deadline:
        time.sleep(0.05)
    processes = descendants(server.process.pid)
    assert processes
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(Server.START_S) == 0
    for thread in threads:
        thread.join(Server.START_S)
    assert ends == ["ended"] * 16
    gone(processes)
    assert not list(temporary.glob("ecoserve-metrics-*"))
