"""One run on a vLLM engine in this process.

Every policy gets the same requests at the same times, with the same ``max_tokens``; responses have their recorded
lengths (:mod:`~ecoserve.serving.adapter.replay`), which the scheduler does not see unless ``lengths`` is ``true``.
Latencies count from a request's arrival in the load, so that time before it was handed over counts as waiting.
"""

from __future__ import annotations

import gc
import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from heapq import heappop, heappush
from typing import Any, Literal

import numpy as np
from pydantic import Field

from ecoserve.errors import ConfigError, RunError
from ecoserve.serving.adapter.policies import REPLAY, policy_arguments
from ecoserve.serving.core.counters import Counters
from ecoserve.serving.runs import EngineTotals, KVSeries, RequestRow, RunResult
from ecoserve.serving.workload import PLAIN_IDS, LoadRequest, LoadSettings


class SchedulerWatch:
    """Times and counts one ``CountingScheduler`` of this process, from now on; changes no decision.

    It is put onto the object itself, so that the measured class is the one that serves. KV shares are averaged over
    ``clock``, seconds.
    """

    def __init__(self, scheduler: Any, clock: Callable[[], float] = time.monotonic) -> None:
        self._scheduler = scheduler
        self._clock = clock
        self.schedule_s: list[float] = []
        self.update_s: list[float] = []
        #: internal request id -> preemptions, of requests that have left the scheduler
        self.preemptions_of: dict[str, int] = {}
        self.restart()
        scheduler.schedule = self._timed(scheduler.schedule, self.schedule_s)
        scheduler.update_from_output = self._timed(scheduler.update_from_output, self.update_s, self._sample)
        scheduler._free_request = self._noting(scheduler._free_request)

    def restart(self) -> None:
        self._before = asdict(self._scheduler.counters)
        self.schedule_s.clear()
        self.update_s.clear()
        self.preemptions_of.clear()
        begin = self._clock()
        self._kv = KVSeries(self._scheduler.usable_blocks, start_s=begin)
        self._last = (begin, (0, 0, 0))

    def totals(self) -> EngineTotals:
        now = asdict(self._scheduler.counters)
        new = Counters(**{name: value - self._before[name] for name, value in now.items()})
        return EngineTotals.of([new], [self._kv], schedule_s=tuple(self.schedule_s), update_s=tuple(self.update_s))

    def _sample(self) -> None:
        now = self._clock()
        then, (held, reserved, lent) = self._last
        self._kv.add(then, now - then, held, reserved, lent, None)
        g = self._scheduler.gauges()
        self._last = (now, (g.held_blocks, g.reserved_blocks, g.lent_blocks))

    def _timed(
        self, call: Callable[..., Any], into: list[float], after: Callable[[], None] | None = None
    ) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            begun = time.perf_counter()
            result = call(*args, **kwargs)
            into.append(time.perf_counter() - begun)
            if after is not None:
                after()
            return result

        return timed

    def _noting(self, free: Callable[..., Any]) -> Callable[..., Any]:
        def noting(request: Any, *args: Any, **kwargs: Any) -> Any:
            self.preemptions_of[request.request_id] = request.num_preemptions
            return free(request, *args, **kwargs)

        return noting


Progress = Callable[[int, int], None]


class EngineRunSettings(LoadSettings):
    model: str = Field(description="model served by an engine in this process: a folder or hub id")
    policy: str = Field("ecoserve", description="scheduling policy")
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
    """Start an engine, run one load through it, and shut it down; ``progress`` is called with (requests done, in all).

    Raises InputError for a trace, policy or setting that cannot be used; RunError if the engine fails.
    """
    if settings.clock == "cpu" and settings.threads != 1:
        raise ConfigError("clock cpu needs threads 1", fix="several threads' CPU time adds up to more than time passes")
    arguments = engine_arguments(settings)
    longest = settings.max_model_len - settings.max_tokens if settings.max_model_len else None
    load = settings.load(longest or 2**31)
    engine = start_engine(arguments, settings.threads)
    try:
        return run_on(engine, settings, load, progress)
    finally:
        stop_engine(engine)


def run_on(
    engine: Any,
    settings: EngineRunSettings,
    load: Sequence[LoadRequest],
    progress: Progress | None = None,
    enough: Callable[[float], bool] | None = None,
) -> RunResult:
    """Run a load through an idle engine. ``enough`` is asked after each step, with the seconds since the load began;
    at its yes what is open is aborted: such rows have no end.
    """
    rows, totals = _Drive(engine, settings, load, progress).run(enough or (lambda now: False))
    labels = {"engine": "in-process", "blocks": settings.blocks, "arrivals": settings.arrivals, "clock": settings.clock}
    return settings.result(rows, totals, labels)


