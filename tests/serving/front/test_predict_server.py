"""The HTTP endpoint of predicted lengths: what a gateway gets, what it is refused, and how it stops."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock

import httpx
import pytest
from fastapi.testclient import TestClient
from front_helpers import ByWords, free_port

from ecoserve.cli.main import main
from ecoserve.data import synthetic_trace
from ecoserve.predictor import train_predictor
from ecoserve.serving.adapter.middleware_settings import MiddlewareSettings
from ecoserve.serving.adapter.predict_server import prediction_app
from ecoserve.serving.adapter.prediction_service import PredictionService

CHAT = "/predict/v1/chat/completions"
FIVE = {"messages": [{"role": "user", "content": "one two three four five"}]}


@pytest.fixture
def client(request: pytest.FixtureRequest) -> Any:
    settings = MiddlewareSettings(**getattr(request, "param", {}))
    with TestClient(prediction_app(ByWords(), settings, "a-model")) as client:
        yield client


def test_length_quantiles_and_kv_time_of_a_body(client: TestClient) -> None:
    answer = client.post(CHAT, params={"prompt_tokens": 100}, json=FIVE).json()
    assert answer["served_model"] == "a-model"
    assert answer["nvext"] == {"agent_hints": {"osl": 5}}
    (found,) = answer["predictions"]
    assert found["mean_tokens"] == 5
    assert set(found["quantiles_tokens"].values()) == {5}
    assert found["prompt_tokens"] == 100
    assert found["kv_token_steps"] == pytest.approx(5 * 100 + 5 * 5 / 2, rel=0.15)
    assert found["work_tokens"] == pytest.approx(100 + 5, abs=2)


@pytest.mark.parametrize(
    ("path", "body", "tokens"),
    [
        ("/v1/completions", {"prompt": "a b c"}, [3]),
        ("/v1/completions", {"prompt": ["a b c", "a"], "max_tokens": 2}, [2, 1]),
        ("/v1/responses", {"input": "a b"}, [2]),
        ("/v1/messages", {**FIVE, "system": "be brief", "max_tokens": 4}, [4]),
        # a client's own prediction does not count
        ("/v1/chat/completions", {**FIVE, "vllm_xargs": {"ecoserve_lengths": [1, 0, 9, 10, 1.0]}}, [5]),
        ("/v1/chat/completions", {**FIVE, "nvext": {"agent_hints": {"osl": 1}}}, [5]),
    ],
)
def test_every_api_and_nothing_from_the_client_but_its_limit(
    client: TestClient, path: str, body: dict[str, Any], tokens: list[int]
) -> None:
    answer = client.post(f"/predict{path}", json=body).json()
    assert [p["mean_tokens"] for p in answer["predictions"]] == tokens
    assert answer["nvext"]["agent_hints"]["osl"] == max(tokens)


@pytest.mark.parametrize("client", [{"max_body_bytes": 2048}], indirect=True)
@pytest.mark.parametrize(
    ("status", "path", "content", "message"),
    [
        (400, CHAT, b"not json", "no JSON object"),
        (400, CHAT, b"[1, 2]", "no JSON object"),
        (400, CHAT, b"{}", "no prompt in text that /v1/chat/completions would read"),
        (400, "/predict/v1/completions", b'{"prompt": [1, 2]}', "no prompt in text"),
        (400, CHAT + "?prompt_tokens=many", json.dumps(FIVE).encode(), "prompt_tokens is no number of tokens"),
        (413, CHAT, b" " * 2049, "longer than 2,048 bytes"),
        (404, "/predict/v1/embeddings", b"{}", "POST to /predict/v1/chat/completions"),
    ],
)
def test_bad_input_is_one_clear_message(
    client: TestClient, status: int, path: str, content: bytes, message: str
) -> None:
    answer = client.post(path, content=content)
    assert answer.status_code == status
    assert message in answer.json()["error"]["message"]
    assert client.get(CHAT).status_code == 405


@pytest.mark.parametrize("client", [{"api_key": "secret"}], indirect=True)
@pytest.mark.parametrize(("key", "status"), [(None, 401), ("wrong", 401), ("secret", 200)])
def test_a_key_is_needed_where_one_is_set(client: TestClient, key: str | None, status: int) -> None:
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    assert client.post(CHAT, json=FIVE, headers=headers).status_code == status
    assert client.get("/health").status_code == 200


@pytest.mark.parametrize(
    ("predictor", "outcome"), [(ByWords(delay_s=0.2), "timeout"), (ByWords(error=ValueError("broken")), "error")]
)
def test_without_a_prediction_the_gateway_reads_why(
    monkeypatch: pytest.MonkeyPatch, predictor: ByWords, outcome: str
) -> None:
    monkeypatch.setattr(PredictionService, "warm_up", AsyncMock())
    with TestClient(prediction_app(predictor, MiddlewareSettings(predict_timeout_ms=20.0))) as client:
        answer = client.post(CHAT, json=FIVE)
    assert answer.status_code == 503
    assert f"no prediction was made ({outcome})" in answer.json()["error"]["message"]


def test_metrics_have_the_outcomes(client: TestClient) -> None:
    client.post(CHAT, json=FIVE)
    text = client.get("/metrics").text
    assert 'ecoserve_predictions_total{model_name="a-model",outcome="made"}' in text
    assert "ecoserve_predictor_call_seconds_count" in text


#: Says at its end whether it has imported vLLM.
PROGRAM = """
import atexit, sys
from ecoserve.cli.main import main
atexit.register(lambda: print("vllm" in sys.modules, "torch" in sys.modules))
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.server
def test_a_real_server_predicts_without_vllm_and_ends_with_0_on_sigterm(tmp_path: Path) -> None:
    train_predictor(synthetic_trace(300, seed=0), backend="lightgbm", output_dir=tmp_path / "small", seed=0)
    port = free_port()
    words = [sys.executable, "-c", PROGRAM, "predict-server", str(tmp_path / "small"), "--port", str(port)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            assert f":{port}/predict/" in process.stderr.readline()
            url = f"http://127.0.0.1:{port}"
            with httpx.Client(transport=httpx.HTTPTransport(retries=20), timeout=60.0) as client:
                answer = client.post(url + CHAT, json=FIVE).json()
            assert answer["nvext"]["agent_hints"]["osl"] >= 1
            process.send_signal(signal.SIGTERM)
            out, _ = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, out.split()) == (0, ["False", "False"])


def test_an_address_in_use_and_a_missing_checkpoint_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert main(["predict-server", str(tmp_path), "--port", str(taken.getsockname()[1])]) == 2
    assert "is in use" in capsys.readouterr().err
    assert main(["predict-server", str(tmp_path / "none"), "--port", str(free_port())]) == 2
    assert capsys.readouterr().err.count("\n") == 1
