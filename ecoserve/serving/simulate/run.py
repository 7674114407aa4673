"""One run in virtual time: settings in, :class:`~ecoserve.serving.runs.RunResult` out."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pkgutil import resolve_name
from statistics import fmean
from typing import Any, Final, TypeVar

from ecoserve.errors import ConfigError
from ecoserve.serving.adapter.policies import policy_arguments
from ecoserve.serving.baselines.token_budget import token_budget
from ecoserve.serving.core import keys
from ecoserve.serving.core.policies import BOUND, DEFAULT, SPLIT
from ecoserve.serving.length_source import LengthSource
from ecoserve.serving.routing import Router
from ecoserve.serving.runs import RunResult, Slo
from ecoserve.serving.simulate.cost import NoHost, Slower, StepCost, alone_s, demand_peak
from ecoserve.serving.simulate.engine import (
    EngineLimits,
    EngineShape,
    LazyRequest,
    PromptIds,
    layers_of,
    make_request,
    make_scheduler,
    quiet_vllm,
)
from ecoserve.serving.simulate.kv_link import CONNECTOR, LINEAR_KV_TOKEN_BYTES, KVLink
from ecoserve.serving.simulate.loop import Arrival, LoopResult, Progress, run_replicas
from ecoserve.serving.simulate.replica import Recorder, Replica
from ecoserve.serving.simulate.settings import (
    PROMPT_TOKENS,
    Machine,
    SimulateSettings,
    forward_times,
    machine_of,
    scheduler_settings,
)
from ecoserve.serving.simulate.worker import WorkerModel
from ecoserve.serving.workload import LoadRequest

__all__ = ["SimulateSettings", "check", "demand_peak_blocks", "request_slo", "simulate"]

ReplicaT = TypeVar("ReplicaT", bound=Replica)
#: Tokens over which the time of a further token is taken.
_FURTHER: Final = 100


def simulate(
    settings: SimulateSettings, *, progress: Progress | None = None, recorder: Recorder | None = None
) -> RunResult:
    """Run one load through one policy in virtual time; InputError for anything that cannot be used."""
    quiet_vllm()
    machine = machine_of(settings)
    cost = machine.cost
    settings = settings.model_copy(update={"scheduler": scheduler_settings(settings, cost)})
    served, machines = _bound(settings, machine) if settings.policy == BOUND else (settings, [machine])
    load = _load(served)
    one = len(machines) == 1
    results = [(_serve(served, m, cost, load, progress, recorder if one else None), m) for m in machines]
    result, served_by = min(results, key=lambda r: _latency(r[0])) if len(results) > 1 else results[0]
    if recorder is not None and not one:
        _serve(served, served_by, cost, load, recorder=recorder)
    for row, request in zip(result.rows, load, strict=True):
        row.pit = request.pit
        if settings.slo_scale is not None:
            alone = _alone_s(settings, cost, request.prompt_tokens, request.response_tokens)
            row.deadline_s = row.arrival_s + settings.slo_scale * alone
    slo = Slo(_seconds(settings.slo_ttft_ms), _seconds(settings.slo_tpot_ms))
    return settings.result(result.rows, result.totals, _labels(settings, served_by), slo=slo, kv=result.kv)


def _serve(
    settings: SimulateSettings,
    machine: Machine,
    cost: StepCost,
    load: list[LoadRequest],
    progress: Progress | None = None,
    recorder: Recorder | None = None,
) -> LoopResult:
    """Serve a load; ``cost``: by which the requests' SLOs are stated."""
    replicas, front = _replicas(settings, machine)
    prompts = PromptIds(load)
    arrivals = [_arrival(settings, prompts, r, request_slo(settings, cost, r.prompt_tokens)) for r in load]
    router = Router(settings.router, range(front), settings.seed)
    stale_s = settings.router_stale_ms / 1e3
    return run_replicas(replicas, arrivals, router, stale_s=stale_s, recorder=recorder, progress=progress)


