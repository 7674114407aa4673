"""One run against a server with an OpenAI-compatible API: the load of :mod:`~ecoserve.serving.workload` over HTTP.

The loop is open: a request's latency counts from its arrival in the load. Responses are streamed; lengths are the
server's own count. A request that fails is a row with an error, and the run goes on.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, Final

import httpx
import numpy as np
from pydantic import Field

from ecoserve.data.fields import first_of
from ecoserve.data.known_fields import usage_of
from ecoserve.errors import ConfigError
from ecoserve.serving.collect.endpoint import COMPLETE, error_message, short
from ecoserve.serving.core import keys
from ecoserve.serving.core.counters import Counters
from ecoserve.serving.core.policies import DEFAULT, ORDER
from ecoserve.serving.length_source import LengthSource
from ecoserve.serving.runs import EngineTotals, RequestRow, RunResult
from ecoserve.serving.workload import PLAIN_IDS, LoadRequest, LoadSettings

Progress = Callable[[int, int], None]

#: What ``lengths`` says where the server itself predicts.
SERVER: Final = "server"
#: Fields of a chunk that hold what was generated.
_GENERATED: Final = (
    *("content", "text", "reasoning", "reasoning_content", "reasoning_details", "tool_calls", "function_call"),
    *("refusal", "audio", "token_ids"),
)
#: Series of the server that have a label, and the beginning of the name that the label completes: a field of
#: ``Counters``, or the level.
_LEVEL: Final = "level_"
_LABELLED: Final = {
    "ecoserve_underprediction_actions_total": ("action", "underprediction_"),
    "ecoserve_level_info": ("level", _LEVEL),
}


class ClientRunSettings(LoadSettings):
    url: str = Field(description="base URL of the server, without /v1")
    model: str | None = Field(None, description="served model's name; by default the first that the server lists")
    policy: str | None = Field(None, description="name of the server's policy; by default from its metrics")
    lengths: str = Field(
        SERVER, description="server: as the server predicts; else a source of lengths that clients send"
    )
    replay: bool = Field(True, description="force the recorded lengths on the responses; the server must allow it")
    max_prompt_tokens: int = Field(2**20, ge=1, description="rows with longer prompts are skipped")
    concurrency: int = Field(512, ge=1, description="connections at most")
    timeout_s: float = Field(600.0, gt=0, description="seconds to wait for one response")
    temperature: float = Field(0.0, ge=0, le=2, description="sampling temperature")
    api_key: str | None = Field(None, description="bearer token")


def run_client(settings: ClientRunSettings, progress: Progress | None = None) -> RunResult:
    """Run one load against a server.

    Raises InputError for a trace or setting that cannot be used, a server that is not there, or one that does not let
    clients do what the settings ask for.
    """
    if not settings.url.startswith(("http://", "https://")):
        raise ConfigError("a URL starts with http:// or https://", where=settings.url)
    by_server = LengthSource("none") if settings.lengths == SERVER else None
    load = settings.load(settings.max_prompt_tokens, by_server)
    return asyncio.run(_Client(settings, load, progress).run())


class _Client:
    def __init__(self, settings: ClientRunSettings, load: Sequence[LoadRequest], progress: Progress | None) -> None:
        self.settings = settings
        self.load = load
        self.progress = progress or (lambda done, total: None)
        self.rng = np.random.default_rng(settings.seed)
        self.begin = 0.0
        self.ended = {r.name: asyncio.Event() for r in load}
        self.model = settings.model or ""

    async def run(self) -> RunResult:
        s = self.settings
        limits = httpx.Limits(max_connections=s.concurrency, max_keepalive_connections=s.concurrency)
        # Waiting for a free connection is not bounded: the load is open, and such a wait is part of the latency.
        timeout = httpx.Timeout(None, connect=30.0)
        headers = {"authorization": f"Bearer {s.api_key}"} if s.api_key else {}
        base = s.url.rstrip("/").removesuffix("/v1")
        async with httpx.AsyncClient(base_url=base, limits=limits, timeout=timeout, headers=headers) as client:
            await self._check(client)
            before = await _metrics(client)
            bodies = [self._body(r) for r in self.load]
            self.begin = time.monotonic()
            done = 0

            async def one(request: LoadRequest, body: dict[str, Any]) -> RequestRow:
                nonlocal done
                row = await self._one(client, request, body)
                self.ended[request.name].set()
                done += 1
                self.progress(done, len(self.load))
                return row

            rows = await asyncio.gather(*(one(r, b) for r, b in zip(self.load, bodies, strict=True)))
            after = await _metrics(client)
        forced = {r.name: r.response_tokens for r in self.load}
        other = sum(row.status == "completed" and row.output_tokens != forced[row.request_id] for row in rows)
        return s.result(
            list(rows),
            _totals(before, after),
            {"engine": "url", "arrivals": s.arrivals, **({"other_length": other} if s.replay else {})},
            policy=_policy(after),
        )

    async def _check(self, client: httpx.AsyncClient) -> None:
        where = self.settings.url
        answer = await self._asked(client, "GET", "/v1/models")
        if answer.status_code in (401, 403):
            raise ConfigError("the server wants another API key", where=where, fix="give --api-key, or VLLM_API_KEY")
        try:
            names = [m["id"] for m in answer.json()["data"]]
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError("is no OpenAI-compatible server", where=where) from error
        if not self.model:
            if not names:
                raise ConfigError("the server serves no model", where=where)
            self.model = names[0]
        elif self.model not in names:
            served = ", ".join(names)
            raise ConfigError(f"the server does not serve {self.model}", where=where, fix=f"it serves {served}")
        if self.settings.replay:
            probe = {"model": self.model, "prompt": "hello", "max_tokens": 8, "vllm_xargs": {keys.REPLAY_TOKENS: 3}}
            answer = await self._asked(client, "POST", "/v1/completions", json=probe)
            count = answer.json().get("usage", {}).get("completion_tokens") if answer.status_code == 200 else None
            if count != 3:
                raise ConfigError(
                    "the server does not let clients force recorded lengths",
                    where=where,
                    fix="start it with ecoserve serve --replay, or give --no-replay",
                )

    async def _asked(self, client: httpx.AsyncClient, method: str, path: str, **more: Any) -> httpx.Response:
        try:
            return await client.request(method, path, **more)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ConfigError(f"no server answers ({short(error)})", where=self.settings.url) from error

    def _body(self, request: LoadRequest) -> dict[str, Any]:
        s = self.settings
        body: dict[str, Any] = {
            "model": self.model,
            "max_tokens": s.max_tokens,
            "temperature": s.temperature,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if request.messages:
            body["messages"] = request.messages
        else:
            body["prompt"] = [int(i) for i in self.rng.integers(*PLAIN_IDS, request.prompt_tokens)]
        extra = request.extra_args(replay=s.replay)
        if extra:
            body["vllm_xargs"] = extra
        return body

    async def _one(self, client: httpx.AsyncClient, request: LoadRequest, body: dict[str, Any]) -> RequestRow:
        row = request.row()
        if request.after is None:
            await asyncio.sleep(max(0.0, self.begin + request.arrival_s - time.monotonic()))
        else:
            await self.ended[request.after].wait()
            await asyncio.sleep(request.think_s)
            row.arrival_s = time.monotonic() - self.begin
        path = "/v1/chat/completions" if "messages" in body else "/v1/completions"
        try:
            async with asyncio.timeout(self.settings.timeout_s), client.stream("POST", path, json=body) as answer:
                if answer.status_code != 200:
                    text = error_message(await answer.aread())
                    row.status = "rejected" if answer.status_code == 400 else "failed"
                    row.error = f"HTTP {answer.status_code}: {text}"
                    return row
                await self._follow(answer, row)
        except TimeoutError:
            row.status, row.error = "failed", f"no end after {self.settings.timeout_s:g} s"
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
            row.status, row.error = "failed", short(error)
        return row

    async def _follow(self, answer: httpx.Response, row: RequestRow) -> None:
        ended = counted = False
        thought = said = 0
        async for event in _events(answer):
            now = time.monotonic() - self.begin
            if "error" in event:
                row.status, row.error = "failed", error_message(json.dumps(event).encode())
                return
            if event.get("choices"):
                choice = event["choices"][0]
                if (reason := choice.get("finish_reason")) is not None:
                    row.finish_s = now
                    ended = reason in COMPLETE or reason == "length"
                delta = choice.get("delta", choice)
                thought += len(first_of(delta, "reasoning", "reasoning_content") or "")
                said += len(first_of(delta, "content", "text") or "")
                if row.first_token_s is None and (ended or _has_token(delta)):
                    row.first_token_s = now
            if event.get("usage"):
                counted = True
                row.output_tokens = int(event["usage"]["completion_tokens"])
                row.prompt_tokens = int(event["usage"]["prompt_tokens"])
                row.thinking_tokens = usage_of(event).thinking
        if thought and not row.thinking_tokens:
            row.thinking_tokens = round(row.output_tokens * thought / (thought + said))
        if not ended:
            row.status, row.error = "failed", "the stream broke off"
        elif not row.output_tokens:
            why = "the response has no tokens" if counted else "the server sent no usage, so its length is not known"
            row.status, row.error = "failed", why


def _has_token(delta: Mapping[str, Any]) -> bool:
    """Whether a chunk holds a token. One with a role and no text comes before the first; a token may have no text."""
    found = [delta[name] for name in _GENERATED if delta.get(name) is not None]
    return bool(found) and ("role" not in delta or any(found))


async def _events(answer: httpx.Response) -> AsyncIterator[Mapping[str, Any]]:
    async for line in answer.aiter_lines():
        if not line.startswith("data:"):
            continue
        data = line[5:].strip()
        if data == "[DONE]":
            return
        event = json.loads(data)
        if not isinstance(event, Mapping):
            raise ValueError("an event is no object")
        yield event


async def _metrics(client: httpx.AsyncClient) -> dict[str, float]:
    """The server's counters by the names of :class:`Counters`, other labels summed; empty if it shows none."""
    from prometheus_client.parser import text_string_to_metric_families

    try:
        answer = await client.get("/metrics", follow_redirects=True)
        if answer.status_code != 200:
            return {}
        out: dict[str, float] = {}
        for family in text_string_to_metric_families(answer.text):
            for sample in family.samples:
                name = sample.name
                if name in _LABELLED:
                    label, beginning = _LABELLED[name]
                    name = beginning + sample.labels.get(label, "")
                elif name.endswith("_total") and name.startswith(("ecoserve_", "vllm:num_preemptions")):
                    name = name.removeprefix("ecoserve_").removesuffix("_total")
                else:
                    continue
                out[name] = out.get(name, 0.0) + sample.value
    except (httpx.HTTPError, ValueError):
        return {}
    return out


def _policy(counts: Mapping[str, float]) -> str:
    """The server's policy, as far as its metrics show it."""
    if "steps" in counts:
        return DEFAULT
    return ORDER if _LEVEL + ORDER in counts else "vllm"


def _totals(before: Mapping[str, float], after: Mapping[str, float]) -> EngineTotals:
    grown = {name: int(value - before.get(name, 0.0)) for name, value in after.items()}
    totals = EngineTotals.of([Counters(**{n: grown.get(n, 0) for n in Counters.__dataclass_fields__})])
    totals.preemptions = grown.get("vllm:num_preemptions", 0)
    if "steps" not in grown:
        totals.mispredictions = {}
    return totals
