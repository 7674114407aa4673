"""A small OpenAI-compatible server on a real socket, which misbehaves to order, and what the tests share.

It counts what a client can get wrong: how many requests were open at once, and how often each sample was asked for.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ecoserve.serving.collect import CollectSettings
from ecoserve.serving.collect.journal import journal_of

MODEL = "stand-in"


@dataclass
class Reply:
    """One HTTP reply.

    Attributes:
        status: 0 hangs up without a word.
        body: what it says.
        headers: besides the usual ones.
        cut: hang up after so many bytes of the body.
        once: wait until this is true.
    """

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None
    once: Callable[[], bool] = lambda: True


Behaviour = Callable[[dict[str, Any], int], Reply]


def true_length(text: str, seed: int) -> tuple[int, str]:
    """The length and finish reason of the stand-in's answer: by chance, but the same each time."""
    n = int.from_bytes(hashlib.sha256(f"{text}:{seed}".encode()).digest()[:2], "big") % 80 + 1
    return (64, "length") if n > 64 else (n, "stop")


def answer(body: dict[str, Any], once: Callable[[], bool] = lambda: True) -> Reply:
    """The proper answer to a request."""
    text = body["messages"][-1]["content"] if "messages" in body else body["prompt"]
    tokens, reason = true_length(text, body.get("seed", 0))
    choice: dict[str, Any] = {"index": 0, "finish_reason": reason}
    said = f"answer {tokens} to {text}"
    choice |= {"message": {"role": "assistant", "content": said}} if "messages" in body else {"text": said}
    usage = {"prompt_tokens": len(text.split()), "completion_tokens": tokens}
    return Reply(200, json.dumps({"choices": [choice], "usage": usage}).encode(), once=once)


def fails(status: int, message: str = "out of order", **more: Any) -> Reply:
    """An error in OpenAI's form."""
    return Reply(status, json.dumps({"error": {"message": message}}).encode(), **more)


class StandIn:
    """The server, in a thread. ``behave(body, n)`` answers the n-th attempt (0-based) at one sample.

    Args:
        behave: what it answers.
        key: the API key it wants.
        port: 0 for any.
        socket: a Unix socket to listen at instead.
        models: what ``/v1/models`` answers.
    """

    def __init__(
        self,
        behave: Behaviour | None = None,
        *,
        key: str | None = None,
        port: int = 0,
        socket: str | None = None,
        models: Reply | None = None,
    ) -> None:
        self.behave = behave or (lambda body, n: answer(body))
        self.key = key
        self.port = port
        self.socket = socket
        self.models = models or Reply(200, json.dumps({"data": [{"id": MODEL}]}).encode())
        self.bodies: list[dict[str, Any]] = []
        self.times: list[float] = []
        self.paths: list[str] = []
        self.asked: Counter[tuple[str, int]] = Counter()
        self.open = 0
        self.answered = 0
        self.most_open = 0
        self._connections: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> StandIn:
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._call(self._listen())
        return self

    def __exit__(self, *_: object) -> None:
        """Gone at once, with all its connections."""
        if self._thread is None:
            return
        self._call(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(30)
        self._loop.close()
        self._thread = None

    def _call(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _listen(self) -> None:
        if self.socket is not None:
            self._server = await asyncio.start_unix_server(self._talk, self.socket)
            return
        self._server = await asyncio.start_server(self._talk, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _end(self) -> None:
        self._server.close()
        for writer in list(self._connections):
            writer.transport.abort()
        tasks = [t for t in asyncio.all_tasks() if t is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections.add(writer)
        try:
            while await self._exchange(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._connections.discard(writer)
            writer.transport.abort()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.split("\r\n")
        method, path, _ = first.split(" ")
        headers = {n.strip().lower(): v.strip() for n, _, v in (line.partition(":") for line in lines if line)}
        data = await reader.readexactly(int(headers.get("content-length", 0)))
        self.paths.append(path)
        if self.key is not None and headers.get("authorization") != f"Bearer {self.key}":
            reply = fails(401, f"Incorrect API key provided: {headers.get('authorization')}")
        elif method == "GET":
            reply = self.models
        else:
            reply = await self._post(json.loads(data))
        if reply.status == 0:
            return False
        head = "".join(f"{n}: {v}\r\n" for n, v in reply.headers.items())
        writer.write(f"HTTP/1.1 {reply.status} x\r\ncontent-length: {len(reply.body)}\r\n{head}\r\n".encode("latin-1"))
        writer.write(reply.body[: reply.cut])
        await writer.drain()
        return reply.cut is None

    async def _post(self, body: dict[str, Any]) -> Reply:
        self.times.append(time.monotonic())
        self.bodies.append(body)
        text = body["messages"][-1]["content"] if "messages" in body else body["prompt"]
        key = (text, body.get("seed", 0))
        n = self.asked[key]
        self.asked[key] += 1
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        try:
            reply = self.behave(body, n)
            while not reply.once():
                await asyncio.sleep(0.01)
            self.answered += 1
            return reply
        finally:
            self.open -= 1


def journaled(out: Path) -> Counter[str]:
    """How many outcomes of each state are in the journal of a collection that is not running."""
    with contextlib.closing(sqlite3.connect(journal_of(out))) as db:
        return Counter(state for (state,) in db.execute("SELECT state FROM outcomes"))


def prompts_file(folder: Path, count: int) -> Path:
    """A file of different prompts."""
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps({"id": f"c{i}", "prompt": f"question {i}"}) + "\n" for i in range(count)))
    return path


def settings(prompts: Path | str, output: Path, url: str | None, **changes: Any) -> CollectSettings:
    """Settings for tests: short waits, the rest as it is."""
    values: dict[str, Any] = {"prompts": str(prompts), "output": output, "url": url, "backoff_s": 0.01}
    return CollectSettings(**(values | changes))


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The rows of a written trace, without its header."""
    import gzip

    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return [json.loads(line) for line in data.decode().splitlines()[1:]]
