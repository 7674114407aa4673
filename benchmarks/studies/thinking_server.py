"""A server that thinks, replayed and collected: stock vLLM with ``--reasoning-parser``, and a role-only first chunk.

    .venv/bin/python benchmarks/studies/thinking_server.py -o benchmarks/results/thinking_server.json

vLLM serves the tiny model on the CPU, whose reasoning parser (scripts/tiny_reasoning_parser.py) takes all up to the
first full stop for thinking. The same requests then go through a relay that sends a chunk with a role alone at once
and passes the server's stream on half a second later, as servers do that answer before they have a token.
"""

from __future__ import annotations

import http.server
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import common
import httpx
import numpy as np
from collect_shown import Server

PAUSE_S = 0.5
ROLE = {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]}


class StockServer(Server):
    """vLLM's own server, without anything of ours."""

    def start(self) -> None:
        """Start it; it answers some time later (:meth:`wait`)."""
        self.starts += 1
        flags = "--enforce-eager --dtype float32 --max-model-len 1024 --distributed-executor-backend uni"
        flags += f" --reasoning-parser until_a_full_stop --served-model-name tiny --port {self.port}"
        plugin = str(common.ROOT / "scripts" / "tiny_reasoning_parser.py")
        command = [
            sys.executable,
            "-m",
            "vllm.entrypoints.openai.api_server",
            "--model",
            str(self._model),
            *flags.split(),
        ]
        with (self._folder / f"server{self.starts}.log").open("wb") as log:
            self.process = subprocess.Popen(
                [*command, "--reasoning-parser-plugin", plugin],
                stdout=log,
                stderr=log,
                env=common.server_environment(),
                start_new_session=True,
            )


def relay(url: str) -> http.server.ThreadingHTTPServer:
    """The relay in front of ``url``."""

    class Relay(http.server.BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

        def do_GET(self) -> None:
            """Hand on."""
            answer = httpx.get(url + self.path, timeout=60)
            self.send_response(answer.status_code)
            self.end_headers()
            self.wfile.write(answer.content)

        def do_POST(self) -> None:
            """A role at once, the rest later."""
            body = self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.end_headers()
            self.wfile.write(f"data: {json.dumps(ROLE)}\n\n".encode())
            self.wfile.flush()
            time.sleep(PAUSE_S)
            with httpx.stream("POST", url + self.path, content=body, headers=self.headers_on(), timeout=60) as answer:
                for piece in answer.iter_bytes():
                    self.wfile.write(piece)
                    self.wfile.flush()

        def headers_on(self) -> dict[str, str]:
            """Of the request that goes on."""
            return {"content-type": "application/json"}

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Relay)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def replayed(url: str, source: Path, requests: int) -> dict[str, Any]:
    """The load against ``url``: median times to the first token and to the end, tokens, thinking."""
    from ecoserve.serving.client_run import ClientRunSettings, run_client

    settings = ClientRunSettings(
        url=url, trace=str(source), split=None, requests=requests, max_tokens=32, temperature=1.0, replay=False
    )
    rows = run_client(settings).rows
    done = [r for r in rows if r.status == "completed"]
    first = [(r.first_token_s or 0.0) - r.arrival_s for r in done]
    return {
        "requests": len(rows),
        "completed": len(done),
        "ttft_p50_ms": round(float(np.median(first)) * 1000, 1),
        "ttft_min_ms": round(min(first) * 1000, 1),
        "e2el_p50_ms": round(float(np.median([(r.finish_s or 0.0) - r.arrival_s for r in done])) * 1000, 1),
        "output_tokens": sum(r.output_tokens for r in done),
        "thinking_tokens": sum(r.thinking_tokens or 0 for r in done),
    }


def collected(url: str, source: Path, out: Path, stop: int) -> dict[str, Any]:
    """Answers collected from ``url`` by kind, full stops made likelier; what the server itself counts of thinking."""
    from ecoserve.data import load_trace
    from ecoserve.serving.collect import CollectSettings, collect

    body = {"logit_bias": {str(stop): 4}, "min_tokens": 3}
    limits = {"samples": 4, "max_tokens": 32, "temperature": 1.0}
    collect(CollectSettings(prompts=str(source), output=out, url=url, body=body, **limits))  # type: ignore[arg-type]
    records = load_trace(out).records
    kinds = {"answers after thinking": 0, "cut off while thinking": 0, "ended while thinking": 0, "no thinking": 0}
    for r in records:
        still = r.thinking_tokens == r.response_tokens
        kind = "cut off while thinking" if still and r.censored else "ended while thinking"
        kinds[kind if still else "answers after thinking" if r.thinking_tokens else "no thinking"] += 1
    asked = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 32, "temperature": 1.0}
    said = httpx.post(f"{url}/v1/chat/completions", json={**asked, **body}, timeout=60).json()
    return {
        "answers": len(records),
        **kinds,
        "response_tokens": sum(r.response_tokens or 0 for r in records),
        "thinking_tokens": sum(r.thinking_tokens or 0 for r in records),
        "usage_of_one_answer": {n: said["usage"][n] for n in ("completion_tokens", "completion_tokens_details")},
        "its_reasoning_characters": len(said["choices"][0]["message"]["reasoning"] or ""),
    }


def main() -> None:
    """Start the servers, ask, write the result."""
    parser = common.arguments_of(__doc__)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--requests", type=int, default=30)
    given = parser.parse_args()
    from tiny_model import make_tiny_model
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = make_tiny_model(folder / "tiny")
        source = folder / "prompts.jsonl"
        rows = [
            {"conversation": f"c{i}", "prompt": f"question {i}", "response_tokens": 9, "arrival_s": i / 4}
            for i in range(given.requests)
        ]
        source.write_text("".join(json.dumps(row) + "\n" for row in rows))
        server = StockServer(model, folder)
        try:
            server.start()
            server.wait()
            front = relay(server.url)
            direct = replayed(server.url, source, given.requests)
            behind = replayed(f"http://127.0.0.1:{front.server_address[1]}", source, given.requests)
            front.shutdown()
            stop = AutoTokenizer.from_pretrained(str(model)).convert_tokens_to_ids(".")
            answers = collected(server.url, source, folder / "lengths.jsonl", stop)
        finally:
            server.stop()
    found = {"command": common.command("thinking_server", "-o", f"benchmarks/results/{given.output.name}")}
    found |= {"machine": "CPU cores shared with other work; vLLM 0.32 on the CPU, tiny model of scripts/tiny_model.py"}
    found |= {"replayed": direct, "role_first_pause_ms": PAUSE_S * 1000, "replayed_role_first": behind}
    common.write(given.output, {**found, "collected": answers})


if __name__ == "__main__":
    main()
