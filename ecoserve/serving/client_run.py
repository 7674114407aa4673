"""One run against a server with an OpenAI-compatible API: the same loads as in this process, over HTTP.

Rule: an open loop. A request's latency counts from the moment the load says, whether or not a connection was free
then, so that a slow server cannot make its own load lighter. Responses are streamed; the first token is the first
event with a choice, lengths are the server's own count. What fails is a row of its own, never an end of the run.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, Final

import httpx
import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from ecoserve.errors import ConfigError
from ecoserve.serving.core import keys
from ecoserve.serving.length_source import LengthSource
from ecoserve.serving.runs import MISPREDICTIONS, EngineTotals, RequestRow, RunResult
from ecoserve.serving.workload import LoadRequest, make_load, trace_for

Progress = Callable[[int, int], None]

#: What ``lengths`` says where the server itself predicts.
SERVER: Final = "server"
#: Token ids that every vocabulary has and that mean nothing special, for prompts of which only the length is known.
_PLAIN_IDS: Final = (300, 1000)


class ClientRunSettings(BaseModel):
    """What to run against a URL."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str = Field(description="base URL of the server, without /v1")
    model: str | None = Field(None, description="served model's name; by default the first that the server lists")
    trace: str = Field(description="file, data set on the hub, or synthetic[:N]")
    length_field: str | None = Field(None, description="field with the response lengths in tokens, as lengths[3]")
    tokenizer: str | None = Field(None, description="tokenizer that counts tokens where the trace does not")
    split: str | None = Field("dev", description="rows of this split only, where the trace has splits")
    policy: str | None = Field(None, description="name of the server's policy; by default from its metrics")
    lengths: str = Field(
        SERVER, description="server: as the server predicts; else a source of lengths that clients send"
    )
    replay: bool = Field(True, description="force the recorded lengths on the responses; the server must allow it")
    rate_rps: float | None = Field(
        None, gt=0, description="requests per second, Poisson; inf: all at once; None: as recorded"
    )
    seed: int = Field(0, ge=0, description="seed of everything random")
    requests: int = Field(200, ge=1, description="requests of a run")
    max_tokens: int = Field(512, ge=1, description="max_tokens of every request")
    max_prompt_tokens: int = Field(2**20, ge=1, description="rows with longer prompts are skipped")
    concurrency: int = Field(512, ge=1, description="connections at most")
    timeout_s: float = Field(600.0, gt=0, description="seconds to wait for one response")
    temperature: float = Field(0.0, ge=0, le=2, description="sampling temperature")
    api_key: str | None = Field(None, description="bearer token")


def run_client(settings: ClientRunSettings, progress: Progress | None = None) -> RunResult:
    """Run one load against a server.

    Raises:
        InputError: for a trace or setting that cannot be used, a server that is not there, or one that does not let
            clients do what the settings ask for.
    """
    told = LengthSource("none") if settings.lengths == SERVER else LengthSource.parse(settings.lengths)
    if not settings.url.startswith(("http://", "https://")):
        raise ConfigError("a URL starts with http:// or https://", where=settings.url)
    trace = trace_for(settings.trace, settings.length_field, settings.tokenizer, settings.split)
    load = make_load(
        trace,
        requests=settings.requests,
        rate_rps=settings.rate_rps,
        seed=settings.seed,
        lengths=told,
        max_tokens=settings.max_tokens,
        max_prompt_tokens=settings.max_prompt_tokens,
    )
    return asyncio.run(_Client(settings, load, progress).run(trace.length_source))


