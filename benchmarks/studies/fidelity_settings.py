"""Engine arguments of a logged vLLM run, with vLLM's defaults for those that were not given.

What changes a run and is not modelled is refused in one line; what is known to matter little is a note.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from ecoserve.errors import ConfigError

#: vLLM's defaults where a program makes an engine without options (``SchedulerConfig``).
_SEQS, _BATCHED, _BLOCK, _MEMORY = 128, 2048, 16, 0.9
#: vLLM schedules asynchronously since then, unless set otherwise.
_ASYNC_SINCE: Final = (0, 14)
#: Arguments that, if set, make it a run of another kind.
_OTHER_KINDS: Final = (
    "speculative_config",
    "kv_transfer_config",
    "num_speculative_tokens",
    "cpu_offload_gb",
    "kv_offloading_size",
    "lora_modules",
    "enable_lora",
)


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """How the engine of a log was set up.

    Attributes:
        vllm: its version.
        tp: GPUs of one replica.
        expert_ranks: replicas that share out their experts; 1 where there is one replica.
        depth: steps in flight.
        kv_blocks: if they were set by hand.
        memory_share: vLLM's ``gpu_memory_utilization``.
        weights, kv_cache: how they are stored, if not as the model's configuration says.
        notes: what was set and is not modelled, in words.
    """

    vllm: str
    tp: int
    expert_ranks: int
    depth: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int | None
    block_size: int
    kv_blocks: int | None
    memory_share: float
    chunked_prefill: bool
    prefix_caching: bool
    scheduling_policy: str
    weights: Literal["fp8"] | None
    kv_cache: Literal["fp8"] | None
    notes: list[str] = field(default_factory=list)


def engine_settings(version: str, given: dict[str, Any], instance: dict[str, Any]) -> EngineSettings:
    """Settings of a run.

    Args:
        version: vLLM's.
        given: its engine arguments.
        instance: the first replica as the log's config.json describes it; may be empty.

    Raises:
        ConfigError: for what is not modelled.
    """
    numbers = re.match(r"v?(\d+)\.(\d+)", version)
    if numbers is None:
        raise ConfigError(f"{version!r} is no version of vLLM", where="vllm_version")
    for name in _OTHER_KINDS:
        if given.get(name):
            raise ConfigError(f"a run with {name} is not modelled", where="engine_kwargs")
    if int(given.get("pipeline_parallel_size") or 1) > 1:
        raise ConfigError("pipeline parallelism is not modelled", where="engine_kwargs")
    tp = int(given.get("tensor_parallel_size") or instance.get("tp_size") or 1)
    replicas = int(given.get("data_parallel_size") or 1)
    if replicas > 1 and not given.get("enable_expert_parallel"):
        raise ConfigError(f"{replicas} replicas that share no experts are several logs", where="engine_kwargs")
    if given.get("enable_expert_parallel") and tp > 1:
        raise ConfigError("experts divided whole among tensor parallel GPUs are not modelled", where="engine_kwargs")
    notes = []
    if given.get("enforce_eager"):
        notes.append("enforce_eager: steps are modelled as if graphs were captured")
    if int(given.get("long_prefill_token_threshold") or 0):
        notes.append("long_prefill_token_threshold is not modelled")
    return EngineSettings(
        vllm=version,
        tp=tp,
        expert_ranks=replicas,
        depth=_depth(given, (int(numbers[1]), int(numbers[2]))),
        max_num_seqs=int(given.get("max_num_seqs") or _SEQS),
        max_num_batched_tokens=int(given.get("max_num_batched_tokens") or _BATCHED),
        max_model_len=int(given["max_model_len"]) if given.get("max_model_len") else None,
        block_size=int(given.get("block_size") or _BLOCK),
        kv_blocks=int(given["num_gpu_blocks_override"]) - 1 if given.get("num_gpu_blocks_override") else None,
        memory_share=float(
            given.get("gpu_memory_utilization") or instance.get("npu_mem", {}).get("mem_util") or _MEMORY
        ),
        chunked_prefill=given.get("enable_chunked_prefill") is not False,
        prefix_caching=given.get("enable_prefix_caching") is not False,
        scheduling_policy=str(given.get("scheduling_policy") or "fcfs"),
        weights=_weights(given),
        kv_cache="fp8" if str(given.get("kv_cache_dtype") or "auto").startswith("fp8") else None,
        notes=notes,
    )


def _depth(given: dict[str, Any], version: tuple[int, int]) -> int:
    """Steps in flight."""
    asked = given.get("async_scheduling")
    if asked is None:
        asked = version >= _ASYNC_SINCE and given.get("distributed_executor_backend") != "ray"
    return 2 if asked else 1


def _weights(given: dict[str, Any]) -> Literal["fp8"] | None:
    if str(given.get("dtype") or "auto") not in ("auto", "bfloat16", "float16", "half"):
        raise ConfigError(f"weights of type {given['dtype']} are not modelled", where="engine_kwargs")
    method = given.get("quantization")
    if method not in (None, "fp8"):
        raise ConfigError(f"weights quantised by {method} are not modelled", where="engine_kwargs")
    return "fp8" if method else None
