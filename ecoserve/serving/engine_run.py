"""One run on a real vLLM engine in this process: a load, a policy, a clock.

Rule: every policy gets the same requests at the same times, with the same ``max_tokens``; responses have their recorded
lengths (:mod:`~ecoserve.serving.adapter.replay`), which the scheduler is not told unless ``lengths`` says so.
Latencies count from the arrival that the load says, so that a request which had to wait to be handed over has waited.
"""

from __future__ import annotations

import gc
import math
import os
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ecoserve.errors import ConfigError
from ecoserve.serving.clocks import CpuClock, WallClock
from ecoserve.serving.core import keys
from ecoserve.serving.length_source import LengthSource
from ecoserve.serving.prompts import Prompts
from ecoserve.serving.runs import RequestRow, RunResult
from ecoserve.serving.workload import LoadRequest, make_load, trace_for

Progress = Callable[[int, int], None]

REPLAY = "ecoserve.serving.adapter.replay:ReplayLogitsProcessor"
COUNTING = "ecoserve.serving.adapter.counting.CountingScheduler"
OURS = "ecoserve.serving.adapter.scheduler.EcoServeScheduler"


class EngineRunSettings(BaseModel):
    """What to run on an engine in this process."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(description="model served by an engine in this process: a folder or hub id")
    trace: str = Field(description="file, data set on the hub, or synthetic[:N]")
    length_field: str | None = Field(None, description="field with the response lengths in tokens, as lengths[3]")
    tokenizer: str | None = Field(None, description="tokenizer that counts tokens where the trace does not")
    split: str | None = Field("dev", description="rows of this split only, where the trace has splits")
    policy: str = Field("ecoserve", description="scheduling policy")
    lengths: str = Field("true", description="source of lengths: true, none, noise:SIGMA, predicted:CKPT, ...")
    rate_rps: float | None = Field(
        None, gt=0, description="requests per second, Poisson; inf: all at once; None: as recorded"
    )
    seed: int = Field(0, ge=0, description="seed of everything random")
    requests: int = Field(200, ge=1, description="requests of a run")
    blocks: int | None = Field(
        None,
        ge=2,
        description="usable KV blocks; by default what memory holds",
        json_schema_extra={"flag": "kv-blocks"},
    )
    block_size: int | None = Field(None, ge=1, description="tokens per KV block; by default vLLM's choice")
    max_num_seqs: int = Field(64, ge=1, description="requests in a batch")
    max_num_batched_tokens: int = Field(2048, ge=1, description="tokens per step")
    max_model_len: int | None = Field(None, ge=2, description="tokens of prompt and response")
    max_tokens: int = Field(512, ge=1, description="max_tokens of every request")
    prefix_caching: bool = Field(True, description="share the KV of equal prefixes")
    temperature: float = Field(0.0, ge=0, le=2, description="sampling temperature")
    enforce_eager: bool = Field(True, description="no compiled kernels: slower steps, a start in seconds")
    threads: int | None = Field(None, ge=1, description="threads of the model on a CPU; by default vLLM's choice")
    clock: Literal["wall", "cpu"] = Field(
        "wall",
        description="cpu measures this process's CPU time, so that other processes do not count; it needs 1 thread and "
        "a model on the CPU",
    )
    scheduler: dict[str, Any] = Field(default_factory=dict, description="scheduler settings of ecoserve's policies")
    engine: dict[str, Any] = Field(default_factory=dict, description="further vLLM engine arguments")


def run_engine(settings: EngineRunSettings, progress: Progress | None = None) -> RunResult:
    """Start an engine, run one load through it, and shut it down. A process can do so again and again.

    Args:
        settings: what to run.
        progress: called with (requests done, requests in all).

    Raises:
        InputError: for a trace, policy or setting that cannot be used.
        RunError: if the engine fails.
    """
    if settings.clock == "cpu" and settings.threads != 1:
        raise ConfigError("clock cpu needs threads 1", fix="several threads' CPU time adds up to more than time passes")
    arguments = engine_arguments(settings)
    told = LengthSource.parse(settings.lengths)
    trace = trace_for(settings.trace, settings.length_field, settings.tokenizer, settings.split)
    longest = settings.max_model_len - settings.max_tokens if settings.max_model_len else None
    load = make_load(
        trace,
        requests=settings.requests,
        rate_rps=settings.rate_rps,
        seed=settings.seed,
        lengths=told,
        max_tokens=settings.max_tokens,
        max_prompt_tokens=longest or 2**31,
    )
    engine = start_engine(arguments, settings.threads)
    try:
        rows, totals = _Drive(engine, settings, load, progress).run()
    finally:
        stop_engine(engine)
    return RunResult(
        policy=settings.policy,
        lengths=settings.lengths,
        rate_rps=settings.rate_rps if settings.rate_rps is None or math.isfinite(settings.rate_rps) else None,
        seed=settings.seed,
        rows=rows,
        totals=totals,
        labels={
            "engine": "in-process",
            "blocks": settings.blocks,
            "arrivals": _arrivals(settings.rate_rps),
            "clock": settings.clock,
            "length_source": trace.length_source,
        },
    )


def _arrivals(rate: float | None) -> str:
    return "recorded" if rate is None else "at once" if math.isinf(rate) else "poisson"


def engine_arguments(settings: EngineRunSettings) -> dict[str, Any]:
    """Arguments of vLLM's engine for these settings, without importing vLLM."""
    out: dict[str, Any] = {
        "model": settings.model,
        "max_num_seqs": settings.max_num_seqs,
        "max_num_batched_tokens": settings.max_num_batched_tokens,
        "max_model_len": settings.max_model_len,
        "enable_prefix_caching": settings.prefix_caching,
        "logits_processors": [REPLAY],
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
        "distributed_executor_backend": "uni",
        "seed": 0,
        "enforce_eager": settings.enforce_eager,
    }
    if settings.blocks is not None:
        out["num_gpu_blocks_override"] = settings.blocks + 1  # vLLM keeps one for itself
    if settings.block_size is not None:
        out["block_size"] = settings.block_size
    out |= policy_arguments(settings.policy, settings.scheduler)
    return out | settings.engine


