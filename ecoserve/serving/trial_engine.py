"""The one engine of ``ecoserve try``: vLLM in this process, from the flags of ``vllm serve``; what it can do, and what
it is.

Schedulers alternate on it (:func:`~ecoserve.serving.engine_run.set_policy`), so that all rows have the same weights,
kernels and KV blocks, and vLLM starts once.
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ecoserve.errors import ConfigError, RunError
from ecoserve.serving.adapter.policies import Level, UnknownToFullError, choose_level
from ecoserve.serving.adapter.server import check_kv_blocks, check_model, configuration, cpu_defaults, fill_in
from ecoserve.serving.adapter.vllm_flags import line_of, parse
from ecoserve.serving.core.policies import DEFAULT, ORDER
from ecoserve.serving.core.settings import CONFIG_KEY
from ecoserve.serving.engine_run import EngineRunSettings, run_on, set_policy
from ecoserve.serving.forward_run import time_decodes
from ecoserve.serving.simulate.gpu.shapes import ModelShape, as_config, load_shape

#: Flags that ``try`` decides or cannot compare under, as vLLM's parser names them, and what it takes for not given.
_REFUSED: Final[dict[str, tuple[Any, ...]]] = {
    "scheduler_cls": (None,),
    "scheduling_policy": ("fcfs",),
    "kv_transfer_config": (None,),
    "data_parallel_size": (1, None),
    "headless": (False, None),
}
#: vLLM's model_type of the architectures that shapes have.
_MODEL_TYPES: Final = {
    "LlamaForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "MixtralForCausalLM": "mixtral",
    "Qwen3MoeForCausalLM": "qwen3_moe",
}
#: Requests that saturate an engine, for each of its seats.
_PER_SEAT: Final = 4
_MOST: Final = 4096


@dataclass(frozen=True, slots=True)
class Planned:
    """An engine that is not started: vLLM's configuration, and the level that serves it and why."""

    config: Any
    level: Level
    why: str
    #: scheduler settings of the operator's ``--additional-config``
    scheduler: dict[str, Any]

    @property
    def policy(self) -> str:
        return DEFAULT if self.level == "full" else ORDER


