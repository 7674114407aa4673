"""Replicas under Ray Serve, part by part and without a cluster; benchmarks/studies/ray_faults.py has the whole."""

from __future__ import annotations

import asyncio
import json
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

pytest.importorskip("ray", reason="the extra ray is not installed")
pytest.importorskip("grpc_reflection", reason="the extra ray is installed without Ray Serve")
with warnings.catch_warnings():
    # What Ray says about itself while it is imported.
    warnings.simplefilter("ignore")
    import ray.serve  # noqa: F401

from ray.exceptions import RayActorError
from virtual_rig import STOCK, Case, Spec, arrivals_of, scheduler_for

from ecoserve.errors import ConfigError
from ecoserve.lengths import LengthDistribution
from ecoserve.serving.adapter.middleware import PredictionMiddleware
from ecoserve.serving.adapter.middleware_settings import MiddlewareSettings
from ecoserve.serving.cluster.app import Forward, Replica, Served, application, prefix_chain
from ecoserve.serving.cluster.router import ByWork, WorkRouter, stats_of
from ecoserve.serving.cluster.settings import RaySettings
from ecoserve.serving.routing import HORIZONS, Offer, Report, Router
from ecoserve.serving.simulate.cost import LinearCost
from ecoserve.serving.simulate.loop import run_replicas
from ecoserve.serving.simulate.replica import Replica as SimulatedReplica

pytestmark = pytest.mark.filterwarnings("ignore")

CHAT = "/v1/chat/completions"
SETTINGS = {"model": "none"}


class Words:
    """In vLLM's place: says what it got, or streams ``max_tokens`` words."""

    def __init__(self) -> None:
        self.tokens: dict[str, int] = {}
        self.go_on = asyncio.Event()

    @asynccontextmanager
    async def served(self, settings: RaySettings) -> AsyncIterator[Served]:
        yield Served(self.app, lambda: dict(self.tokens), lambda: None, kv_tokens=1000)

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        body = json.loads((await receive())["body"] or b"{}")
        name = dict(scope["headers"])[b"x-request-id"].decode()
        streams = bool(body.get("stream"))
        kind = b"text/event-stream" if streams else b"application/json"
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]})
        for i in range(body.get("max_tokens", 0) if streams else 0):
            self.tokens[f"chatcmpl-{name}"] = i + 1
            await send({"type": "http.response.body", "body": b"data: word\n\n", "more_body": True})
        if body.get("waits"):
            await self.go_on.wait()
        seen = {"id": name, "xargs": body.get("vllm_xargs"), "path": scope["path"]}
        await send({"type": "http.response.body", "body": json.dumps(seen).encode()})


class Handle:
    """A deployment's handle without Ray: calls one replica; ``dies_after`` so many batches of messages."""

    def __init__(self, replica: Replica, dies_after: int | None = None) -> None:
        self.replica, self.dies_after = replica, dies_after
        self.offers: list[Offer] = []
        self.handle = SimpleNamespace(remote=self._handle)

    def options(self, *, stream: bool) -> Handle:
        assert stream
        return self

    async def _handle(self, offer: Offer, scope: Any, body: bytes) -> AsyncIterator[Any]:
        self.offers.append(offer)
        batches = 0
        async with aclosing(self.replica.handle(offer, scope, body)) as answer:
            async for batch in answer:
                for message in batch:
                    if batches == self.dies_after:
                        raise RayActorError
                    yield [message]
                    batches += 1


def with_ingress(
    use: Callable[[httpx.AsyncClient, Handle, Words], Awaitable[None]], dies_after: int | None = None, **settings: Any
) -> None:
    async def go() -> None:
        words = Words()
        replica = Replica.__new__(Replica)
        await replica.__init__(words.served, SETTINGS)  # type: ignore[misc]
        handle = Handle(replica, dies_after)
        app = PredictionMiddleware(Forward(handle), MiddlewareSettings(**settings))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as client:
            await use(client, handle, words)
        assert replica._report().work == (0.0,) * len(HORIZONS), "all that was opened has ended"

    asyncio.run(go())


def test_a_request_goes_through_ingress_and_replica() -> None:
    text = "a long prompt " * 300
    body = {"messages": [{"role": "user", "content": text}], "max_tokens": 7}

    async def use(client: httpx.AsyncClient, handle: Handle, words: Words) -> None:
        given = LengthDistribution.point(5).to_wire()
        answers = [
            (await client.post(CHAT, json={**body, **more}, headers={"x-request-id": "mine"})).json()
            for more in ({}, {"vllm_xargs": {"ecoserve_lengths": given}})
        ]
        assert [a["path"] for a in answers] == [CHAT, CHAT]
        assert all(a["id"].startswith("mine-") for a in answers)
        assert [a["xargs"] for a in answers] == [None, {}], "a client's own prediction is removed"
        first, second = handle.offers
        assert first.prompt_tokens == pytest.approx(len(text) / 4, rel=0.01)
        assert first.lengths.upper <= 7
        assert first.prefixes == second.prefixes != ()
        assert first.name != second.name

    with_ingress(use)


