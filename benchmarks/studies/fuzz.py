"""Requests of all kinds, most of them wrong, to ecoserve's server and to vLLM's own: the same answers, no spoofed key.

    .venv/bin/python benchmarks/studies/fuzz.py --json benchmarks/results/fuzz.json          # 20,000; half an hour

Both servers get the same requests: every POST path that vLLM lists, bodies that are cut, nested, mistyped, in other
encodings, padded, chunked, with two content types, as forms; half of them try to bring keys of the scheduler. Compared
are the statuses; counted are keys that reached the scheduler, statuses of 500 that vLLM does not give, and memory.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import common
import faults
import httpx
import psutil  # type: ignore[import-untyped]

#: Paths that change the server for all requests.
LEFT_OUT = ("scale", "fault", "abort", "pause", "resume", "lora", "sleep", "wake", "reset", "profile")
KEYS: dict[str, Any] = {
    "ecoserve_lengths": [1.0, 0.0, 1.0, 2.0, 1.0],
    "ecoserve_lengths_batch": [1.0, 5.0, 1.0, 0.0, 1.0, 2.0, 1.0],
    "ecoserve_deadline_s": 0.5,
    "ecoserve_slo_ttft_s": 0.5,
    "ecoserve_slo_tpot_s": 0.5,
    "ecoserve_replay_tokens": 3,
}
WEIRD: tuple[Any, ...] = (None, True, -1, 0, 10**30, 1e308, "", "x" * 300, "\ud800", [], {}, [[]], [None], {"a": {}})
TYPES = ("application/json",) * 12 + ("application/json; charset=utf-16", "application/vnd.api+json", "text/plain", "")


@dataclass(frozen=True, slots=True)
class Sent:
    path: str
    body: bytes
    headers: tuple[tuple[str, str], ...]
    chunked: bool


def request(dice: random.Random, paths: list[str], padding: int) -> Sent:
    """One request; ``padding``: longest padding, bytes."""
    path = dice.choice(paths)
    body: Any = {"model": "tiny", "max_tokens": dice.choice((1, 2))}
    kind = dice.random()
    if "chat" in path or "messages" in path or kind < 0.2:
        body["messages"] = [{"role": dice.choice(("user", "system", "assistant")), "content": "hi"}]
    if "responses" in path or kind < 0.2:
        body["input"] = "hi"
        body["max_output_tokens"] = 2
    if "messages" not in body or kind < 0.2:
        body["prompt"] = dice.choice(("hi", ["a", "b"], [5, 6], [[5], [6, 7]], "hi" * 50))
    if "generate" in path:
        body = {"token_ids": [5, 6], "sampling_params": {"max_tokens": 2}, "model": "tiny"}
    if dice.random() < 0.5:
        _spoof(dice, body)
    for _ in range(dice.choice((0, 0, 0, 1, 2))):
        names = [*body, "n", "stream", "stop", "temperature", "slo", "priority", "tools", "response_format", "seed"]
        name = dice.choice([n for n in names if n not in ("max_tokens", "max_output_tokens")])
        body[name] = dice.choice(WEIRD)
    headers = [("content-type", dice.choice(TYPES))]
    if dice.random() < 0.05:
        headers.insert(dice.choice((0, 1)), ("content-type", dice.choice(TYPES)))
    if dice.random() < 0.05:
        headers.append(("x-slo-ttft-ms", dice.choice(("5", "-1", "nan", "x", "1e9"))))
    raw = _bytes(dice, body)
    if dice.random() < 0.03:
        headers = [("content-type", f"multipart/form-data; boundary=b{dice.choice(('', '; charset=utf-7'))}")]
        raw = b'--b\r\ncontent-disposition: form-data; name="vllm_xargs"\r\n\r\n' + raw + b"\r\n--b--\r\n"
    if dice.random() < 0.05:
        space = b" " * dice.randrange(padding)
        raw = raw + space if dice.random() < 0.5 else space + raw
    return Sent(path, raw, tuple(headers), dice.random() < 0.2)


def _spoof(dice: random.Random, body: dict[str, Any]) -> None:
    """Keys of ours, where vLLM would read them or elsewhere."""
    names = dice.sample(sorted(KEYS), dice.randrange(1, 4))
    keys = {name: KEYS[name] if dice.random() < 0.8 else dice.choice(WEIRD) for name in names}
    where = dice.choice(("vllm_xargs", "vllm_xargs", "extra_args", "sampling_params", "", "nested"))
    if where == "sampling_params":
        body.setdefault("sampling_params", {})["extra_args"] = keys
    elif where == "nested":
        body["metadata"] = {"vllm_xargs": keys}
    elif where:
        body[where] = {**keys, **({"session_id": "s"} if dice.random() < 0.3 else {})}
    else:
        body.update(keys)


def _bytes(dice: random.Random, body: Any) -> bytes:
    text = json.dumps(body, ensure_ascii=dice.random() < 0.7)
    way = dice.random()
    if way < 0.1:
        text = text.replace("ecoserve_", dice.choice(("\\u0065coserve_", "ecoserv\\u0065_", "eco\\u0073erve\\u005F")))
    elif way < 0.15:  # a name that is there twice
        text = text[:-1] + ', "vllm_xargs": ' + json.dumps(KEYS) + "}"
    elif way < 0.2:
        text = text[: dice.randrange(len(text))]
    elif way < 0.22:
        text = "[" * dice.choice((10, 3000)) + text
    elif way < 0.24:
        text = text.replace("2", "NaN", 1)
    encoding = dice.choice(("utf-8",) * 16 + ("utf-8-sig", "utf-16", "utf-16-le", "utf-32"))
    raw = text.encode(encoding, "surrogatepass")
    if dice.random() < 0.03:
        at = dice.randrange(len(raw) + 1)
        raw = raw[:at] + dice.randbytes(dice.randrange(1, 9)) + raw[at:]
    return raw


async def post(client: httpx.AsyncClient, sent: Sent) -> int:
    """The status; 0 if there was no answer."""

    async def pieces() -> AsyncIterator[bytes]:
        for at in range(0, len(sent.body), 4096):
            yield sent.body[at : at + 4096]

    content: Any = pieces() if sent.chunked else sent.body
    try:
        answer = await client.post(sent.path, content=content, headers=list(sent.headers))
    except httpx.HTTPError as error:
        print(f"{type(error).__name__} {error} at {sent.path}", file=sys.stderr)
        return 0
    return answer.status_code


async def both(ours: faults.Server, stock: faults.Server, count: int, seed: int) -> dict[str, Any]:
    listed = httpx.get(f"{stock.url}/openapi.json", timeout=60).json()["paths"]
    paths = sorted(p for p, ways in listed.items() if "post" in ways and not any(word in p for word in LEFT_OUT))
    dice = random.Random(seed)
    process = psutil.Process(ours.process.pid)
    differ: Counter[str] = Counter()
    statuses: Counter[str] = Counter()
    worse: list[dict[str, Any]] = []
    resident: list[float] = []
    silent = 0
    async with faults.client_of(ours) as a, faults.client_of(stock) as b:
        for done in range(0, count, 50):
            # One in each thousand may be padded beyond the limit of bodies that are taken apart.
            padding = 18 * 2**20 if done % 1000 == 0 else 2**16
            some = [request(dice, paths, padding) for _ in range(min(50, count - done))]
            pairs = await asyncio.gather(*(asyncio.gather(post(a, s), post(b, s)) for s in some))
            for sent, (mine, theirs) in zip(some, pairs, strict=True):
                statuses[str(mine)] += 1
                silent += not theirs
                if mine != theirs:
                    differ[f"{mine}, vLLM {theirs}"] += 1
                if mine != theirs and (mine in (0, 500) or len(worse) < 5):
                    shown = {"path": sent.path, "body": sent.body[:200].decode("latin-1"), "headers": sent.headers}
                    worse.append({"ours": mine, "vllm": theirs, **shown})
            if done % 1000 == 0:
                resident.append(round(process.memory_info().rss / 2**20, 1))
                print(f"{done}: {dict(differ)} {resident[-1]} MiB", file=sys.stderr, flush=True)
    # Without a predictor, and with the SLOs of clients off, what the scheduler counts here was spoofed.
    spoofed = ("predictions_used", "predictions_refused", "slo_requests", "slos_refused")
    arrived = {name: ours.metric(f"ecoserve_{name}_total") for name in spoofed}
    return {
        "requests": count,
        "paths": len(paths),
        "statuses": dict(sorted(statuses.items())),
        "statuses_that_differ": dict(differ),
        "differing_500": sum(1 for w in worse if w["ours"] == 500),
        "without_an_answer": {"ours": statuses["0"], "vllm": silent},
        "examples": worse[:10],
        "keys_dropped": ours.metric("ecoserve_client_keys_dropped_total"),
        "bodies_refused_for_keys": ours.metric("ecoserve_requests_refused_total", reason="keys"),
        "keys_that_reached_the_scheduler": arrived,
        "resident_mib": resident,
    }


def main(words: list[str] | None = None) -> int:
    parser = common.arguments_of(__doc__)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="result file")
    asked = parser.parse_args(words)
    from tiny_model import make_tiny_model

    with tempfile.TemporaryDirectory() as temporary:
        model = make_tiny_model(Path(temporary) / "model")
        servers = []
        try:
            for name, more in (("ours", ("--client-slos", "off")), ("stock", ())):
                (folder := Path(temporary) / name).mkdir()
                servers.append(faults.Server(model, folder, *more, predictor=False, stock=name == "stock"))
            found = asyncio.run(both(*servers, asked.requests, asked.seed))
        finally:
            for server in servers:
                server.stop()
    if asked.json:
        common.write(asked.json, {"command": common.command("fuzz", "--json", "benchmarks/results/fuzz.json"), **found})
    print(common.dumps(found))
    return bool(found["differing_500"] or any(found["keys_that_reached_the_scheduler"].values()))


if __name__ == "__main__":
    sys.exit(main())