def plan_engine(model: str, flags: Sequence[str], work: Path) -> Planned:
    """Read ``flags`` as ``vllm serve`` would; nothing slow is started. ``work``: where a built-in shape's config goes.

    Raises:
        ConfigError: naming the flag, or the model, that cannot be used.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what vLLM imports, and nothing an operator could act on
        args = parse(model, flags)
    for name, free in _REFUSED.items():
        if getattr(args, name, free[0]) not in free:
            raise ConfigError("cannot be tried: `try` decides it", where=f"--{name.replace('_', '-')}")
    if not Path(model).exists() and args.load_format == "dummy" and (shape := _built_in(model)) is not None:
        args.model = str(_write_config(shape, work))
    elif not Path(model).exists() and "/" not in model and _built_in(model) is not None:
        raise ConfigError("a shape has no weights", where=model, fix="give --load-format dummy, or a model folder")
    check_model(args.model)
    fill_in(args, DEFAULT, replay=True)
    args.scheduler_cls = None  # vLLM's own until a row sets its scheduler
    own = {k: v for k, v in args.additional_config[CONFIG_KEY].items() if k != "policy"}
    if not args.tokenizer and Path(args.model).is_dir() and not _has_tokenizer(Path(args.model)):
        args.skip_tokenizer_init = True
    args.use_tqdm_on_load = False
    cpu_defaults(args)
    if args.tensor_parallel_size == args.pipeline_parallel_size == 1 and args.distributed_executor_backend is None:
        args.distributed_executor_backend = "uni"
    config = configuration(args, flags)
    check_kv_blocks(config)
    level, why = choose_level("auto", DEFAULT, config)
    return Planned(config, level, why, own)


def _built_in(model: str) -> ModelShape | None:
    try:
        return load_shape(model)
    except ConfigError:
        return None


def _write_config(shape: ModelShape, work: Path) -> Path:
    config = as_config(shape)
    if shape.qkv_bias:
        config["architectures"] = ["Qwen2ForCausalLM"]
    config |= {"model_type": _MODEL_TYPES[config["architectures"][0]], "bos_token_id": 1, "eos_token_id": 2}
    folder = work / shape.name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    return folder


def _has_tokenizer(folder: Path) -> bool:
    names = ("tokenizer*", "vocab*", "*.model", "tekken.json", "*.gguf")
    return any(any(folder.glob(name)) for name in names)


def start(planned: Planned) -> tuple[Any, Planned]:
    """The engine, and the plan with the level that the loaded model really has.

    Raises:
        RunError: with vLLM's line, if it does not start.
    """
    from vllm import LLMEngine

    try:
        engine = LLMEngine.from_vllm_config(planned.config, disable_log_stats=True)
    except (ValueError, OSError, TypeError, RuntimeError, AssertionError) as error:
        raise RunError(line_of(error), where="vLLM's engine") from error
    try:
        set_policy(engine, planned.policy, planned.scheduler)
    except UnknownToFullError as error:
        planned = Planned(planned.config, "order", error.what, {})
    return engine, planned


def facts(engine: Any) -> dict[str, Any]:
    """What really runs: model runner, scheduler mode, GPU (None on a CPU), torch; KV blocks and limits."""
    import torch

    core, config = engine.engine_core.engine_core, engine.vllm_config
    runner = engine.collective_rpc(_runner_of)[0]
    steps = core.batch_queue_size
    mode = "async" if config.scheduler_config.async_scheduling else "sync"
    return {
        "model_runner": f"{'V2' if core.scheduler.use_v2_model_runner else 'V1'} ({runner})",
        "scheduler_mode": f"{mode}, {steps} step{'s' if steps > 1 else ''} in flight",
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        "gpus": config.parallel_config.tensor_parallel_size,
        "asynchronous": bool(config.scheduler_config.async_scheduling),
        "blocks": int(config.cache_config.num_gpu_blocks) - 1,
        "block_size": int(core.scheduler.block_size),
        "max_num_seqs": int(config.scheduler_config.max_num_seqs),
        "max_num_batched_tokens": int(config.scheduler_config.max_num_batched_tokens),
        "max_model_len": int(config.model_config.max_model_len),
        "prefix_caching": bool(config.cache_config.enable_prefix_caching),
        "enforce_eager": bool(config.model_config.enforce_eager),
    }


def _runner_of(worker: Any) -> str:
    runner = type(worker.model_runner)
    return f"{runner.__module__}.{runner.__qualname__}"


@dataclass(frozen=True, slots=True)
class Capacity:
    """What vLLM's default does with more requests than it can take: ``rps`` requests a second, of which each stays
    ``stay_s`` seconds once it has started. ``wall``: seconds of waiting for a second of the run's clock.
    """

    rps: float
    stay_s: float
    wall: float


def calibrate(engine: Any, settings: EngineRunSettings, longest: int, most_s: float) -> Capacity:
    """Run more requests than fit, all at once, under vLLM's default, until none waits or ``most_s`` have passed.

    A response counts by the share of it that is done. Raises RunError if nothing was.
    """
    scheduler_limits = engine.vllm_config.scheduler_config
    requests = min(_MOST, _PER_SEAT * scheduler_limits.max_num_seqs)
    settings = settings.model_copy(
        update={"policy": "vllm", "lengths": "none", "rate_rps": float("inf"), "requests": requests}
    )
    load = settings.load(longest)
    set_policy(engine, "vllm", {})
    scheduler = engine.engine_core.engine_core.scheduler
    begun, clock = time.monotonic(), 0.0

    def enough(now: float) -> bool:
        nonlocal clock
        clock = now
        return time.monotonic() - begun > most_s or not scheduler.waiting

    rows = run_on(engine, settings, load, enough=enough).rows
    wall = time.monotonic() - begun
    done = sum(min(1.0, row.output_tokens / r.response_tokens) for row, r in zip(rows, load, strict=True))
    running = sum(row.first_token_s is not None and row.finish_s is None for row in rows)
    if not done or not clock:
        raise RunError(f"no token came in {wall:.0f} s", where="calibration", fix="give more --minutes")
    rate = done / clock
    return Capacity(rate, max(1, running) / rate, wall / clock)


def step_times(engine: Any, batches: Sequence[int], contexts: Sequence[int]) -> list[tuple[int, int, float]]:
    """(decoding requests, mean tokens of their contexts, seconds of a step) of batches that fit, under vLLM's default;
    prompts have ``contexts`` tokens.
    """
    set_policy(engine, "vllm", {})
    return [found for b in batches for c in contexts if (found := time_decodes(engine, b, c)) is not None]