def test_the_middlewares_prediction_is_what_the_router_sees() -> None:
    async def use(client: httpx.AsyncClient, handle: Handle, words: Words) -> None:
        lengths = LengthDistribution.point(5)
        await client.post(CHAT, json={"messages": [], "vllm_xargs": {"ecoserve_lengths": lengths.to_wire()}})
        (offer,) = handle.offers
        # Without messages there is nothing to predict from; with trusted lengths these are taken.
        assert offer.lengths != lengths
        body = {"messages": [{"role": "user", "content": "x"}], "vllm_xargs": {"ecoserve_lengths": lengths.to_wire()}}
        await client.post(CHAT, json=body)
        assert handle.offers[-1].lengths == lengths

    with_ingress(use, trust_client=True)


def test_a_replica_reports_the_tokens_that_are_out() -> None:
    async def use(client: httpx.AsyncClient, handle: Handle, words: Words) -> None:
        body = {"stream": True, "max_tokens": 30, "waits": True, "messages": [{"role": "user", "content": "x"}]}
        task = asyncio.create_task(client.post(CHAT, json=body))
        while not any(n == 30 for n in words.tokens.values()):
            await asyncio.sleep(0.001)
        stats = await handle.replica.record_routing_stats()
        assert (stats["running"], stats["waiting"], stats["kv_tokens"]) == (1, 0, 1000)
        assert (await handle.replica.record_autoscaling_stats())["work"] == stats["work"][-1]
        words.go_on.set()
        assert (await task).content.count(b"word") == 30

    with_ingress(use)


@pytest.mark.parametrize(("stream", "dies_after"), [(False, 0), (True, 0), (True, 3)])
def test_a_replica_that_dies_is_a_503_or_an_error_event(stream: bool, dies_after: int) -> None:
    async def use(client: httpx.AsyncClient, handle: Handle, words: Words) -> None:
        body = {"stream": stream, "max_tokens": 9, "messages": [{"role": "user", "content": "x"}]}
        answer = await client.post(CHAT, json=body)
        if dies_after == 0:
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
            assert "is gone" in answer.json()["error"]["message"]
            return
        events = answer.content.split(b"\n\n")
        assert events[:2] == [b"data: word"] * 2
        assert json.loads(events[2].removeprefix(b"data: "))["error"]["code"] == 503
        assert events[3:] == [b"data: [DONE]", b""]

    with_ingress(use, dies_after)


def test_what_a_client_that_leaves_had_open_is_ended() -> None:
    async def go() -> None:
        words = Words()
        replica = Replica.__new__(Replica)
        await replica.__init__(words.served, SETTINGS)  # type: ignore[misc]
        scope = {"path": CHAT, "headers": [(b"x-request-id", b"a")]}
        calls = replica.handle(Offer("a", 1, LengthDistribution.point(9)), scope, b'{"waits": true, "stream": true}')
        await anext(calls)
        assert replica._report().work[-1] > 0
        await calls.aclose()  # type: ignore[attr-defined]
        assert replica._report().work[-1] == 0

    asyncio.run(go())


def test_beginnings_of_prompts_make_equal_beginnings_of_chains() -> None:
    one, other = ("\0user\0" + "same " * 1000 + end for end in ("and then this", "or that"))
    assert prefix_chain(one) == prefix_chain(other)
    assert prefix_chain(one + "x" * 2000)[: len(prefix_chain(one))] == prefix_chain(one)
    assert prefix_chain("x" + one)[0] != prefix_chain(one)[0]
    assert prefix_chain("short") == ()


# -- the router --------------------------------------------------------------------------------------------------------


class Recorded(Router[int]):
    """A router that writes down what it is given and what it chooses."""

    def __init__(self, *arguments: Any) -> None:
        self.stream: list[tuple[str, Any, Any]] = []
        super().__init__(*arguments)

    def report(self, replica: int, report: Report) -> None:
        self.stream.append(("report", replica, report))
        super().report(replica, report)

    def sent(self, offer: Offer, replica: int, now: float) -> None:
        self.stream.append(("sent", offer, (replica, now)))
        super().sent(offer, replica, now)