def set_policy(engine: Any, policy: str, settings: Mapping[str, Any]) -> None:
    """Give an idle engine the scheduler of ``policy``, made as the engine made its own, with an empty prefix cache.

    Raises:
        ConfigError: for a policy or setting that is not known, or a configuration that the scheduler does not know.
    """
    from vllm.v1.core.kv_cache_utils import resolve_kv_cache_block_sizes

    core, config = engine.engine_core.engine_core, engine.vllm_config
    while core.scheduler.has_requests() or core.batch_queue:
        engine.step()  # the model runner forgets what has ended
    arguments = policy_arguments(policy, settings)
    config.scheduler_config.scheduler_cls = arguments["scheduler_cls"]
    config.scheduler_config.policy = arguments.get("scheduling_policy", "fcfs")
    config.additional_config = {**config.additional_config, **arguments.get("additional_config", {})}
    kv_cache_config = core.scheduler.kv_cache_config
    block_size, hash_block_size = resolve_kv_cache_block_sizes(kv_cache_config, config)
    core.scheduler = config.scheduler_config.get_scheduler_cls()(
        vllm_config=config,
        kv_cache_config=kv_cache_config,
        structured_output_manager=core.structured_output_manager,
        block_size=block_size,
        hash_block_size=hash_block_size,
        log_stats=core.log_stats,
    )


def engine_arguments(settings: EngineRunSettings) -> dict[str, Any]:
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


def start_engine(arguments: dict[str, Any], threads: int | None) -> Any:
    """vLLM's ``LLMEngine`` in this process, on ``threads`` CPU threads; ConfigError with vLLM's message."""
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    prepare(threads)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what vLLM imports, and nothing an operator could act on
            from vllm import EngineArgs, LLMEngine

            return LLMEngine.from_engine_args(EngineArgs(**arguments))
    except (ValueError, OSError, TypeError) as error:
        raise ConfigError(_line(error), where=f"vLLM engine for {arguments['model']}") from error


def prepare(threads: int | None) -> None:
    """Set what vLLM reads from the environment for an engine in this process; before vLLM is imported."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")  # stdout is for results
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    if threads is not None:
        # Threads that wait for each other spin: beside other processes, more of them can be twenty times slower.
        os.environ["OMP_NUM_THREADS"] = str(threads)
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        import torch

        torch.set_num_threads(threads)


def stop_engine(engine: Any) -> None:
    """Shut down an engine of :func:`start_engine`; the process can start another."""
    engine.engine_core.shutdown()
    del engine
    gc.collect()


class _WallClock:
    def now(self) -> float:
        return time.monotonic()

    def wait_until(self, when: float) -> None:
        time.sleep(max(0.0, when - self.now()))


class _CpuClock:
    """Seconds that this process works, so that a shared machine's other work does not count; waiting jumps ahead."""

    def __init__(self) -> None:
        self._jumped = 0.0

    def now(self) -> float:
        return time.process_time() + self._jumped

    def wait_until(self, when: float) -> None:
        self._jumped += max(0.0, when - self.now())


