"""What a collection survives: vLLM's server with the tiny model, the collector killed several times, the server once.

    .venv/bin/python benchmarks/studies/collect_shown.py -o results/collect_shown             # 500 prompts x 4 samples
    .venv/bin/python benchmarks/studies/collect_shown.py -o results/small --prompts 40 --samples 3 --kills 2

The collector is killed (SIGKILL) at random numbers of answers and started again with the same command; in its last run
but one the server is killed too, and started again while the collector waits. A middleware in the server writes down
each request as it comes and each answer as it leaves, so that every row of the trace can be held against the server's
own count. It ends in one JSON line (and ``shown.json``); anything lost, doubled or different is an error.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import common

#: EOS of the tiny model is made likelier, so that answers end by themselves: about 30 tokens, one in ten cut off.
SAMPLING = {"temperature": 1.0, "max_tokens": 64, "body": {"logit_bias": {"2": 5}}}
LOG_VARIABLE = "COLLECT_SHOWN_LOG"
START_S = 400.0


class Recorder:
    """ASGI middleware of the server: one line for each chat request that comes, one for each answer that leaves."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._file = os.open(os.environ[LOG_VARIABLE], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass everything on, and remember what is said."""
        if scope["type"] != "http" or scope["path"] != "/v1/chat/completions":
            await self._app(scope, receive, send)
            return
        asked, answered = bytearray(), bytearray()
        what: dict[str, Any] = {}

        async def hear() -> Any:
            message = await receive()
            if message["type"] == "http.request":
                asked.extend(message.get("body", b""))
                if not message.get("more_body"):
                    body = json.loads(asked)
                    what.update(prompt=body["messages"][-1]["content"], seed=body["seed"])
                    self._note("asked", what)
            return message

        async def say(message: Any) -> None:
            if message["type"] == "http.response.start":
                what["status"] = message["status"]
            else:
                answered.extend(message.get("body", b""))
                if not message.get("more_body"):
                    with contextlib.suppress(ValueError, LookupError):
                        body = json.loads(answered)
                        what["tokens"] = body["usage"]["completion_tokens"]
                        what["reason"] = body["choices"][0]["finish_reason"]
                    self._note("answered", what)
            await send(message)

        await self._app(scope, hear, say)

    def _note(self, event: str, what: Mapping[str, Any]) -> None:
        os.write(self._file, json.dumps({"event": event, **what}).encode() + b"\n")


class Server:
    """``ecoserve serve`` with the recorder, as a process that can be killed and started again on the same port."""

    def __init__(self, model: Path, folder: Path) -> None:
        self._model = model
        self._folder = folder
        self.record = folder / "server_record.jsonl"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}"
        self.starts = 0
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; it answers some time later (:meth:`wait`)."""
        self.starts += 1
        flags = "--policy vllm --enforce-eager --dtype float32 --max-model-len 1024 --max-num-seqs 64 --block-size 32"
        flags += " --distributed-executor-backend uni --served-model-name tiny --middleware collect_shown.Recorder"
        command = [sys.executable, "-m", "ecoserve.cli.main", "serve", str(self._model), *flags.split()]
        env = common.server_environment() | {LOG_VARIABLE: str(self.record)}
        with (self._folder / f"server{self.starts}.log").open("wb") as log:
            self.process = subprocess.Popen(
                [*command, "--port", str(self.port)], stdout=log, stderr=log, env=env, start_new_session=True
            )

    def answers(self) -> int:
        """How many requests it has answered."""
        return self.record.read_bytes().count(b'"event": "answered"') if self.record.exists() else 0

    def wait(self) -> None:
        """Wait until it answers; RuntimeError if it ends, or takes far too long."""
        import httpx

        deadline = time.monotonic() + START_S
        assert self.process is not None
        with httpx.Client(timeout=5) as client:
            while time.monotonic() < deadline and self.process.poll() is None:
                with contextlib.suppress(httpx.HTTPError):
                    if client.get(f"{self.url}/health").status_code == 200:
                        return
                time.sleep(0.5)
        log = (self._folder / f"server{self.starts}.log").read_text(errors="replace")
        raise RuntimeError(f"no server:\n{log[-3000:]}")

    def kill(self) -> None:
        """SIGKILL for it and its engine."""
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        """As an operator does; what does not end is killed."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(60)
            self.kill()


