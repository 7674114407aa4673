"""What the server does when things fail under load: every request that was sent is answered or cleanly refused.

    .venv/bin/python benchmarks/studies/faults.py --json benchmarks/results/faults.json      # all, about 20 minutes
    .venv/bin/python benchmarks/studies/faults.py --only clients,drain

Each case runs on a real server with the tiny model, as a process of its own. The predictor of the server is a stand-in
that is fast, slow, raises or hangs as a file says. A request is *complete*, *refused* (an HTTP error with a JSON body,
or a stream that ends with an error event), *left* (its client went away on purpose), or *lost*; none may be lost.

``clients``    30 % of the clients leave in the middle; 40 connections that send a byte now and then; an event log on a
               full disk; bodies of 20 MB with our keys, padded, chunked, disguised, and without; a form with our keys
``predictor``  slow, raising, hanging; then SIGTERM while it hangs
``drain``      SIGTERM with 64 open streams, a second one, new requests and /health meanwhile
``engine``     the engine's process is killed
``queue``      a bounded queue, offered several times what it can do
``messages``   a body of 440,000 messages: how long our part holds the event loop, beside json.loads alone (no server)
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import common
import httpx

MODE = "FAULTS_MODE"
START_S = 600.0
#: Longest wait for anything; a request that takes longer is lost.
WAIT_S = 300.0
KEYS = {"ecoserve_lengths": [1.0, 0.0, 1.0, 2.0, 1.0]}


class StandIn:
    """A predictor of 20 tokens for everything, in the mode that the file says."""

    def predict(self, texts: Any, /) -> Any:
        from ecoserve.lengths import LengthDistribution

        mode = Path(os.environ[MODE]).read_text(encoding="utf-8")
        if mode == "slow":
            time.sleep(1.0)
        if mode == "hang":
            time.sleep(1e6)
        if mode == "raise":
            raise RuntimeError("broken on purpose")
        return [LengthDistribution.point(20) for _ in texts]


def serve(arguments: list[str]) -> int:
    """``ecoserve serve`` with the stand-in in the place of the checkpoint's predictor."""
    from ecoserve.cli.main import main
    from ecoserve.serving.adapter import prediction_service

    prediction_service.shared_predictor = lambda path: StandIn()  # type: ignore[assignment]
    return main(["serve", *arguments])


def serve_stock(arguments: list[str]) -> int:
    """vLLM's own server with nothing of ours in it; its command asks for metadata that its CPU build has not."""
    from vllm.entrypoints.cli.serve import ServeSubcommand

    from ecoserve.serving.adapter.vllm_flags import parse

    args = parse(arguments[0], arguments[1:])
    ServeSubcommand().validate(args)
    ServeSubcommand.cmd(args)
    return 0


class Server:
    """A server with the tiny model; with the stand-in for a predictor, or none; ``stock``: vLLM's own command."""

    def __init__(self, model: Path, folder: Path, *more: str, predictor: bool = True, stock: bool = False) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}"
        self.mode = folder / "mode"
        self.mode.write_text("fast", encoding="utf-8")
        self.log = folder / "server.log"
        flags = "--enforce-eager --dtype float32 --served-model-name tiny --num-gpu-blocks-override 129 --block-size 32"
        flags += " --max-model-len 1024 --max-num-seqs 32 --distributed-executor-backend uni"
        flags += " --predictor stand-in" if predictor else ""
        environment = common.server_environment() | {MODE: str(self.mode)}
        command = [
            sys.executable,
            __file__,
            "--stock" if stock else "--serve",
            str(model),
            *flags.split(),
            "--port",
            str(self.port),
            *more,
        ]
        with self.log.open("w") as out:
            self.process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=environment)
        end = time.monotonic() + START_S
        while time.monotonic() < end and self.process.poll() is None:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{self.url}/health", timeout=5).status_code == 200:
                    return
            time.sleep(0.5)
        self.stop()
        raise RuntimeError(f"no server:\n{self.log.read_text()[-3000:]}")

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's series with these labels."""
        total = 0.0
        for line in httpx.get(f"{self.url}/metrics", timeout=WAIT_S).text.splitlines():
            if line.partition("{")[0].partition(" ")[0] == name and all(
                f'{k}="{v}"' in line for k, v in labels.items()
            ):
                total += float(line.rsplit(" ", 1)[1])
        return total

    def engine(self) -> int:
        listed = subprocess.run(["pgrep", "-P", str(self.process.pid), "-f", "."], capture_output=True, text=True)
        for pid in map(int, listed.stdout.split()):
            if "EngineCore" in Path(f"/proc/{pid}/comm").read_text() + Path(f"/proc/{pid}/cmdline").read_text():
                return pid
        raise RuntimeError(f"no engine among {listed.stdout.split()}")

    def ended_s(self) -> float | None:
        """Seconds until the process has ended; None if it has not within the longest wait."""
        begun = time.monotonic()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(WAIT_S)
            return round(time.monotonic() - begun, 1)
        return None

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(60)
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


