"""``ecoserve replay``: what it writes, what it refuses, how it exits."""

from __future__ import annotations

import http.server
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ecoserve.cli.main import main

pytestmark = pytest.mark.filterwarnings("ignore")


PAUSE_S = 0.15
COUNTS = {"prompt_tokens": 7, "completion_tokens": 5}
THOUGHT = {**COUNTS, "completion_tokens_details": {"reasoning_tokens": 5}}
#: What is asked -> the first delta with a token, and the usage.
STREAMS: dict[str, tuple[dict[str, Any], dict[str, Any] | None]] = {
    "content": ({"content": "a"}, COUNTS),
    "parts": ({"content": [{"type": "text", "text": "a"}]}, COUNTS),
    "reasoning": ({"reasoning": "hm"}, THOUGHT),
    "reasoning content": ({"content": None, "reasoning_content": "hm"}, COUNTS),
    "a tool": ({"tool_calls": [{"index": 0, "function": {"name": "f", "arguments": ""}}]}, COUNTS),
    "a token without a text": ({"content": ""}, COUNTS),
    "no token": ({"role": "assistant", "content": ""}, COUNTS),
    "no usage": ({"content": "a"}, None),
}


class Upstream(http.server.BaseHTTPRequestHandler):
    """An OpenAI-compatible server as small as can be: five words per answer, every third request refused or broken."""

    count = 0
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def reply(self, status: int, body: bytes, kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def stream(self, first: dict[str, Any], usage: dict[str, Any] | None) -> None:
        """A role alone at once, ``first`` after a while, the end, and the usage."""
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        for delta in ({"role": "assistant", "content": ""}, first):
            self.wfile.write(f"data: {json.dumps({'choices': [{'delta': delta}]})}\n\n".encode())
            self.wfile.flush()
            time.sleep(PAUSE_S)
        ends: list[Any] = [{"choices": [{"delta": {}, "finish_reason": "length"}]}]
        ends += [{"choices": [], "usage": usage}] if usage is not None else []
        self.wfile.write("".join(f"data: {json.dumps(e)}\n\n" for e in ends).encode() + b"data: [DONE]\n\n")
        self.close_connection = True

    def do_GET(self) -> None:
        if self.path == "/v1/models":
            self.reply(200, b'{"data": [{"id": "words"}]}')
        else:
            self.reply(404, b"{}")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        assert body["model"] == "words"
        if (asked := body.get("messages", [{}])[-1].get("content")) in STREAMS:
            self.stream(*STREAMS[asked])
            return
        type(self).count += 1
        if self.count % 3 == 0:
            self.reply(400, b'{"error": {"message": "too long"}}')
            return
        events: list[Any] = [{"choices": [{"delta": {"content": w}, "finish_reason": None}]} for w in "abcd"]
        if not body["messages"][-1]["content"].startswith("BREAK"):
            events.append({"choices": [{"delta": {"content": "e"}, "finish_reason": "stop"}]})
            events.append({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 5}})
        stream = ": a comment\n\n" + "".join(f"data: {json.dumps(e)}\n\n" for e in events) + "data: [DONE]\n\n"
        self.reply(200, stream.encode(), "text/event-stream")


@pytest.fixture
def url() -> Iterator[str]:
    Upstream.count = 0
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Upstream)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def trace(folder: Path, prompts: list[str]) -> Path:
    path = folder / "trace.jsonl"
    rows = [
        {
            "conversation": f"c{i}",
            "turn": 0,
            "prompt": p,
            "prompt_tokens": 7,
            "response_tokens": 5,
            "arrival_s": i / 100,
        }
        for i, p in enumerate(prompts)
    ]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def test_a_url_is_driven_and_everything_is_written(url: str, tmp_path: Path) -> None:
    source = trace(tmp_path, [f"question {i}" for i in range(9)])
    out = tmp_path / "out"
    code = main(
        [
            *("replay", str(source), "--url", f"{url}/v1", "--no-replay", "--concurrency", "1", "--requests", "9"),
            *("-o", str(out), "--json", str(tmp_path / "runs.json"), "--quiet"),
        ]
    )
    assert code == 0
    (run,) = json.loads((tmp_path / "runs.json").read_text())["runs"]
    assert json.loads((out / "summary.json").read_text())["runs"] == [run]
    assert (run["requests"], run["completed"], run["rejected"], run["failed"]) == (9, 6, 3, 0)
    assert (run["policy"], run["lengths"], run["arrivals"], run["rate_rps"]) == ("vllm", "server", "recorded", None)
    assert run["output_tokens_per_s"] > 0
    rows = [json.loads(line) for line in (out / "requests.jsonl").read_text().splitlines()]
    assert [r["status"] for r in rows].count("rejected") == 3
    assert {r["error"] for r in rows if r["status"] == "rejected"} == {"HTTP 400: too long"}
    assert all(r["output_tokens"] == 5 and r["prompt_tokens"] == 7 for r in rows if r["status"] == "completed")
    assert all(r["arrival_s"] <= r["first_token_s"] <= r["finish_s"] for r in rows if r["status"] == "completed")