def _bound(settings: SimulateSettings, machine: Machine) -> tuple[SimulateSettings, list[Machine]]:
    """What serves as :data:`BOUND`, on the better of two machines: with the KV cache that there is, and one to spare.

    To spare: twice what the load would hold if no request waited. More KV makes larger batches, whose steps are longer:
    beyond what the GPU can serve, an engine with KV to spare is slower than one without.
    """
    most = settings.requests * -(-settings.max_model_len // settings.block_size) * len(layers_of(settings))
    spare = max(machine.blocks, min(most, 2 * demand_peak_blocks(settings)))
    served = settings.model_copy(update={"policy": DEFAULT, "lengths": "true"})
    return served, [replace(machine, cost=NoHost(machine.cost), blocks=n) for n in {machine.blocks: 0, spare: 0}]


def _latency(result: LoopResult) -> float:
    return fmean(r.normalized_latency_s for r in result.rows if r.normalized_latency_s is not None)


def check(settings: SimulateSettings) -> Machine:
    """Refuse at once (InputError) what :func:`simulate` would refuse later, the trace aside; returns the machine."""
    quiet_vllm()
    machine = machine_of(settings)
    if machine.max_model_len is not None and settings.max_model_len > machine.max_model_len:
        raise ConfigError(
            f"max_model_len {settings.max_model_len} is more than {settings.model}'s {machine.max_model_len}",
            where="simulate",
            fix="lower it, or take a model with a longer context, as llama-2-13b in place of llama-13b",
        )
    LengthSource.parse(settings.lengths)
    _prompt_room(settings)
    if settings.policy == SPLIT:
        _kv_link(settings, machine)
        if not settings.prefill_replicas < settings.replicas or settings.kv_groups != "full":
            fix = f"give at least {settings.prefill_replicas + 1} replicas, and kv_groups full"
            raise ConfigError(f"{SPLIT} needs engines that decode beside those for prompts", where="simulate", fix=fix)
    scheduler = scheduler_settings(settings, machine.cost)
    policy = DEFAULT if settings.policy == BOUND else settings.policy
    settings = settings.model_copy(update={"scheduler": scheduler, "policy": policy})
    # More blocks than one request can have change no verdict, and making a hundred thousand takes a second.
    whole = 2 + -(-(settings.max_model_len + settings.max_num_batched_tokens) // settings.block_size)
    _scheduler(settings, min(machine.blocks, whole * len(layers_of(settings))), machine.cost)
    return machine


def demand_peak_blocks(settings: SimulateSettings) -> int:
    """Peak KV demand of the load if no request had to wait, in blocks, over all replicas."""
    same: dict[str, Any] = {"policy": "vllm", "lengths": "none", "scheduler": {}, "blocks": 2, "runner": 1}
    same |= {"router": "round-robin", "router_stale_ms": 0.0, "charge_scheduler": "model"}
    same |= {"max_num_seqs": settings.requests, "slower": 0.0}
    same |= {"slo_scale": None, "slo_ttft_ms": None, "slo_tpot_ms": None, "tell_slo": True}
    # vLLM wants a forward to have room for a token of every request.
    same["max_num_batched_tokens"] = max(settings.max_num_batched_tokens, settings.requests)
    if not settings.on_gpu:
        same["depth"] = 1  # the host's time is a part of the step, which both depths pay
    return _demand_peak(settings.model_copy(update=same).model_dump_json())


@lru_cache(maxsize=64)
def _demand_peak(roomy: str) -> int:
    settings = SimulateSettings.model_validate_json(roomy)
    load = _load(settings)
    cost = machine_of(settings).cost
    place: dict[str, int] = {}
    for i, request in enumerate(load):
        place[request.name] = i % settings.replicas if request.after is None else place[request.after]
    shares = [[r for r in load if place[r.name] == i] for i in range(settings.replicas)]
    counted = settings.kv_groups == "full" and all(r.after is None for r in load)
    if counted and not (settings.prefix_caching and PromptIds(load).shared):
        return sum(
            demand_peak(s, cost, settings.depth, settings.block_size, settings.max_num_batched_tokens) for s in shares
        )
    room = settings.requests * -(-settings.max_model_len // settings.block_size) * len(layers_of(settings))
    peak = 0
    for share in shares:
        prompts = PromptIds(load)
        replica = Replica(_scheduler(settings, room, cost), cost, settings.depth)
        run_replicas([replica], [_arrival(settings, prompts, r) for r in share])
        peak += replica.peak_blocks
    return peak


def _labels(settings: SimulateSettings, machine: Machine) -> dict[str, Any]:
    labels: dict[str, Any] = {
        "depth": settings.depth,
        "blocks": machine.blocks,
        "kv_demand_peak": demand_peak_blocks(settings) / (machine.blocks * settings.replicas),
    }
    if settings.on_gpu:
        labels |= {"gpu": settings.gpu, "model": settings.model, "tp": settings.tp}
    if settings.arrivals == "at once":
        labels["arrivals"] = settings.arrivals
    if settings.replicas > 1:
        labels |= {"replicas": settings.replicas, "router": settings.router}
    if settings.policy == SPLIT:
        names = ("prefill_replicas", "prefill_tp", "kv_link")
        labels |= {name: value for name in names if (value := getattr(settings, name)) is not None}
        if settings.router_stale_ms:
            labels["router_stale_ms"] = settings.router_stale_ms
    if settings.charge_scheduler != "model":
        labels["charge_scheduler"] = settings.charge_scheduler
    if settings.charge_scheduler == "measured":
        labels["repeatable"] = False
    return labels


def _load(settings: SimulateSettings) -> list[LoadRequest]:
    return settings.load(_prompt_room(settings))


def _prompt_room(settings: SimulateSettings) -> int:
    """Tokens that a prompt may have."""
    if settings.max_tokens >= settings.max_model_len:
        raise ConfigError(
            f"max_tokens {settings.max_tokens} leaves no room for a prompt in max_model_len {settings.max_model_len}",
            where="simulate",
        )
    return settings.max_model_len - settings.max_tokens


def _replicas(settings: SimulateSettings, machine: Machine) -> tuple[list[Replica], int]:
    """The engines, and to how many of them, the first, requests come."""
    if settings.policy != SPLIT:
        return [_replica(settings, machine, i, Replica) for i in range(settings.replicas)], settings.replicas
    from ecoserve.serving.simulate import pools

    front = settings.prefill_replicas
    of_prompts = machine_of(settings.model_copy(update={"tp": settings.prefill_tp or settings.tp}))
    prefills = [_replica(settings, of_prompts, i, pools.PrefillReplica) for i in range(front)]
    decodes = [_replica(settings, machine, i, pools.DecodeReplica) for i in range(front, settings.replicas)]
    router = Router(settings.router, range(len(decodes)), settings.seed)
    pool = pools.DecodePool(decodes, router, _kv_link(settings, machine))
    for prefill in prefills:
        prefill.decodes = pool
    return [*prefills, *decodes], front


def _kv_link(settings: SimulateSettings, machine: Machine) -> KVLink:
    shape = getattr(machine.cost, "shape", None)
    token_bytes = LINEAR_KV_TOKEN_BYTES if shape is None else shape.kv_token_bytes
    return KVLink.of(settings.kv_link, token_bytes, min(settings.tp, settings.prefill_tp or settings.tp))


def _replica(settings: SimulateSettings, machine: Machine, index: int, cls: type[ReplicaT]) -> ReplicaT:
    scheduler = _scheduler(settings, machine.blocks, machine.cost)
    block_sizes = scheduler.kv_cache_manager.coordinator.group_block_sizes
    worker = WorkerModel(2 if scheduler.use_v2_model_runner else 1, settings.max_num_seqs, block_sizes)
    cost = Slower(machine.cost, 1.0 + settings.slower) if settings.slower else machine.cost
    return cls(scheduler, cost, settings.depth, worker, charge=settings.charge_scheduler, index=index)


def _scheduler(settings: SimulateSettings, blocks: int, cost: StepCost) -> Any:
    arguments = policy_arguments("vllm" if settings.policy == SPLIT else settings.policy, settings.scheduler)
    chunked_prefill = arguments.get("enable_chunked_prefill", True)
    limits = settings.model_dump(include=set(EngineLimits.model_fields))
    limits["max_num_batched_tokens"] = _forward_tokens(settings, cost, arguments, chunked_prefill)
    shape = EngineShape(
        **limits,
        kv_blocks=blocks,
        chunked_prefill=chunked_prefill,
        watermark=arguments.get("watermark", 0.0),
        scheduling_policy=arguments.get("scheduling_policy", "fcfs"),
        runner=settings.runner or settings.depth,
        depth=settings.depth,
        kv_connector=CONNECTOR if settings.policy == SPLIT else None,
    )
    return make_scheduler(resolve_name(arguments["scheduler_cls"]), shape, arguments.get("additional_config"))


def _forward_tokens(
    settings: SimulateSettings, cost: StepCost, arguments: dict[str, Any], chunked_prefill: bool
) -> int:
    """Most tokens of a forward: the run's, or a budget that the policy states; vLLM wants at least what is needed."""
    stated = arguments.get("max_num_batched_tokens")
    if stated is not None:
        slo = request_slo(settings, cost, PROMPT_TOKENS)
        budget = token_budget(settings.policy, forward_times(cost, depth=settings.depth), slo.get(keys.SLO_TPOT))
        return max(budget or stated, settings.max_num_seqs)
    # Without chunks, the longest prompt is one forward.
    return max(settings.max_num_batched_tokens, 0 if chunked_prefill else settings.max_model_len)


def _alone_s(settings: SimulateSettings, cost: StepCost, prompt_tokens: int, response_tokens: int) -> float:
    return alone_s(cost, prompt_tokens, response_tokens, settings.depth, settings.max_num_batched_tokens)


def request_slo(settings: SimulateSettings, cost: StepCost, prompt_tokens: int) -> dict[str, float]:
    """The SLO that a request carries, by its keys: seconds to the first token, and for each further one.

    ``slo_scale`` bounds the last token only, so no bound of the first token follows from it. The request carries the
    scale times the time of one more token on an idle engine: its deadline in seconds would reveal the true length.
    """
    if not settings.tell_slo:
        return {}
    ttft_s, tpot_s = _seconds(settings.slo_ttft_ms), _seconds(settings.slo_tpot_ms)
    if settings.slo_scale is not None:
        first, further = (_alone_s(settings, cost, prompt_tokens, n) for n in (1, 1 + _FURTHER))
        scaled = settings.slo_scale * (further - first) / _FURTHER
        tpot_s = scaled if tpot_s is None else min(tpot_s, scaled)
    return {key: s for key, s in ((keys.SLO_TTFT, ttft_s), (keys.SLO_TPOT, tpot_s)) if s is not None}


def _arrival(
    settings: SimulateSettings, prompts: PromptIds, request: LoadRequest, slo: dict[str, float] | None = None
) -> Arrival:
    extra_args = {**(slo or {}), **request.extra_args(replay=False)}

    def make(at_s: float) -> Any:
        return make_request(
            request.name,
            prompts.of(request),
            settings.max_tokens,
            at_s,
            extra_args or None,
            priority=request.priority(settings.policy, settings.max_tokens),
            block_size=settings.block_size if settings.prefix_caching else None,
        )

    return Arrival(
        at_s=request.arrival_s,
        request=LazyRequest(request.name, request.prompt_tokens, make),
        response_tokens=request.response_tokens,
        predicted_tokens=request.predicted_tokens,
        lengths=request.lengths and request.lengths.closed_at(settings.max_tokens),
        after=request.after,
        wait_s=request.think_s,
    )


def _seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1e3
