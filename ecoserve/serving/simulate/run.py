"""One run in virtual time: settings in, :class:`~ecoserve.serving.runs.RunResult` out."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from ecoserve.errors import ConfigError
from ecoserve.serving.core import keys
from ecoserve.serving.runs import RunResult
from ecoserve.serving.simulate.cost import LinearCost
from ecoserve.serving.simulate.engine import WORD, EngineShape, make_request, make_scheduler, quiet_vllm
from ecoserve.serving.simulate.loop import Arrival, VirtualLoop
from ecoserve.serving.simulate.worker import WorkerModel
from ecoserve.serving.workload import LengthsTold, LoadRequest, make_load, trace_for


class SimulateSettings(BaseModel):
    """What to run in virtual time."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    trace: str = Field(description="file, hub id, or synthetic[:N]")
    length_field: str | None = Field(None, description="field of the trace that holds the response length")
    tokenizer: str | None = None
    split: str | None = Field("dev", description="rows of this split only, where the trace has splits")
    policy: str = "ecoserve"
    lengths: str = Field("true", description="true, none, noise:SIGMA or predicted:CHECKPOINT")
    rate_rps: float | None = Field(None, gt=0, description="Poisson arrivals; None: as recorded")
    seed: int = 0
    requests: int = Field(400, ge=1)
    depth: int = Field(1, ge=1, le=2, description="steps in flight")
    blocks: int = Field(1800, ge=2, description="usable KVC blocks")
    block_size: int = Field(16, ge=1)
    max_num_seqs: int = Field(256, ge=1)
    max_num_batched_tokens: int = Field(2048, ge=1)
    max_model_len: int = Field(4096, ge=2)
    max_tokens: int = Field(2000, ge=1, description="the same for every request")
    prefix_caching: bool = False
    runner: int | None = Field(None, ge=1, le=2, description="model runner whose rules hold; by default V2 at depth 2")
    slo_scale: float | None = Field(
        None, gt=0, description="deadline: this many times what an idle engine needs for the request"
    )
    scheduler: dict[str, Any] = Field(default_factory=dict, description="knobs of our scheduler")
    cost: LinearCost = LinearCost()


def simulate(settings: SimulateSettings) -> RunResult:
    """Run one load through one policy in virtual time.

    Raises:
        InputError: for a trace, policy or setting that cannot be used.
    """
    quiet_vllm()
    scheduler = _scheduler(settings)
    trace = trace_for(settings.trace, settings.length_field, settings.tokenizer, settings.split)
    load = _load(settings)
    worker = WorkerModel(2 if scheduler.use_v2_model_runner else 1, settings.max_num_seqs, settings.block_size)
    loop = VirtualLoop(scheduler, settings.cost, settings.depth, worker)
    result = loop.run([_arrival(settings, r) for r in load])
    if settings.slo_scale is not None:
        for row, request in zip(result.rows, load, strict=True):
            row.deadline_s = row.arrival_s + settings.slo_scale * _alone_s(settings, request)
    labels = {
        "depth": settings.depth,
        "blocks": settings.blocks,
        "length_source": trace.length_source,
        "kvc_demand_peak": demand_peak_blocks(settings) / settings.blocks,
    }
    return RunResult(
        policy=settings.policy,
        lengths=settings.lengths,
        rate_rps=settings.rate_rps,
        seed=settings.seed,
        rows=result.rows,
        totals=result.totals,
        labels=labels,
    )


def demand_peak_blocks(settings: SimulateSettings) -> int:
    """Peak KVC demand of the load if nobody waited, in blocks: vLLM's own scheduler with room for everybody."""
    roomy = settings.model_copy(
        update={
            "policy": "vllm",
            "lengths": "none",
            "scheduler": {},
            "slo_scale": None,
            "max_num_seqs": settings.requests,
            "blocks": settings.requests * -(-settings.max_model_len // settings.block_size),
            "depth": 1,
            "runner": 1,
        }
    )
    return _demand_peak(roomy.model_dump_json())


@lru_cache(maxsize=64)
def _demand_peak(roomy: str) -> int:
    settings = SimulateSettings.model_validate_json(roomy)
    scheduler, load = _scheduler(settings), _load(settings)
    result = VirtualLoop(scheduler, settings.cost, keep_series=True).run([_arrival(settings, r) for r in load])
    return max((held for _, held, _, _ in result.series), default=0)


def _load(settings: SimulateSettings) -> list[LoadRequest]:
    return make_load(
        trace_for(settings.trace, settings.length_field, settings.tokenizer, settings.split),
        requests=settings.requests,
        rate_rps=settings.rate_rps,
        seed=settings.seed,
        lengths=LengthsTold.parse(settings.lengths),
        max_tokens=settings.max_tokens,
        max_prompt_tokens=settings.max_model_len - settings.max_tokens,
    )


def _scheduler(settings: SimulateSettings) -> Any:
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
        kv_blocks=settings.blocks,
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


def _arrival(settings: SimulateSettings, request: LoadRequest) -> Arrival:
    # Unlike prompts: the prefix cache must not find what real prompts would not share.
    number = int(request.name[1:])
    prompt = [WORD] * request.prompt_tokens
    prompt[: min(2, len(prompt))] = [100 + number // 1000, 100 + number % 1000][: len(prompt)]
    predicted = request.lengths.quantile(0.5) if request.lengths else None
    return Arrival(
        at_s=request.arrival_s,
        request=make_request(
            request.name,
            prompt,
            settings.max_tokens,
            request.arrival_s,
            {keys.LENGTHS: request.lengths.to_wire()} if request.lengths else None,
            priority=(predicted or 0) if settings.policy == "vllm-priority" else 0,
            block_size=settings.block_size if settings.prefix_caching else None,
        ),
        response_tokens=request.response_tokens,
        predicted_tokens=predicted,
    )


def _alone_s(settings: SimulateSettings, request: LoadRequest) -> float:
    """Seconds the request would take on an idle engine."""
    c = settings.cost
    steps = request.response_tokens
    context = request.prompt_tokens + steps / 2
    return steps * (c.step_s + c.decode_s + c.context_token_s * context) + c.prefill_token_s * request.prompt_tokens
