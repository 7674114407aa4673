"""Shared by the tests of the API server's part: recording applications, predictors to order, real servers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from ecoserve.data import Message
from ecoserve.lengths import LengthDistribution
from ecoserve.serving.adapter.middleware import PredictionMiddleware
from ecoserve.serving.adapter.middleware_settings import MiddlewareSettings

Chat = Sequence[Message]

ROOT = Path(__file__).resolve().parents[3]


class ByWords:
    """Predicts as many tokens as the last message has words, and remembers what it was asked."""

    def __init__(self, delay_s: float = 0.0, error: Exception | None = None) -> None:
        self.delay_s = delay_s
        self.error = error
        self.calls: list[list[Chat]] = []

    def predict(self, texts: Sequence[Chat], /) -> list[LengthDistribution]:
        self.calls.append(list(texts))
        time.sleep(self.delay_s)
        if self.error is not None:
            raise self.error
        return [LengthDistribution.point(max(1, len(chat[-1].content.split()))) for chat in texts]


class Recorder:
    """An ASGI application: reads the whole body, keeps it and its headers, answers 200 with the body."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.headers: list[dict[str, str]] = []
        self.events: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            while True:
                message = await receive()
                await send({"type": f"{message['type']}.complete"})
                if message["type"] == "lifespan.shutdown":
                    return
        body = b""
        while True:
            message = await receive()
            self.events.append(message["type"])
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        self.bodies.append(body)
        self.headers.append({n.decode().lower(): v.decode() for n, v in scope["headers"]})
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
        await send({"type": "http.response.body", "body": body})

    @property
    def last(self) -> Any:
        """The last body, parsed."""
        return json.loads(self.bodies[-1])


def with_client(
    use: Callable[[httpx.AsyncClient, Recorder], Awaitable[Any]],
    predictor: ByWords | None = None,
    **settings: Any,
) -> Recorder:
    """Run ``use`` with a client whose requests go through the middleware to a recorder."""
    recorder = Recorder()
    middleware = PredictionMiddleware(recorder, settings=MiddlewareSettings(**settings), predictor=predictor)

    async def go() -> None:
        transport = httpx.ASGITransport(app=middleware)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            await use(client, recorder)

    asyncio.run(go())
    return recorder


def counted(outcome: str) -> float:
    """How many requests the process has counted with this outcome."""
    from ecoserve.serving.adapter.metrics import middleware_metrics

    return float(middleware_metrics().predictions.labels(outcome)._value.get())


# -- real servers ---------------------------------------------------------------------------------------------------


class Server:
    """``ecoserve serve`` as a process of its own, with its log in a file.

    Args:
        arguments: of ``ecoserve serve``.
        log: file for all it prints.
        temporary: its TMPDIR. variables: of its environment.
    """

    #: of a tiny model on a machine that does other things too; nothing is judged by it
    START_S = 400.0

    def __init__(self, arguments: Sequence[str], log: Path, temporary: Path, **variables: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = log
        dropped = ("VLLM_LOGGING_LEVEL", "PROMETHEUS_MULTIPROC_DIR", "VLLM_API_KEY")
        env = {k: v for k, v in os.environ.items() if k not in dropped and not k.startswith("ECOSERVE_")}
        env |= {
            "OMP_NUM_THREADS": "1",  # threads that wait for each other take the cores from other processes
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            # The engine's process is its own worker: else vLLM makes another one of the CPU's single worker.
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            # A process that is forked has imported everything.
            "VLLM_WORKER_MULTIPROC_METHOD": "fork",
            "HF_HUB_OFFLINE": "1",
            "TMPDIR": str(temporary),
            "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [env.get("PYTHONPATH")])]),
            **variables,
        }
        command = [sys.executable, "-m", "ecoserve.cli.main", "serve", *arguments, "--port", str(self.port)]
        with log.open("w") as out:
            self.process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=env)

    def wait(self) -> None:
        """Until it answers.

        Raises:
            AssertionError: with the end of its log, if it ends or takes far too long.
        """
        deadline = time.monotonic() + self.START_S
        with httpx.Client(timeout=5) as client:
            while time.monotonic() < deadline and self.process.poll() is None:
                with contextlib.suppress(httpx.HTTPError):
                    if client.get(f"{self.url}/health").status_code == 200:
                        return
                time.sleep(0.5)
        raise AssertionError(f"no server ({self.process.poll()}):\n{self.log.read_text()[-3000:]}")

    def metrics(self) -> dict[str, float]:
        """Its counters and gauges by name, summed over labels; ``name{outcome}`` where there is an outcome (or source,
        or policy)."""
        out: dict[str, float] = {}
        for family in text_string_to_metric_families(httpx.get(f"{self.url}/metrics", timeout=30).text):
            for sample in family.samples:
                outcome = next((sample.labels[n] for n in ("outcome", "source", "policy") if n in sample.labels), None)
                name = f"{sample.name}{{{outcome}}}" if outcome else sample.name
                out[name] = out.get(name, 0.0) + sample.value
        return out

    def stop(self) -> None:
        """At the end of the tests; what is left is killed."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                for pid in descendants(self.process.pid):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                self.process.kill()
                self.process.wait(30)


def free_port() -> int:
    """A free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def descendants(pid: int) -> list[int]:
    """The processes that ``pid`` has started, and those that they have started."""
    parents: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                stat = Path(f"/proc/{entry}/stat").read_text().rsplit(")", 1)[1].split()
                parents.setdefault(int(stat[1]), []).append(int(entry))
    found, todo = [], [pid]
    while todo:
        children = parents.get(todo.pop(), [])
        found += children
        todo += children
    return found


def running(pid: int) -> bool:
    """Whether the process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