# -- requests ------------------------------------------------------------------------------------------------------


async def ask(
    client: httpx.AsyncClient, said: Counter[str], tokens: int = 30, *, stream: bool = True, leave: int = 0, **body: Any
) -> str:
    """One completion; ``leave``: go away after this many events. Returns its end; what an error says is in ``said``."""
    sent = {"model": "tiny", "prompt": "go on", "max_tokens": tokens, "ignore_eos": True, "stream": stream, **body}
    try:
        async with client.stream("POST", "/v1/completions", json=sent) as answer:
            if answer.status_code != 200:
                error = json.loads(await answer.aread())["error"]
                said[f"{answer.status_code} {error['message'][:80]}"] += 1
                if answer.status_code in (429, 503) and "retry-after" not in answer.headers:
                    said[f"{answer.status_code} without Retry-After"] += 1
                return "refused"
            if not stream:
                return "complete" if json.loads(await answer.aread())["usage"]["completion_tokens"] else "lost"
            events, failed = 0, False
            async for line in answer.aiter_lines():
                if line == "data: [DONE]":
                    return "refused" if failed else "complete"
                if line.startswith("data: "):
                    events += 1
                    event = json.loads(line[6:])
                    if "error" in event:
                        failed = True
                        said[f"event {event['error']['message'][:80]}"] += 1
                    if leave and events >= leave:
                        return "left"
            # Some of vLLM's errors are the last event, with no [DONE] behind them.
            return "refused" if failed else "lost"
    except httpx.ConnectError:
        return "no server"
    except (httpx.HTTPError, ValueError, KeyError) as error:
        said[f"lost: {type(error).__name__} {error}"[:100]] += 1
        return "lost"


@contextlib.asynccontextmanager
async def client_of(server: Server) -> AsyncIterator[httpx.AsyncClient]:
    limits = httpx.Limits(max_connections=2000, max_keepalive_connections=100)
    async with httpx.AsyncClient(base_url=server.url, timeout=WAIT_S, limits=limits) as client:
        yield client


def counted(ends: list[str], said: Counter[str], **more: Any) -> dict[str, Any]:
    """A case's row."""
    count = Counter(ends)
    answered = count["complete"] + count["refused"] + count["left"]
    gone = count["no server"]
    row = {"sent": len(ends) - gone, "complete": count["complete"], "refused": count["refused"], "left": count["left"]}
    row["lost"] = len(ends) - gone - answered
    return {**row, **({"after_its_end": gone} if gone else {}), "errors": dict(said), **more}


async def until(what: Callable[[], bool]) -> bool:
    """Whether ``what`` comes true within the longest wait."""
    end = time.monotonic() + WAIT_S
    while time.monotonic() < end:
        if await asyncio.to_thread(what):
            return True
        await asyncio.sleep(0.5)
    return False


# -- the cases --------------------------------------------------------------------------------------------------------


async def clients(server: Server) -> dict[str, Any]:
    out: dict[str, Any] = {}
    dice = random.Random(0)
    said: Counter[str] = Counter()
    async with client_of(server) as client:
        leaving = [dice.randrange(1, 20) if dice.random() < 0.3 else 0 for _ in range(200)]
        ends = await asyncio.gather(*(ask(client, said, leave=n, tokens=dice.randrange(20, 60)) for n in leaving))
        at_rest = await until(
            lambda: server.metric("ecoserve_running_requests") + server.metric("ecoserve_kv_held_blocks") == 0
        )
        out["30 % disconnects"] = counted(ends, said, kv_free_afterwards=at_rest)

        said = Counter()
        slow = [asyncio.ensure_future(_slow_loris(server.port)) for _ in range(40)]
        await asyncio.sleep(1)
        ends = await asyncio.gather(*(ask(client, said) for _ in range(60)))
        for task in slow:
            task.cancel()
        out["slow loris beside 60 requests"] = counted(ends, said, connections=40)
        out["event log on a full disk"] = {"warnings": server.log.read_text().count("cannot be written any more")}

        dropped = server.metric("ecoserve_client_keys_dropped_total")
        out["20 MB bodies"] = [await _big(client, *case) for case in _big_bodies()]
        out["20 MB bodies"].append({"keys_dropped": server.metric("ecoserve_client_keys_dropped_total") - dropped})
        said = Counter()
        out["requests afterwards"] = counted(await asyncio.gather(*(ask(client, said) for _ in range(20))), said)
    return out