@pytest.mark.parametrize("rule", ["least-work", "least-work-of-two", "vllm-dp", "prefix-affinity"])
@pytest.mark.parametrize("stale_s", [0.0, 0.2])
def test_served_and_simulated_router_choose_alike(rule: Any, stale_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """A load in virtual time, and what its router saw of it given to Ray's router as Ray would."""
    specs = tuple(
        Spec(gap_s=0.02, prompt=16 * (1 + i % 4), answer=5 + 37 * i % 90, predicted_answer=4 + 31 * i % 80)
        for i in range(40)
    )
    case = Case(specs, policy=STOCK, blocks=60, max_num_seqs=8)
    engines = [SimulatedReplica(scheduler_for(case), LinearCost(), index=i) for i in range(4)]
    arrivals = arrivals_of(case)
    for arrival, spec in zip(arrivals, specs, strict=True):
        arrival.lengths = LengthDistribution.point(spec.predicted_answer or 1)
    simulated = Recorded(rule, range(4), 7)
    run_replicas(engines, arrivals, simulated, stale_s=stale_s)

    served = WorkRouter.__new__(WorkRouter)
    served.initialize_state(rule=rule, seed=7)
    served._rule.update(range(4))
    replicas = [SimpleNamespace(replica_id=i, routing_stats={}) for i in range(4)]
    chosen: list[tuple[int, int]] = []
    for kind, what, more in simulated.stream:
        if kind == "report":
            replicas[what].routing_stats = json.loads(json.dumps(stats_of(more)))
            continue
        pending: Any = SimpleNamespace(args=[what])
        ranks = asyncio.run(served.choose_replicas(replicas, pending))  # type: ignore[arg-type]
        assert [r.replica_id for r in ranks[1]] == [i for i in range(4) if i != ranks[0][0].replica_id]
        monkeypatch.setattr("ecoserve.serving.cluster.router.time.time", lambda at=more[1]: at)
        served.on_request_routed(pending, ranks[0][0].replica_id, None)
        chosen.append((more[0], ranks[0][0].replica_id))
    assert len(chosen) == 40
    assert [a for a, _ in chosen] == [b for _, b in chosen]
    assert len(set(chosen)) == 4


def test_calls_without_an_offer_go_anywhere() -> None:
    served = WorkRouter.__new__(WorkRouter)
    served.initialize_state()
    replicas: Any = [SimpleNamespace(replica_id=i, routing_stats={}) for i in range(2)]
    assert asyncio.run(served.choose_replicas(replicas, None)) == [replicas]


# -- autoscaling and settings ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("work", "running", "queued", "replicas"),
    [({}, 0, 0, 0), ({"a": 900.0, "b": 200.0}, 10, 0, 2), ({"a": 1000.0}, 10, 10, 2), ({"a": 1001.0}, 10, 0, 2)],
)
def test_autoscaling_by_expected_work(work: dict[str, float], running: int, queued: int, replicas: int) -> None:
    context: Any = SimpleNamespace(
        aggregated_metrics={"work": work} if work else None,
        total_running_requests=running,
        total_queued_requests=queued,
    )
    assert ByWork(target_work=1000.0)(context) == (replicas, {})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "model: is missing"),
        ({"model": "m", "router": "best"}, "router: must be 'round-robin'"),
        ({"model": "m", "replicas": 3, "max_replicas": 2}, "max_replicas 2 is less than replicas 3"),
        ({"model": "m", "learn": "folder"}, "learn, admin_key and max_queue_s are settings of one server"),
        ({"model": "m", "gpu": 1}, "gpu: there is no such setting; one of"),
    ],
)
def test_args_that_cannot_be_used_are_one_line(given: dict[str, Any], message: str) -> None:
    from ecoserve.serving.cluster.engine import build

    with pytest.raises(ConfigError, match=r"^args: ") as error:
        build(given)
    assert message in str(error.value)


def test_the_application_has_what_the_settings_say() -> None:
    settings = RaySettings(model="m", replicas=2, max_replicas=5, target_work=1e5, max_requests=7)
    app = application(settings, Words().served)
    replica = app._bound_deployment.init_args[0]._bound_deployment
    config = replica._deployment_config
    assert (config.autoscaling_config.min_replicas, config.autoscaling_config.max_replicas) == (2, 5)
    assert config.autoscaling_config.policy.policy_kwargs == {"target_work": 1e5}
    assert config.max_ongoing_requests == 7
    assert config.request_router_config.request_router_kwargs == {"rule": "least-work"}
    assert settings.middleware().model_fields_set == set()