@dataclass
class Plan:
    """What to show.

    Attributes:
        prompts, samples: of the collection.
        kills: how often the collector is killed.
        server_too: whether the server is killed once.
        concurrency: requests open at once.
        seed: of where the kills fall.
        latest: share of the answers after which nothing is killed any more. Of few answers the rest must be enough
            for a kill to come before the end on a busy machine.
    """

    prompts: int = 500
    samples: int = 4
    kills: int = 3
    server_too: bool = True
    concurrency: int = 32
    seed: int = 0
    latest: float = 0.9

    @property
    def total(self) -> int:
        """Answers wanted."""
        return self.prompts * self.samples


def show(
    plan: Plan,
    model: Path,
    folder: Path,
    say: Callable[[str], None] = lambda line: None,
    server: Server | None = None,
) -> dict[str, Any]:
    """Collect, kill, go on, compare; returns the figures. ``server``: another than one started for this.

    Raises:
        RuntimeError: if anything is lost, doubled or different.
    """
    folder.mkdir(parents=True, exist_ok=True)
    out = folder / "collected.jsonl"
    rng = random.Random(plan.seed)
    low, high = int(0.05 * plan.total), int(plan.latest * plan.total)
    marks = sorted(rng.sample(range(low, high), plan.kills + plan.server_too))
    # The server goes before the last kill, so that one run of the collector goes through it.
    server_at = marks.pop(-2) if plan.server_too else None
    server = server or Server(model, folder)
    began = time.monotonic()
    journal = out.with_name(f"{out.name}.journal")
    killed: list[dict[str, int]] = []
    server_killed: dict[str, float] = {}
    try:
        server.start()
        server.wait()
        ready = time.monotonic()
        for mark in marks:
            run = _collector(plan, server.url, out, folder)
            if server_at is not None and mark == marks[-1]:
                _wait(lambda: server.answers() >= server_at, run)
                server.kill()
                at, gone = server.answers(), time.monotonic()
                server.start()
                server.wait()
                server_killed = {"answers": at, "away_s": round(time.monotonic() - gone, 1)}
                say(f"server killed at {at} answers, back after {server_killed['away_s']} s")
            _wait(lambda mark=mark: server.answers() >= mark, run)  # type: ignore[misc]
            run.kill()
            run.wait()
            killed.append({"planned_at": mark, "answers_in_journal": _in_journal(journal)})
            say(f"collector killed at {killed[-1]['answers_in_journal']} of {plan.total} answers")
        last = _collector(plan, server.url, out, folder)
        code = last.wait()
        ended = time.monotonic()
    finally:
        server.stop()
    if code != 0:
        raise RuntimeError(f"the last run ended with {code}: {(folder / 'collector.log').read_text()[-1000:]}")
    figures: dict[str, Any] = {
        "prompts": plan.prompts,
        "samples": plan.samples,
        "concurrency": plan.concurrency,
        "seed": plan.seed,
        "collector_killed": killed,
        "server_killed": server_killed or None,
        "collecting_s": round(ended - ready, 1),
        "server_start_s": round(ready - began, 1),
        **compare(plan, out, server.record),
    }
    common.write(folder / "shown.json", figures)
    wrong = {k: v for k, v in figures.items() if k in ("doubled", "lost", "foreign", "different") and v}
    if wrong or figures["rows"] != plan.total or journal.exists():
        raise RuntimeError(f"not as it should be: {wrong or figures}")
    return figures


