"""A policy as vLLM's engine arguments, and which configurations level ``full`` knows.

Level ``full`` is our scheduler: one full-attention KV cache group, prefix caching, chunked prefill, asynchronous
scheduling, tensor and data parallelism, n > 1, aborts, priorities, structured output, LoRA, streaming.
:func:`unknown_to_full` is the one list of what it does not know; level ``order`` serves that.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

from ecoserve.errors import ConfigError
from ecoserve.serving.adapter.contract import FULL, full_knows, vllm_version
from ecoserve.serving.core.policies import DEFAULT, ORDER, POLICIES, STOCK_POLICIES
from ecoserve.serving.core.settings import CONFIG_KEY, SchedulerSettings

Level = Literal["full", "order"]

SCHEDULER: Final = "ecoserve.serving.adapter.scheduler.EcoServeScheduler"
MIDDLEWARE: Final = "ecoserve.serving.adapter.middleware.PredictionMiddleware"
REPLAY: Final = "ecoserve.serving.adapter.replay:ReplayLogitsProcessor"
_WHERE: Final = "vLLM configuration"
_FIX: Final = "--level order with the default policy serves it"


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
    if policy in ("vllm-priority", ORDER):
        out["scheduling_policy"] = "priority"
    return out


class UnknownToFullError(ConfigError):
    """Level ``full`` was asked for, or tried, with a configuration that it does not know."""


def unknown_to_full(vllm_config: Any, kv_cache_config: Any = None) -> str | None:
    """The first thing in a configuration that level ``full`` does not know; None: it knows all of it.

    Without ``kv_cache_config``, before the model is loaded, the KV cache's groups are what the model's configuration
    lets expect.
    """
    parallel, model = vllm_config.parallel_config, vllm_config.model_config
    found = {
        "speculative decoding": vllm_config.speculative_config is not None,
        "a KV connector": vllm_config.kv_transfer_config is not None,
        "an encoder-cache connector": getattr(vllm_config, "ec_transfer_config", None) is not None,
        "pipeline parallelism": parallel.pipeline_parallel_size > 1,
        "context parallelism": max(parallel.decode_context_parallel_size, parallel.prefill_context_parallel_size) > 1,
        "a model that does not generate": model.runner_type != "generate",
        "input other than text": model.supports_multimodal_inputs,
        "an encoder-decoder model": model.is_encoder_decoder,
    }
    unknown = next((what for what, there in found.items() if there), None)
    if unknown is not None:
        return unknown
    return _expected_kv(vllm_config) if kv_cache_config is None else _kv(kv_cache_config)


def _kv(kv_cache_config: Any) -> str | None:
    from vllm.v1.kv_cache_interface import FullAttentionSpec

    kinds = [type(group.kv_cache_spec) for group in kv_cache_config.kv_cache_groups]
    if kinds == [FullAttentionSpec]:
        return None
    return f"a KV cache of {' + '.join(kind.__name__ for kind in kinds) or 'no group'}"


def _expected_kv(vllm_config: Any) -> str | None:
    """The kind of KV cache besides full attention that the model will have."""
    model = vllm_config.model_config
    layers = getattr(model.hf_text_config, "layer_types", None) or ()
    found = {
        "MLA": model.use_mla,
        "Mamba or linear attention": model.is_hybrid or model.is_attention_free,
        "chunked local attention": model.attention_chunk_size is not None,
        "sliding-window attention": vllm_config.cache_config.sliding_window is not None
        or any("sliding" in str(layer) for layer in layers),
    }
    return next((what for what, there in found.items() if there), None)


def refuse_unsupported(vllm_config: Any, kv_cache_config: Any) -> None:
    """Raise :class:`UnknownToFullError` naming what level ``full`` does not know of a loaded model's configuration."""
    if (what := unknown_to_full(vllm_config, kv_cache_config)) is not None:
        raise UnknownToFullError(_not_known(what), where=_WHERE, fix=_FIX)


def choose_level(asked: Level | Literal["auto"], policy: str, vllm_config: Any) -> tuple[Level, str]:
    """The level that serves ``policy`` with a configuration, and why, in a few words; before the model is loaded.

    Raises:
        UnknownToFullError: if only ``full`` will do (asked for, or a compared policy) and it does not know it.
    """
    if asked == "order":
        return "order", "asked for"
    version = vllm_version()
    unknown = unknown_to_full(vllm_config) if full_knows(version) else f"vLLM {version} (tested: {FULL})"
    if unknown is None:
        return "full", "all of the configuration is known to it"
    if asked == "full" or policy != DEFAULT:
        raise UnknownToFullError(_not_known(unknown), where=_WHERE, fix=_FIX)
    return "order", _not_known(unknown)


def _not_known(what: str) -> str:
    return f"{what} is not known to level full"