def test_the_first_token_is_no_role_but_thinking_is_one(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = trace(tmp_path, list(STREAMS)), tmp_path / "out"
    options = ("--no-replay", "--requests", str(len(STREAMS)), "-o", str(out))
    assert main(["replay", str(source), "--url", url, "--quiet", *options]) == 1
    rows = {}
    for line in (out / "requests.jsonl").read_text().splitlines():
        row = json.loads(line)
        rows[list(STREAMS)[int(row["request_id"][1:])]] = row
    assert rows.pop("no usage")["status"] == "failed"
    assert "the server sent no usage, so its length is not known" in capsys.readouterr().err
    for name, row in rows.items():
        # The role comes at once, the first token after a pause, the end after another.
        assert row["first_token_s"] - row["arrival_s"] >= PAUSE_S * (2 if name == "no token" else 1)
        assert (row["status"], row["output_tokens"]) == ("completed", 5)
        assert row["thinking_tokens"] == (5 if "reasoning" in name else None)  # counted, or by the text
        assert (row["finish_s"] == row["first_token_s"]) == (name == "no token")


def test_a_stream_that_breaks_off_is_a_failure_and_exit_code_1(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = trace(tmp_path, ["question", "BREAK off"])
    code = main(
        [
            *("replay", str(source), "--url", url, "--no-replay", "--requests", "2", "--concurrency", "1", "--quiet"),
            *("--json", str(tmp_path / "runs.json"), "--rate", "inf", "--split", "all"),
        ]
    )
    assert code == 1
    assert "1 of 2 requests failed; the first: the stream broke off" in capsys.readouterr().err
    (run,) = json.loads((tmp_path / "runs.json").read_text())["runs"]
    assert (run["completed"], run["failed"]) == (1, 1)


def test_a_server_that_does_not_force_lengths_is_no_server_to_replay_at(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Upstream.count = 2  # the probe is refused
    assert main(["replay", str(trace(tmp_path, ["q"])), "--url", url, "--quiet"]) == 2
    assert "ecoserve serve --replay" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--url"),
        (["--url", "localhost:8000"], "http://"),
        (["--model", "m", "--rate", "fast"], "--rate"),
        (["--model", "m", "--rate", "-1"], "--rate"),
        (["--model", "m", "--rate", "1", "--policy", "best"], "not known"),
        (["--model", "m", "--rate", "1", "--lengths", "guess"], "--lengths"),
        (["--model", "m", "--rate", "1", "--clock", "sun"], "--clock"),
    ],
)
def test_bad_input_is_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert main(["replay", str(trace(tmp_path, ["q"])), *arguments, "--quiet"]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.engine
def test_policies_run_one_after_another_in_this_process(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(
        [
            *("replay", "synthetic:200", "--model", str(tiny_model), "--rate", "200", "--requests", "24"),
            *("--policy", "vllm,ecoserve", "--lengths", "noise:0.4", "--kv-blocks", "23", "--block-size", "32"),
            *("--max-model-len", "512", "--max-tokens", "96", "--threads", "1", "--clock", "cpu", "--json", "-"),
        ]
    )
    printed = capsys.readouterr()
    assert code == 0, printed.err
    runs = json.loads(printed.out)["runs"]
    assert [(r["policy"], r["completed"], r["lengths"]) for r in runs] == [
        ("vllm", 24, "noise:0.4"),
        ("ecoserve", 24, "noise:0.4"),
    ]
    assert runs[0]["arrivals"] == "poisson"
    assert runs[0]["rate_rps"] == 200
    assert "E2EL" in printed.err, "a table for the eyes goes to stderr"