async def _slow_loris(port: int) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        head += b"content-length: 9999\r\n\r\n"
        for byte in head + b" " * 9999:
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0.2 if byte != 32 else 1.0)
    finally:
        writer.close()


def _big_bodies() -> Iterator[tuple[str, bytes, bool]]:
    body = {"model": "tiny", "prompt": "go on", "max_tokens": 4}
    plain, spoofed = json.dumps(body).encode(), json.dumps({**body, "vllm_xargs": KEYS}).encode()
    pad = b" " * (20 * 2**20)
    disguised = spoofed.replace(b"ecoserve_", b"\\u0065coserve_")
    for chunked in (False, True):
        yield "keys", spoofed + pad, chunked
        yield "disguised keys", pad + disguised, chunked
        yield "no keys", plain + pad, chunked


async def _big(client: httpx.AsyncClient, name: str, raw: bytes, chunked: bool) -> dict[str, Any]:
    async def pieces() -> AsyncIterator[bytes]:
        for at in range(0, len(raw), 2**16):
            yield raw[at : at + 2**16]

    content: Any = pieces() if chunked else raw
    answer = await client.post("/v1/completions", content=content, headers={"content-type": "application/json"})
    return {"body": name, "chunked": chunked, "status": answer.status_code}


async def predictor(server: Server) -> dict[str, Any]:
    out: dict[str, Any] = {}
    async with client_of(server) as client:
        for mode in ("slow", "raise", "hang"):
            server.mode.write_text(mode, encoding="utf-8")
            before = {
                o: server.metric("ecoserve_predictions_total", outcome=o) for o in ("timeout", "error", "overload")
            }
            said: Counter[str] = Counter()
            ends = await asyncio.gather(*(ask(client, said, stream=i % 2 == 0) for i in range(60)))
            grown = {o: server.metric("ecoserve_predictions_total", outcome=o) - n for o, n in before.items()}
            out[mode] = counted(ends, said, without_a_prediction={o: n for o, n in grown.items() if n})
    server.process.send_signal(signal.SIGTERM)
    out["hang, then SIGTERM"] = {"ended_after_s": await asyncio.to_thread(server.ended_s)}
    return out


async def drain(server: Server) -> dict[str, Any]:
    said: Counter[str] = Counter()
    late: Counter[str] = Counter()
    health: Counter[str] = Counter()
    async with client_of(server) as client:
        streams = [asyncio.ensure_future(ask(client, said, 30 + 14 * i)) for i in range(64)]
        await until(lambda: server.metric("ecoserve_running_requests") >= 32)
        server.process.send_signal(signal.SIGTERM)
        new: list[str] = []
        twice = False
        while server.process.poll() is None:
            new.append(await ask(client, late, 4, stream=len(new) % 2 == 0))
            with contextlib.suppress(httpx.HTTPError):
                health[str((await client.get("/health")).status_code)] += 1
            if not twice and len(new) > 3:
                server.process.send_signal(signal.SIGTERM)
                twice = True
            await asyncio.sleep(0.1)
        ends = await asyncio.gather(*streams)
    return {
        "64 streams": counted(ends, said, exit_code=server.process.returncode, second_signal=twice),
        "new requests meanwhile": counted(new, late, health=dict(health)),
    }


async def engine(server: Server) -> dict[str, Any]:
    said: Counter[str] = Counter()
    async with client_of(server) as client:
        open_ = [asyncio.ensure_future(ask(client, said, 900, stream=i % 2 == 0)) for i in range(64)]
        await until(lambda: server.metric("ecoserve_running_requests") >= 32)
        os.kill(server.engine(), signal.SIGKILL)
        begun = time.monotonic()
        later: list[str] = []
        while server.process.poll() is None and time.monotonic() - begun < WAIT_S:
            later.append(await ask(client, said, 4))
            await asyncio.sleep(0.2)
        ends = await asyncio.gather(*open_)
    return {
        "64 open": counted(
            ends, said, exit_code=server.process.returncode, ended_after_s=round(time.monotonic() - begun)
        ),
        "new requests meanwhile": counted(later, Counter()),
    }