def policy_arguments(policy: str, knobs: dict[str, Any]) -> dict[str, Any]:
    """vLLM's engine arguments that make it run ``policy``, counting.

    Raises:
        ConfigError: for a policy or knob that is not known.
    """
    from ecoserve.serving.adapter.settings import CONFIG_KEY, POLICIES, STOCK_POLICIES, SchedulerSettings

    if policy in POLICIES:
        own = {"policy": policy, **knobs}
        SchedulerSettings.parse(own)
        return {"scheduler_cls": OURS, "additional_config": {CONFIG_KEY: own}}
    if policy not in STOCK_POLICIES:
        known = ", ".join((*POLICIES, *STOCK_POLICIES))
        raise ConfigError(f"policy {policy!r} is not known", fix=f"one of {known}")
    out: dict[str, Any] = {"scheduler_cls": COUNTING}
    if policy == "vllm-watermark":
        out["watermark"] = 0.05
    if policy == "vllm-priority":
        out["scheduling_policy"] = "priority"
    return out


def start_engine(arguments: dict[str, Any], threads: int | None) -> Any:
    """vLLM's ``LLMEngine`` in this process, its model on ``threads`` CPU threads.

    Raises:
        ConfigError: in vLLM's words.
    """
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    if threads is not None:
        # Threads that wait for each other spin: beside other processes, more of them can be twenty times slower.
        os.environ["OMP_NUM_THREADS"] = str(threads)
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        import torch

        torch.set_num_threads(threads)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what vLLM imports, and nothing an operator could act on
            from vllm import EngineArgs, LLMEngine

            return LLMEngine.from_engine_args(EngineArgs(**arguments))
    except (ValueError, OSError, TypeError) as error:
        raise ConfigError(_line(error), where=f"vLLM engine for {arguments['model']}") from error


def stop_engine(engine: Any) -> None:
    """Shut an engine of :func:`start_engine` down; the process can start another."""
    engine.engine_core.shutdown()
    del engine
    gc.collect()


@dataclass(slots=True)
class _Pending:
    load: LoadRequest
    prompt: list[int]


