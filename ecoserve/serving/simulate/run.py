"""One run in virtual time: settings in, :class:`~ecoserve.serving.runs.RunResult` out."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

from ecoserve.errors import ConfigError
from ecoserve.serving.core import keys
from ecoserve.serving.length_source import LengthSource
from ecoserve.serving.runs import RunResult, Slo
from ecoserve.serving.simulate.cost import alone_s
from ecoserve.serving.simulate.demand import demand_peak
from ecoserve.serving.simulate.engine import EngineShape, LazyRequest, make_request, make_scheduler, quiet_vllm
from ecoserve.serving.simulate.forward_size import resolved_knobs
from ecoserve.serving.simulate.loop import Arrival, Progress, run_replicas
from ecoserve.serving.simulate.machine import Machine, machine_of
from ecoserve.serving.simulate.prompts import PromptIds
from ecoserve.serving.simulate.replica import Recorder, Replica
from ecoserve.serving.simulate.router import ROUTERS
from ecoserve.serving.simulate.settings import SimulateSettings
from ecoserve.serving.simulate.worker import WorkerModel
from ecoserve.serving.workload import LoadRequest, make_load, trace_for

__all__ = ["SimulateSettings", "check", "demand_peak_blocks", "simulate", "slo_told"]

#: Tokens over which the time of a further token is taken.
_FURTHER = 100


def simulate(
    settings: SimulateSettings, *, progress: Progress | None = None, recorder: Recorder | None = None
) -> RunResult:
    """Run one load through one policy in virtual time.

    Args:
        settings: what to run.
        progress: called with (requests ended, virtual seconds) whenever a request ends.
        recorder: told of everything that happens.

    Raises:
        InputError: for a trace, policy or setting that cannot be used.
    """
    quiet_vllm()
    machine = machine_of(settings)
    settings = _resolved(settings, machine)
    replicas = [_replica(settings, machine, i) for i in range(settings.replicas)]
    trace = trace_for(settings.trace, settings.length_field, settings.tokenizer, settings.split)
    load = _load(settings)
    prompts = PromptIds(load)
    router = ROUTERS[settings.router](settings.replicas)
    arrivals = [_arrival(settings, prompts, r, slo_told(settings, machine, r.prompt_tokens)) for r in load]
    result = run_replicas(replicas, arrivals, router, recorder=recorder, progress=progress)
    for row, request in zip(result.rows, load, strict=True):
        row.pit = request.pit
        if settings.slo_scale is not None:
            alone = alone_s(
                machine.cost,
                request.prompt_tokens,
                request.response_tokens,
                settings.depth,
                settings.max_num_batched_tokens,
            )
            row.deadline_s = row.arrival_s + settings.slo_scale * alone
    rate = settings.rate_rps
    return RunResult(
        policy=settings.policy,
        lengths=settings.lengths,
        rate_rps=None if rate is None or math.isinf(rate) else rate,
        seed=settings.seed,
        rows=result.rows,
        totals=result.totals,
        slo=Slo(_seconds(settings.slo_ttft_ms), _seconds(settings.slo_tpot_ms)),
        labels=_labels(settings, machine, trace.length_source),
        kv=result.kv,
    )


def check(settings: SimulateSettings) -> Machine:
    """Refuse at once what :func:`simulate` would refuse later, the trace aside; returns the machine.

    Raises:
        InputError: for a policy, GPU, model or setting that cannot be used.
    """
    quiet_vllm()
    machine = machine_of(settings)
    if machine.max_model_len is not None and settings.max_model_len > machine.max_model_len:
        raise ConfigError(
            f"max_model_len {settings.max_model_len} is more than {settings.model}'s {machine.max_model_len}",
            where="simulate",
        )
    LengthSource.parse(settings.lengths)
    # More blocks than one request can have change no verdict, and making a hundred thousand takes a second.
    _scheduler(_resolved(settings, machine), min(machine.blocks, -(-settings.max_model_len // settings.block_size)))
    return machine


def demand_peak_blocks(settings: SimulateSettings) -> int:
    """Peak KV demand of the load if nobody waited, in blocks, over all replicas."""
    # What does not change it is set to one value, so that all runs of one load share one answer.
    same: dict[str, Any] = {"policy": "vllm", "lengths": "none", "scheduler": {}, "blocks": 2, "runner": 1}
    same |= {"charge_scheduler": "model", "router": "round-robin", "max_num_seqs": settings.requests}
    same |= {"slo_scale": None, "slo_ttft_ms": None, "slo_tpot_ms": None, "tell_slo": True}
    if not settings.on_gpu:
        same["depth"] = 1  # the host's time is a part of the step, which both depths pay
    return _demand_peak(settings.model_copy(update=same).model_dump_json())


@lru_cache(maxsize=64)
def _demand_peak(roomy: str) -> int:
    settings = SimulateSettings.model_validate_json(roomy)
    load = _load(settings)
    cost = machine_of(settings).cost
    shares = [load[i :: settings.replicas] for i in range(settings.replicas)]
    if not (settings.prefix_caching and PromptIds(load).shared):
        return sum(
            demand_peak(s, cost, settings.depth, settings.block_size, settings.max_num_batched_tokens) for s in shares
        )
    room = settings.requests * -(-settings.max_model_len // settings.block_size)
    peak = 0
    for share in shares:
        prompts = PromptIds(load)
        replica = Replica(_scheduler(settings, room), cost, settings.depth, keep_series=True)
        result = run_replicas([replica], [_arrival(settings, prompts, r) for r in share])
        peak += max((held for _, held, _, _ in result.series), default=0)
    return peak


def _labels(settings: SimulateSettings, machine: Machine, length_source: str) -> dict[str, Any]:
    labels: dict[str, Any] = {
        "depth": settings.depth,
        "blocks": machine.blocks,
        "length_source": length_source,
        "kv_demand_peak": demand_peak_blocks(settings) / (machine.blocks * settings.replicas),
    }
    if settings.on_gpu:
        labels |= {"gpu": settings.gpu, "model": settings.model, "tp": settings.tp}
    if settings.rate_rps is not None and math.isinf(settings.rate_rps):
        labels["arrivals"] = "at once"
    if settings.replicas > 1:
        labels |= {"replicas": settings.replicas, "router": settings.router}
    if settings.charge_scheduler != "model":
        labels["charge_scheduler"] = settings.charge_scheduler
    if settings.charge_scheduler == "measured":
        labels["repeatable"] = False
    return labels


def _load(settings: SimulateSettings) -> list[LoadRequest]:
    return make_load(
        trace_for(settings.trace, settings.length_field, settings.tokenizer, settings.split),
        requests=settings.requests,
        rate_rps=settings.rate_rps,
        seed=settings.seed,
        lengths=LengthSource.parse(settings.lengths),
        max_tokens=settings.max_tokens,
        max_prompt_tokens=settings.max_model_len - settings.max_tokens,
    )


def _resolved(settings: SimulateSettings, machine: Machine) -> SimulateSettings:
    """The settings with what the machine decides."""
    knobs = resolved_knobs(settings.scheduler, machine.cost, settings.depth, settings.on_gpu)
    return settings if knobs is settings.scheduler else settings.model_copy(update={"scheduler": knobs})


def _replica(settings: SimulateSettings, machine: Machine, index: int) -> Replica:
    scheduler = _scheduler(settings, machine.blocks)
    worker = WorkerModel(2 if scheduler.use_v2_model_runner else 1, settings.max_num_seqs, settings.block_size)
    return Replica(scheduler, machine.cost, settings.depth, worker, charge=settings.charge_scheduler, index=index)


def _scheduler(settings: SimulateSettings, blocks: int) -> Any:
    from ecoserve.serving.adapter.counting import CountingScheduler
    from ecoserve.serving.adapter.scheduler import EcoServeScheduler
    from ecoserve.serving.adapter.settings import CONFIG_KEY, POLICIES, STOCK_POLICIES

    if settings.max_tokens >= settings.max_model_len:
        raise ConfigError(
            f"max_tokens {settings.max_tokens} leaves no room for a prompt in max_model_len {settings.max_model_len}",
            where="simulate",
        )
    ours = settings.policy in POLICIES
    if not ours and settings.policy not in STOCK_POLICIES:
        known = ", ".join((*POLICIES, *STOCK_POLICIES))
        raise ConfigError(f"policy {settings.policy!r} is not known", where="simulate", fix=f"one of {known}")
    shape = EngineShape(
        kv_blocks=blocks,
        block_size=settings.block_size,
        max_num_seqs=settings.max_num_seqs,
        max_num_batched_tokens=settings.max_num_batched_tokens,
        max_model_len=settings.max_model_len,
        prefix_caching=settings.prefix_caching,
        watermark=0.05 if settings.policy == "vllm-watermark" else 0.0,
        scheduling_policy="priority" if settings.policy == "vllm-priority" else "fcfs",
        runner=settings.runner or settings.depth,
    )
    config = {CONFIG_KEY: {"policy": settings.policy, **settings.scheduler}} if ours else None
    return make_scheduler(EcoServeScheduler if ours else CountingScheduler, shape, config)


def slo_told(settings: SimulateSettings, machine: Machine, prompt_tokens: int) -> dict[str, float]:
    """What a request says of its SLO: seconds to the first token, and for each further one.

    ``slo_scale`` asks for the last token only, so no first token is asked for: what is told is the scale times the time
    that one more token takes on an idle engine. A deadline in seconds would give the true length away.
    """
    if not settings.tell_slo:
        return {}
    told = {keys.SLO_TTFT: _seconds(settings.slo_ttft_ms), keys.SLO_TPOT: _seconds(settings.slo_tpot_ms)}
    if settings.slo_scale is not None:
        first, further = (
            alone_s(machine.cost, prompt_tokens, n, settings.depth, settings.max_num_batched_tokens)
            for n in (1, 1 + _FURTHER)
        )
        told[keys.SLO_TPOT] = _least(told[keys.SLO_TPOT], settings.slo_scale * (further - first) / _FURTHER)
    return {key: value for key, value in told.items() if value is not None}


def _least(stated: float | None, scaled: float) -> float:
    return scaled if stated is None else min(stated, scaled)


def _arrival(
    settings: SimulateSettings, prompts: PromptIds, request: LoadRequest, slo: dict[str, float] | None = None
) -> Arrival:
    told: dict[str, Any] = dict(slo or {})
    if request.lengths:
        told[keys.LENGTHS] = request.lengths.to_wire()
    predicted = request.lengths.quantile(0.5) if request.lengths else None

    def make() -> Any:
        return make_request(
            request.name,
            prompts.of(request),
            settings.max_tokens,
            request.arrival_s,
            told or None,
            priority=(predicted or 0) if settings.policy == "vllm-priority" else 0,
            block_size=settings.block_size if settings.prefix_caching else None,
        )

    return Arrival(
        at_s=request.arrival_s,
        request=LazyRequest(request.name, request.prompt_tokens, make),
        response_tokens=request.response_tokens,
        predicted_tokens=predicted,
        expected_tokens=request.lengths.mean() if request.lengths else None,
    )


def _seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1e3
