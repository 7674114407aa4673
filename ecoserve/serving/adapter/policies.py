"""A policy as vLLM's engine arguments, and what our scheduler supports; everything else is refused at start.

Supported: one full-attention KV cache group, prefix caching, chunked prefill, asynchronous scheduling, tensor and data
parallelism, n > 1, aborts, priorities, structured output, LoRA, streaming. The rest is refused until it is tested.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NoReturn

from ecoserve.errors import ConfigError
from ecoserve.serving.core.policies import POLICIES, STOCK_POLICIES
from ecoserve.serving.core.settings import CONFIG_KEY, SchedulerSettings

SCHEDULER: Final = "ecoserve.serving.adapter.scheduler.EcoServeScheduler"
MIDDLEWARE: Final = "ecoserve.serving.adapter.middleware.PredictionMiddleware"
REPLAY: Final = "ecoserve.serving.adapter.replay:ReplayLogitsProcessor"


def policy_arguments(policy: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """vLLM's engine arguments for ``policy``, counting: ours, with ``settings`` of the scheduler, or vLLM's own.

    Raises:
        ConfigError: for a policy or setting that is not known.
    """
    if policy in POLICIES:
        own = {"policy": policy, **settings}
        SchedulerSettings.parse(own)
        return {
            "scheduler_cls": SCHEDULER,
            "additional_config": {CONFIG_KEY: own},
        }
    if policy not in STOCK_POLICIES:
        raise ConfigError(f"policy {policy!r} is not known", fix=f"one of {', '.join((*POLICIES, *STOCK_POLICIES))}")
    out: dict[str, Any] = {"scheduler_cls": "ecoserve.serving.adapter.counting.CountingScheduler"}
    if policy == "vllm-watermark":
        out["watermark"] = 0.05
    if policy == "vllm-priority":
        out["scheduling_policy"] = "priority"
    return out


def refuse_unsupported(vllm_config: Any, kv_cache_config: Any) -> None:
    """Raise :class:`ConfigError` naming the first feature that is not supported, and the way out."""
    from vllm.v1.kv_cache_interface import FullAttentionSpec

    refuse_configuration(vllm_config)
    groups = kv_cache_config.kv_cache_groups
    if len(groups) != 1 or type(groups[0].kv_cache_spec) is not FullAttentionSpec:
        _refuse(
            "a KV cache other than one full-attention group (sliding window, Mamba, MLA, hybrid)",
            "serve this model with vLLM's own scheduler",
        )


def refuse_configuration(vllm_config: Any) -> None:
    """The part of :func:`refuse_unsupported` that is known before the model is loaded."""
    parallel = vllm_config.parallel_config
    checks = [
        (vllm_config.speculative_config is not None, "speculative decoding", "drop --speculative-config"),
        (vllm_config.kv_transfer_config is not None, "KV connectors", "drop --kv-transfer-config"),
        (getattr(vllm_config, "ec_transfer_config", None) is not None, "encoder-cache connectors", "drop them"),
        (parallel.pipeline_parallel_size > 1, "pipeline parallelism", "use --tensor-parallel-size instead"),
        (
            parallel.decode_context_parallel_size > 1 or parallel.prefill_context_parallel_size > 1,
            "context parallelism",
            "set it to 1",
        ),
        (vllm_config.model_config.runner_type != "generate", "a model that does not generate", "leave ecoserve out"),
        (
            vllm_config.model_config.supports_multimodal_inputs,
            "input other than text",
            "serve the model's text part with --language-model-only",
        ),
        (vllm_config.model_config.is_encoder_decoder, "an encoder-decoder model", "leave ecoserve out"),
    ]
    for unsupported, what, fix in checks:
        if unsupported:
            _refuse(what, fix)


def _refuse(what: str, fix: str) -> NoReturn:
    raise ConfigError(f"{what} is not supported by EcoServeScheduler", where="vLLM configuration", fix=fix)
