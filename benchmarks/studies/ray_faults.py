"""Replicas under Ray Serve on this machine while faults happen: requests sent = answered + cleanly refused.

    python benchmarks/studies/ray_faults.py RESULT.json [--model DIR] [--requests 1000]

Sends chat requests by the openai client, half of them streams, to two replicas behind one ingress. While they run, a
replica's process is killed, the application is updated (a rolling update), and it is scaled to three replicas and back.
With --model each replica is vLLM's server with that model; without, an application that streams words in its place, so
that what is tried is everything but the engine. A request counts as *answered* if its response is complete, as
*refused* if the client got an error of the API (503) or an error event, and as *lost* otherwise. Needs the extra `ray`.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import socket
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

# Read when Ray is imported: a loaded machine starts Ray slowly, and nothing is sent anywhere.
os.environ |= {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "300",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "300",
    "RAY_raylet_start_wait_time_s": "300",
}

import psutil  # type: ignore[import-untyped]
from common import arguments_of, command, write

from ecoserve.serving.cluster.app import Served, application
from ecoserve.serving.cluster.engine import vllm_server
from ecoserve.serving.cluster.settings import RaySettings

ALIVE: Final = 16


@asynccontextmanager
async def words(settings: RaySettings) -> AsyncIterator[Served]:
    """In vLLM's place: ``max_tokens`` words, 5 ms apart, in the form of chat completions."""
    tokens: dict[str, int] = {}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        body = json.loads((await receive())["body"] or b"{}")
        name = dict(scope["headers"])[b"x-request-id"].decode()
        streams, count = bool(body.get("stream")), int(body.get("max_tokens", 1))
        kind = b"text/event-stream" if streams else b"application/json"
        head = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]}
        if streams:
            await send(head)
        for i in range(count):
            tokens[name] = i + 1
            await asyncio.sleep(0.005)
            if streams:
                event = {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": "word "}}]}
                await send({"type": "http.response.body", "body": _event(event), "more_body": True})
        tokens.pop(name, None)
        if streams:
            last = {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
            await send({"type": "http.response.body", "body": _event(last) + b"data: [DONE]\n\n"})
        else:
            await send(head)
            choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "word " * count}}
            await send({"type": "http.response.body", "body": json.dumps({"choices": [choice]}).encode()})

    yield Served(app, lambda: dict(tokens), lambda: None, kv_tokens=100_000)


def _event(content: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(content).encode() + b"\n\n"


class Requests:
    """The client's side: what became of each request, by the fault that was going on when it was sent."""

    def __init__(self, port: int, model: str, total: int) -> None:
        import openai

        self.client = openai.AsyncOpenAI(
            base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0, timeout=300.0
        )
        self.model, self.total = model, total
        self.outcomes: dict[str, Counter[str]] = {}
        self.phase, self.sent = "steady", 0
        self.unclear: Counter[str] = Counter()

    async def one(self, number: int) -> None:
        import openai

        counts = self.outcomes.setdefault(self.phase, Counter())
        counts["sent"] += 1
        draw = random.Random(number)
        ask: dict[str, Any] = {
            "model": self.model, "max_tokens": int(min(400, draw.lognormvariate(3.5, 1.0))) + 1,
            "messages": [{"role": "user", "content": f"Request {number}: " + "please " * draw.randrange(60)}],
        }  # fmt: skip
        try:
            if number % 2:
                reason = None
                async for chunk in await self.client.chat.completions.create(stream=True, **ask):
                    for choice in chunk.choices:
                        reason = choice.finish_reason or reason
                complete = reason is not None
            else:
                answer = await self.client.chat.completions.create(**ask)
                complete = answer.choices[0].finish_reason is not None
            counts["answered" if complete else "lost"] += 1
        except openai.APIStatusError as error:
            counts["refused" if error.status_code == 503 else "lost"] += 1
            if error.status_code != 503:
                self.unclear[f"status {error.status_code}"] += 1
        except openai.APIError as error:  # an error event in a stream, or the connection
            clean = "replica" in str(error)
            counts["refused" if clean else "lost"] += 1
            if not clean:
                self.unclear[f"{type(error).__name__}: {str(error)[:80]}"] += 1

    async def run(self, faults: Any) -> None:
        left, gate = iter(range(self.total)), asyncio.Semaphore(ALIVE)

        async def worker() -> None:
            for number in left:
                async with gate:
                    self.sent += 1
                    await self.one(number)

        await asyncio.gather(faults, *(worker() for _ in range(ALIVE)))


async def faults(requests: Requests, deploy: Any, settings: RaySettings) -> None:
    """One fault after another, at sixths of the load."""

    async def until(share: float) -> None:
        while requests.sent < share * requests.total:
            await asyncio.sleep(0.02)

    await until(1 / 6)
    requests.phase = "killed replica"
    os.kill(random.Random(0).choice(replica_processes()), signal.SIGKILL)
    await until(2 / 6)
    requests.phase = "rolling update"
    await asyncio.to_thread(deploy, settings.model_copy(update={"router": "least-requests"}))
    await until(3 / 6)
    requests.phase = "three replicas"
    await asyncio.to_thread(deploy, settings.model_copy(update={"router": "least-requests", "replicas": 3}))
    await until(4 / 6)
    requests.phase = "two again"
    await asyncio.to_thread(deploy, settings.model_copy(update={"router": "least-requests", "replicas": 2}))
    await until(5 / 6)
    requests.phase = "steady again"


def replica_processes() -> list[int]:
    names = ((p.pid, " ".join(p.info["cmdline"] or ())) for p in psutil.process_iter(["cmdline"]))
    return [pid for pid, name in names if name.startswith("ray::ServeReplica") and ":Replica" in name]


def main() -> None:
    parser = arguments_of(__doc__)
    parser.add_argument("result", type=Path)
    parser.add_argument("--model")
    parser.add_argument("--requests", type=int, default=1000)
    given = parser.parse_args()
    import ray
    from ray import serve
    from ray.serve._private import api

    api.HTTP_PROXY_TIMEOUT = 600
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    ray.init(
        address="local", num_cpus=12, include_dashboard=False, log_to_driver=False, logging_level="error",
        runtime_env={"env_vars": {"PYTHONPATH": paths}},
    )  # fmt: skip
    flags = ("--max-model-len", "512", "--enforce-eager", "--dtype", "float32", "--block-size", "32")
    settings = RaySettings(
        model=given.model or "none", vllm=flags, replicas=2, gpus=0, drain_s=120.0, health_period_s=2.0
    )

    def deploy(chosen: RaySettings) -> None:
        serve.run(application(chosen, vllm_server if given.model else words), name="faults", route_prefix="/")

    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        deploy(settings)
        requests = Requests(port, given.model or "none", given.requests)
        asyncio.run(requests.run(faults(requests, deploy, settings)))
    finally:
        serve.shutdown()
        ray.shutdown()
    rows = [{"phase": phase, **counts} for phase, counts in requests.outcomes.items()]
    total = sum(requests.outcomes.values(), Counter())
    words_of = ["RESULT.json", *(["--model", "MODEL"] if given.model else []), "--requests", given.requests]
    write(
        given.result,
        {"command": command("ray_faults", *words_of), "ray": ray.__version__, "engine": bool(given.model),
         "phases": rows, "total": dict(total), "lost_as": dict(requests.unclear)},
    )  # fmt: skip
    print(rows, dict(total), dict(requests.unclear))


if __name__ == "__main__":
    main()