class _Drive:
    def __init__(
        self, engine: Any, settings: EngineRunSettings, load: Sequence[LoadRequest], progress: Progress | None
    ) -> None:
        self.engine = engine
        self.settings = settings
        self.progress = progress or (lambda done, total: None)
        self.limit = int(engine.model_config.max_model_len)
        self.clock = _CpuClock() if settings.clock == "cpu" else _WallClock()
        self.watch = SchedulerWatch(engine.engine_core.engine_core.scheduler, self.clock.now)
        prompts = Prompts(engine, self.limit - settings.max_tokens, settings.seed)
        #: without a tokenizer vLLM does not know which token ends a response
        self.end = None if prompts.tokenizer else _end(engine.model_config)
        asked = {r.name: (r, prompts.of(r)) for r in sorted(load, key=lambda r: r.arrival_s)}
        self.rows = {name: r.row(len(prompt)) for name, (r, prompt) in asked.items()}
        self.pending = [(r.arrival_s, i, r, p) for i, (r, p) in enumerate(asked.values()) if r.after is None]
        self.following: dict[str, list[tuple[LoadRequest, list[int]]]] = {}
        for r, prompt in asked.values():
            if r.after is not None:
                self.following.setdefault(r.after, []).append((r, prompt))
        self.internal: dict[str, str] = {}
        self.begin = self.clock.now()

    def run(self, enough: Callable[[float], bool]) -> tuple[list[RequestRow], EngineTotals]:
        self._warm_up()
        total, done = len(self.rows), 0
        self.begin = begin = self.clock.now()
        while self.pending or self.engine.has_unfinished_requests():
            now = self.clock.now() - begin
            while self.pending and self.pending[0][0] <= now:
                done += self._hand_over(*heappop(self.pending)[2:])
            if not self.engine.has_unfinished_requests():
                if self.pending:
                    self.clock.wait_until(begin + self.pending[0][0])
                continue
            outputs = self.engine.step()
            now = self.clock.now() - begin
            done += sum(self._note(output, now) for output in outputs)
            self.progress(done, total)
            if enough(now):
                self.engine.abort_request([name for name in self.internal if self.rows[name].finish_s is None])
                break
        totals = self.watch.totals()
        for name, internal in self.internal.items():
            self.rows[name].preemptions = self.watch.preemptions_of.get(internal, 0)
        return list(self.rows.values()), totals

    def _warm_up(self) -> None:
        """The first steps of an engine are slow and belong to no request of the load."""
        prompt = self.pending[0][3][:8] if self.pending else [1]
        self._add("warm-up", prompt, None, 2)
        while self.engine.has_unfinished_requests():
            self.engine.step()
        self.engine.reset_prefix_cache()
        self.watch.restart()

    def _ended(self, name: str, now: float) -> None:
        """In a closed loop the next turn comes when its wait is over."""
        for load, prompt in self.following.pop(name, ()):
            at = self.rows[load.name].arrival_s = now + load.think_s
            heappush(self.pending, (at, len(self.rows) + len(self.following), load, prompt))

    def _hand_over(self, load: LoadRequest, prompt: list[int]) -> int:
        """Give the request to the engine; 1 if it refuses it, and so is done with it."""
        row = self.rows[load.name]
        try:
            self.internal[load.name] = self._add(load.name, prompt, load, self.settings.max_tokens)
        except ValueError as error:
            row.status, row.error = "rejected", _line(error)
            self._ended(load.name, row.arrival_s)
            return 1
        return 0

    def _add(self, name: str, prompt: list[int], load: LoadRequest | None, max_tokens: int) -> str:
        from vllm import SamplingParams, TokensPrompt
        from vllm.sampling_params import RequestOutputKind

        extra = load.extra_args(replay=True) if load else None
        priority = load.priority(self.settings.policy, max_tokens) if load else 0
        params = SamplingParams(
            temperature=self.settings.temperature,
            max_tokens=max_tokens,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
            extra_args=extra,
            stop_token_ids=self.end,
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
        self._ended(output.request_id, now)
        if answer.finish_reason not in ("stop", "length"):
            row.status, row.error = "failed", f"ended by {answer.finish_reason}"
        return 1


def _line(error: BaseException) -> str:
    """The first sentence or so of an error that may run over pages."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def _end(model_config: Any) -> list[int]:
    """The token that ends a response, as the model's configuration has it; of several the first."""
    end = model_config.hf_config.eos_token_id
    return [end[0] if isinstance(end, list) else 0 if end is None else end]


class Prompts:
    """Token ids of a load's prompts: its chats by the served model's chat template, as an API server would make them.

    Prompts of more than ``longest`` tokens are cut there. Of traces with lengths only, random words of the right
    number; of an engine without a tokenizer, random tokens that have no meaning.
    """

    def __init__(self, engine: Any, longest: int, seed: int) -> None:
        if longest < 1:
            raise ConfigError("max_tokens leaves no room for a prompt", fix="lower it, or raise max_model_len")
        self.tokenizer = None if engine.model_config.skip_tokenizer_init else engine.get_tokenizer()
        self._longest = longest
        self._rng = np.random.default_rng(seed)
        if self.tokenizer is None:
            self._words = np.arange(*PLAIN_IDS)
        else:
            special = set(self.tokenizer.all_special_ids)
            self._words = np.array([i for i in range(len(self.tokenizer)) if i not in special])

    def of(self, request: LoadRequest) -> list[int]:
        chat = request.messages
        if not chat or self.tokenizer is None:
            count = min(request.prompt_tokens, self._longest)
            return [int(i) for i in self._rng.choice(self._words, count)]
        if getattr(self.tokenizer, "chat_template", None):
            text = self.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
            ids = self.tokenizer.encode(text, add_special_tokens=False)
        else:
            ids = self.tokenizer.encode("\n".join(m["content"] for m in chat))
        if not ids:
            raise RunError(f"the tokenizer makes nothing of the prompt of {request.name}")
        return list(ids[: self._longest])