class _Client:
    def __init__(self, settings: ClientRunSettings, load: Sequence[LoadRequest], progress: Progress | None) -> None:
        self.settings = settings
        self.load = load
        self.progress = progress or (lambda done, total: None)
        self.rng = np.random.default_rng(settings.seed)
        self.begin = 0.0
        self.model = settings.model or ""

    async def run(self, length_source: str) -> RunResult:
        s = self.settings
        limits = httpx.Limits(max_connections=s.concurrency, max_keepalive_connections=s.concurrency)
        # Waiting for a free connection is not bounded: the load is open, and such a wait is part of the latency.
        timeout = httpx.Timeout(None, connect=30.0)
        headers = {"authorization": f"Bearer {s.api_key}"} if s.api_key else {}
        base = s.url.rstrip("/").removesuffix("/v1")
        async with httpx.AsyncClient(base_url=base, limits=limits, timeout=timeout, headers=headers) as client:
            await self._meet(client)
            before = await _metrics(client)
            bodies = [self._body(r) for r in self.load]
            self.begin = time.monotonic()
            done = 0

            async def one(request: LoadRequest, body: dict[str, Any]) -> RequestRow:
                nonlocal done
                row = await self._one(client, request, body)
                done += 1
                self.progress(done, len(self.load))
                return row

            rows = await asyncio.gather(*(one(r, b) for r, b in zip(self.load, bodies, strict=True)))
            after = await _metrics(client)
        forced = {r.name: r.response_tokens for r in self.load}
        other = sum(row.status == "completed" and row.output_tokens != forced[row.request_id] for row in rows)
        return RunResult(
            policy=s.policy or ("ecoserve" if "ecoserve_steps_total" in after else "vllm"),
            lengths=s.lengths,
            rate_rps=s.rate_rps if s.rate_rps is None or math.isfinite(s.rate_rps) else None,
            seed=s.seed,
            rows=list(rows),
            totals=_totals(before, after),
            labels={
                "engine": "url",
                "arrivals": "recorded" if s.rate_rps is None else "at once" if math.isinf(s.rate_rps) else "poisson",
                "length_source": length_source,
                **({"other_length": other} if s.replay else {}),
            },
        )

    async def _meet(self, client: httpx.AsyncClient) -> None:
        """See that the server is there, lets us in, and does what is asked for.

        Raises:
            ConfigError: if not.
        """
        where = self.settings.url
        try:
            answer = await client.get("/v1/models")
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ConfigError(f"no server answers ({_short(error)})", where=where) from error
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
            answer = await client.post("/v1/completions", json=probe)
            count = answer.json().get("usage", {}).get("completion_tokens") if answer.status_code == 200 else None
            if count != 3:
                raise ConfigError(
                    "the server does not let clients force recorded lengths",
                    where=where,
                    fix="start it with ecoserve serve --replay, or give --no-replay",
                )

    def _body(self, request: LoadRequest) -> dict[str, Any]:
        s = self.settings
        body: dict[str, Any] = {
            "model": self.model,
            "max_tokens": s.max_tokens,
            "temperature": s.temperature,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        chat = request.record.chat()
        if chat:
            body["messages"] = [{"role": m.role, "content": m.content} for m in chat]
        else:
            low, high = _PLAIN_IDS
            body["prompt"] = [int(i) for i in self.rng.integers(low, high, request.prompt_tokens)]
        extra: dict[str, Any] = {}
        if s.replay:
            extra[keys.REPLAY_TOKENS] = request.response_tokens
        if request.lengths is not None:
            extra[keys.LENGTHS] = request.lengths.to_wire()
        if extra:
            body["vllm_xargs"] = extra
        return body

    async def _one(self, client: httpx.AsyncClient, request: LoadRequest, body: dict[str, Any]) -> RequestRow:
        row = RequestRow(
            request_id=request.name,
            arrival_s=request.arrival_s,
            prompt_tokens=request.prompt_tokens,
            predicted_tokens=request.lengths.quantile(0.5) if request.lengths else None,
            pit=request.pit,
        )
        await asyncio.sleep(max(0.0, self.begin + request.arrival_s - time.monotonic()))
        path = "/v1/chat/completions" if "messages" in body else "/v1/completions"
        try:
            async with asyncio.timeout(self.settings.timeout_s), client.stream("POST", path, json=body) as answer:
                if answer.status_code != 200:
                    text = (await answer.aread()).decode(errors="replace")
                    row.status = "rejected" if answer.status_code == 400 else "failed"
                    row.error = f"HTTP {answer.status_code}: {_message(text)}"
                    return row
                await self._follow(answer, row)
        except TimeoutError:
            row.status, row.error = "failed", f"no end after {self.settings.timeout_s:g} s"
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
            row.status, row.error = "failed", _short(error)
        return row

    async def _follow(self, answer: httpx.Response, row: RequestRow) -> None:
        """Write down one streamed response."""
        ended = False
        async for event in _events(answer):
            now = time.monotonic() - self.begin
            if "error" in event:
                row.status, row.error = "failed", _message(json.dumps(event))
                return
            if event.get("choices"):
                if row.first_token_s is None:
                    row.first_token_s = now
                if event["choices"][0].get("finish_reason"):
                    row.finish_s = now
                    ended = event["choices"][0]["finish_reason"] in ("stop", "length", "tool_calls")
            if event.get("usage"):
                row.output_tokens = int(event["usage"]["completion_tokens"])
                row.prompt_tokens = int(event["usage"]["prompt_tokens"])
        if not ended or not row.output_tokens:
            row.status, row.error = "failed", row.error or "the stream broke off"


async def _events(answer: httpx.Response) -> AsyncIterator[Mapping[str, Any]]:
    """The JSON events of a stream, up to ``[DONE]``."""
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
    """The server's counters, summed over engines, actions apart by their names; empty if it shows none."""
    from prometheus_client.parser import text_string_to_metric_families

    try:
        answer = await client.get("/metrics", follow_redirects=True)
        if answer.status_code != 200:
            return {}
        out: dict[str, float] = {}
        for family in text_string_to_metric_families(answer.text):
            for sample in family.samples:
                if sample.name.startswith(("ecoserve_", "vllm:num_preemptions")) and sample.name.endswith("_total"):
                    action = sample.labels.get("action")
                    name = f"ecoserve_underprediction_{action}_total" if action else sample.name
                    out[name] = out.get(name, 0.0) + sample.value
    except (httpx.HTTPError, ValueError):
        return {}
    return out


def _totals(before: Mapping[str, float], after: Mapping[str, float]) -> EngineTotals:
    def grown(name: str) -> int:
        return int(after.get(name, 0.0) - before.get(name, 0.0))

    counted = any(name.startswith("ecoserve_") for name in after)
    return EngineTotals(
        preemptions=grown("vllm:num_preemptions_total"),
        recomputed_tokens=grown("ecoserve_recomputed_tokens_total"),
        pauses=grown("ecoserve_pauses_total"),
        re_reservations=grown("ecoserve_re_reservations_total"),
        steps=grown("ecoserve_steps_total"),
        mispredictions={name: grown(f"ecoserve_{name}_total") for name in MISPREDICTIONS} if counted else {},
    )


def _message(text: str) -> str:
    """The server's own words in an error body, as one line."""
    try:
        body = json.loads(text)
        text = body["error"]["message"]
    except (ValueError, KeyError, TypeError):
        pass
    return " ".join(str(text).split())[:200]


def _short(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}".rstrip(": ")