def compare(plan: Plan, out: Path, record: Path) -> dict[str, Any]:
    """The trace against what the server wrote down.

    Returns:
        ``rows``; ``doubled``, ``lost``, ``foreign`` (rows that were never requested), ``different`` (rows whose length
        or finish reason the server never gave for that sample); what the server saw.
    """
    from ecoserve.data import load_trace
    from ecoserve.serving.collect.prompts import context_digest
    from ecoserve.serving.collect.settings import sample_seed

    trace = load_trace(out)
    events = [json.loads(line) for line in record.read_text().splitlines()]
    asked = Counter((e["prompt"], e["seed"]) for e in events if e["event"] == "asked")
    answers: dict[tuple[str, int], list[tuple[int, str]]] = {}
    for event in events:
        if event["event"] == "answered" and event.get("status") == 200:
            answers.setdefault((event["prompt"], event["seed"]), []).append((event["tokens"], event["reason"]))
    rows = Counter(
        (r.prompt, sample_seed(0, context_digest(r), r.sample), r.response_tokens, r.finish_reason)
        for r in trace.records
    )
    pairs = Counter((r.conversation, r.turn, r.prompt, r.sample) for r in trace.records)
    keys = {(prompt, seed) for prompt, seed, _, _ in rows}
    siblings = {(r.prompt, r.sample): r.response_tokens for r in trace.records}
    return {
        "rows": len(trace),
        "dropped_on_loading": sum(trace.report.dropped.values()),
        "doubled": sum(n - 1 for n in pairs.values()),
        "lost": plan.total - len(pairs),
        "foreign": len(keys - asked.keys()),
        "different": sum(
            (tokens, reason) not in answers.get((prompt, seed), []) for prompt, seed, tokens, reason in rows
        )
        + sum(
            sorted(r.sample_tokens) != sorted(siblings[r.prompt, s] or 0 for s in range(plan.samples) if s != r.sample)
            for r in trace.records
        ),
        "tokens": sum(r.response_tokens or 0 for r in trace.records),
        "lengths_from_to": [
            min(r.response_tokens or 0 for r in trace.records),
            max(r.response_tokens or 0 for r in trace.records),
        ],
        "finish_reasons": dict(Counter(r.finish_reason for r in trace.records)),
        "censored": sum(r.censored for r in trace.records),
        "server_requests": sum(asked.values()),
        "server_requests_repeated": sum(asked.values()) - len(asked),
        "server_answers": sum(len(a) for a in answers.values()),
        "samples_answered_more_than_once": sum(len(a) > 1 for a in answers.values()),
        "of_these_with_another_length": sum(len(set(a)) > 1 for a in answers.values()),
    }


def _collector(plan: Plan, url: str, out: Path, folder: Path) -> subprocess.Popen[bytes]:
    values = {"url": url, "samples": plan.samples, "limit": plan.prompts, "concurrency": plan.concurrency, **SAMPLING}
    # JSON is how the options spell numbers and bodies.
    spelled = {name: value if isinstance(value, str) else json.dumps(value) for name, value in values.items()}
    options = [text for name, value in spelled.items() for text in (f"--{name.replace('_', '-')}", value)]
    command = [sys.executable, "-m", "ecoserve.cli.main", "profile", "synthetic:4000", "--collect", str(out), *options]
    with (folder / "collector.log").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env=common.server_environment())


def _wait(ready: Callable[[], bool], run: subprocess.Popen[bytes]) -> None:
    while not ready():
        if run.poll() is not None:
            raise RuntimeError(f"the collector ended before its time ({run.returncode}); collector.log says more")
        time.sleep(0.02)


def _in_journal(path: Path) -> int:
    with contextlib.closing(sqlite3.connect(path)) as db:
        return int(db.execute("SELECT count(*) FROM outcomes WHERE state = 'answered'").fetchone()[0])


def main() -> int:
    """The command line."""
    parser = common.arguments_of(__doc__)
    parser.add_argument("-o", "--output", type=Path, default=Path("results/collect_shown"), help="a folder, made anew")
    parser.add_argument("--prompts", type=int, default=Plan.prompts)
    parser.add_argument("--samples", type=int, default=Plan.samples)
    parser.add_argument("--kills", type=int, default=Plan.kills)
    parser.add_argument("--concurrency", type=int, default=Plan.concurrency)
    parser.add_argument("--seed", type=int, default=Plan.seed)
    a = parser.parse_args()
    if a.output.exists() and any(a.output.iterdir()):
        parser.error(f"{a.output} is not empty")
    from tiny_model import make_tiny_model

    plan = Plan(a.prompts, a.samples, a.kills, concurrency=a.concurrency, seed=a.seed)
    model = make_tiny_model(a.output / "tiny-llama")
    print(json.dumps(show(plan, model, a.output, lambda line: print(line, file=sys.stderr, flush=True))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