async def queue(server: Server) -> dict[str, Any]:
    said: Counter[str] = Counter()
    waits: list[float] = []

    async def timed(client: httpx.AsyncClient) -> str:
        begun = time.monotonic()
        end = await ask(client, said, 60)
        if end == "complete":
            waits.append(time.monotonic() - begun)
        return end

    async with client_of(server) as client:
        ends: list[str] = []
        for _ in range(5):
            ends += await asyncio.gather(*(timed(client) for _ in range(400)))
        rate = server.metric("ecoserve_work_rate_tokens_per_second")
    said = Counter({what.partition(";")[0]: n for what, n in said.items()})
    return {"5 bursts of 400": counted(ends, said, tokens_per_s=round(rate), longest_s=round(max(waits), 1))}


async def messages() -> dict[str, Any]:
    from ecoserve.serving.adapter.middleware import PredictionMiddleware
    from ecoserve.serving.adapter.middleware_settings import MiddlewareSettings

    body = json.dumps({"model": "tiny", "messages": [{"role": "user", "content": "x"}] * 440_000}).encode()
    os.environ[MODE] = os.devnull

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()

    async def receive() -> Any:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None: ...

    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions"}
    scope["headers"] = [(b"content-type", b"application/json")]  # type: ignore[assignment]
    middleware = PredictionMiddleware(app, MiddlewareSettings(), StandIn())
    await middleware._start()

    async def ours() -> float:
        begun = time.process_time()
        await middleware(scope, receive, send)
        return time.process_time() - begun

    def loads() -> float:
        begun = time.process_time()
        json.loads(body)
        return time.process_time() - begun

    return {
        "megabytes": round(len(body) / 1e6, 1),
        "ours_cpu_s": round(min([await ours() for _ in range(5)]), 4),
        "json_loads_cpu_s": round(min(loads() for _ in range(5)), 4),
    }


FULL_DISK = ("--additional-config", '{"ecoserve": {"event_log": "/dev/full"}}')
CASES: dict[str, tuple[Callable[[Server], Coroutine[Any, Any, dict[str, Any]]], tuple[str, ...]]] = {
    "clients": (clients, FULL_DISK),
    "predictor": (predictor, ()),
    "drain": (drain, ("--shutdown-timeout", "20")),
    "engine": (engine, ()),
    "queue": (queue, ("--max-queue-s", "0.5")),
}


def run(names: list[str]) -> dict[str, Any]:
    from tiny_model import make_tiny_model

    out: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        model = make_tiny_model(Path(temporary) / "model")
        for name in names:
            print(f"{name} ...", file=sys.stderr, flush=True)
            if name == "messages":
                out[name] = asyncio.run(messages())
                continue
            case, more = CASES[name]
            folder = Path(temporary) / name
            folder.mkdir()
            server = Server(model, folder, *more)
            try:
                out[name] = asyncio.run(case(server))
            finally:
                server.stop()
            print(common.dumps(out[name]), file=sys.stderr, flush=True)
    return out


def main(words: list[str] | None = None) -> int:
    parser = common.arguments_of(__doc__)
    parser.add_argument("--only", help="cases, with commas between them")
    parser.add_argument("--json", type=Path, help="result file; cases that are not run stay as they are")
    asked = parser.parse_args(words)
    names = asked.only.split(",") if asked.only else [*CASES, "messages"]
    found = run(names)
    if asked.json:
        before = common.read(asked.json.resolve()).get("cases", {})
        content = {"command": common.command("faults", "--json", "benchmarks/results/faults.json")}
        common.write(asked.json, {**content, "cases": {**before, **found}})
    lost = [f"{case}: {what}" for case, rows in found.items() for what, row in rows.items() if _lost(row)]
    print(f"lost requests in: {', '.join(lost)}" if lost else "no request was lost")
    return bool(lost)


def _lost(row: Any) -> bool:
    return isinstance(row, dict) and row.get("lost", 0) > 0


if __name__ == "__main__":
    programs = {"--serve": serve, "--stock": serve_stock}
    sys.exit(programs[sys.argv[1]](sys.argv[2:]) if sys.argv[1:2] and sys.argv[1] in programs else main())