class _Drive:
    """Feeds one engine one load by the wall clock and writes down what happens to each request."""

    def __init__(
        self, engine: Any, settings: EngineRunSettings, load: Sequence[LoadRequest], progress: Progress | None
    ) -> None:
        from ecoserve.serving.adapter.observe import SchedulerWatch

        self.engine = engine
        self.settings = settings
        self.progress = progress or (lambda done, total: None)
        self.limit = int(engine.model_config.max_model_len)
        self.clock = CpuClock() if settings.clock == "cpu" else WallClock()
        self.watch = SchedulerWatch(engine.engine_core.engine_core.scheduler, self.clock.now)
        prompts = Prompts(engine.get_tokenizer(), self.limit - settings.max_tokens, settings.seed)
        self.pending = deque(_Pending(r, prompts.of(r)) for r in sorted(load, key=lambda r: r.arrival_s))
        self.rows = {
            p.load.name: RequestRow(
                request_id=p.load.name,
                arrival_s=p.load.arrival_s,
                prompt_tokens=len(p.prompt),
                predicted_tokens=p.load.lengths.quantile(0.5) if p.load.lengths else None,
                pit=p.load.pit,
            )
            for p in self.pending
        }
        self.internal: dict[str, str] = {}
        self.begin = self.clock.now()

    def run(self) -> tuple[list[RequestRow], Any]:
        self._warm_up()
        total, done = len(self.rows), 0
        self.begin = begin = self.clock.now()
        while self.pending or self.engine.has_unfinished_requests():
            now = self.clock.now() - begin
            while self.pending and self.pending[0].load.arrival_s <= now:
                done += self._hand_over(self.pending.popleft())
            if not self.engine.has_unfinished_requests():
                if self.pending:
                    self.clock.wait_until(begin + self.pending[0].load.arrival_s)
                continue
            outputs = self.engine.step()
            now = self.clock.now() - begin
            done += sum(self._note(output, now) for output in outputs)
            self.progress(done, total)
        totals = self.watch.totals()
        for name, internal in self.internal.items():
            self.rows[name].preemptions = self.watch.preemptions_of.get(internal, 0)
        return list(self.rows.values()), totals

    def _warm_up(self) -> None:
        """The first steps of an engine are slow; they are nobody's latency."""
        prompt = self.pending[0].prompt[:8] if self.pending else [1]
        self._add("warm-up", prompt, None, 2)
        while self.engine.has_unfinished_requests():
            self.engine.step()
        self.engine.reset_prefix_cache()
        self.watch.restart()

    def _hand_over(self, item: _Pending) -> int:
        """Give the request to the engine; 1 if it refuses it, and so is done with it."""
        row = self.rows[item.load.name]
        try:
            self.internal[row.request_id] = self._add(row.request_id, item.prompt, item.load, self.settings.max_tokens)
        except ValueError as error:
            row.status, row.error = "rejected", _line(error)
            return 1
        return 0

    def _add(self, name: str, prompt: list[int], load: LoadRequest | None, max_tokens: int) -> str:
        from vllm import SamplingParams, TokensPrompt
        from vllm.sampling_params import RequestOutputKind

        extra: dict[str, Any] = {}
        priority = 0
        if load is not None:
            extra[keys.REPLAY_TOKENS] = load.response_tokens
            if load.lengths is not None:
                extra[keys.LENGTHS] = load.lengths.to_wire()
                if self.settings.policy == "vllm-priority":
                    priority = load.lengths.quantile(0.5)
        params = SamplingParams(
            temperature=self.settings.temperature,
            max_tokens=max_tokens,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
            extra_args=extra or None,
        )
        internal: str = self.engine.add_request(name, TokensPrompt(prompt_token_ids=prompt), params, priority=priority)
        return internal

    def _note(self, output: Any, now: float) -> int:
        row = self.rows.get(output.request_id)
        if row is None:
            return 0
        answer = output.outputs[0]
        new = len(answer.token_ids)
        if new and row.first_token_s is None:
            row.first_token_s = now
        row.output_tokens += new
        if not output.finished:
            return 0
        row.finish_s = now
        if answer.finish_reason not in ("stop", "length"):
            row.status, row.error = "failed", f"ended by {answer.finish_reason}"
        return 1


def _line(error: BaseException) -> str:
    """The first sentence or so of an error that may run over pages."""
    return " ".join(str(error).split())[:300] or type(error).__name__
