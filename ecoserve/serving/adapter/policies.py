"""A policy as vLLM's engine arguments, and which configurations level ``full`` knows.

Level ``full`` is our scheduler: every layout of KV that :mod:`~ecoserve.serving.adapter.kv_layout` knows, prefix
caching, chunked prefill, asynchronous scheduling, tensor, pipeline and data parallelism, speculative decoding, KV
connectors, n > 1, aborts, priorities, structured output, LoRA, streaming. :func:`unknown_to_full` is the one list of
what it does not know; level ``order`` serves that.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

from ecoserve.errors import ConfigError
from ecoserve.serving.adapter.contract import FULL, full_knows, vllm_version
from ecoserve.serving.adapter.kv_layout import group_of
from ecoserve.serving.core.policies import BOUND, DEFAULT, POLICIES, SPLIT, STOCK_POLICIES
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
    if policy in (BOUND, SPLIT):
        raise ConfigError(f"policy {policy} is for virtual time only", fix="leave it out, or use ecoserve simulate")
    if policy not in STOCK_POLICIES:
        raise ConfigError(f"policy {policy!r} is not known", fix=f"one of {', '.join((*POLICIES, *STOCK_POLICIES))}")
    row = STOCK_POLICIES[policy]
    return {"scheduler_cls": row.scheduler, **row.arguments}


class UnknownToFullError(ConfigError):
    """Level ``full`` was asked for, or tried, with a configuration that it does not know."""


def unknown_to_full(vllm_config: Any, kv_cache_config: Any = None) -> str | None:
    """The first thing in a configuration that level ``full`` does not know; None: it knows all of it.

    Without ``kv_cache_config``, before the model is loaded, the KV cache's groups are what the model's configuration
    lets expect.
    """
    model = vllm_config.model_config
    found = {
        "an encoder-cache connector": getattr(vllm_config, "ec_transfer_config", None) is not None,
        "a model that does not generate": model.runner_type != "generate",
        "an encoder-decoder model": model.is_encoder_decoder,
    }
    unknown = next((what for what, there in found.items() if there), None)
    if unknown is not None:
        return unknown
    return _expected_kv(vllm_config) if kv_cache_config is None else _kv(vllm_config, kv_cache_config)


def _kv(vllm_config: Any, kv_cache_config: Any) -> str | None:
    groups = kv_cache_config.kv_cache_groups
    if not groups:
        return "a KV cache of no group"
    unknown = [g.kv_cache_spec for g in groups if g.host_resident or group_of(g.kv_cache_spec, vllm_config) is None]
    return f"a KV cache of {type(unknown[0]).__name__}" if unknown else _expected_kv(vllm_config)


def _expected_kv(vllm_config: Any) -> str | None:
    """What can be known before the groups are there."""
    model, cache = vllm_config.model_config, vllm_config.cache_config
    states = model.is_hybrid or model.is_attention_free
    found = {
        # A prefix hit then takes a block for a copy of a state.
        "--prefix-match-unit with Mamba or linear attention": states and cache.prefix_match_unit is not None,
        # The runner forgets of a request that leaves the batch which draft's state was the last accepted one.
        "speculative decoding with Mamba or linear attention": states and vllm_config.speculative_config is not None,
        # Blocks between the prompt and the window are given back: use is no function of tokens alone.
        "reference sliding windows (R-SWA)": model.rswa_window is not None,
        # Hits are computed again in part, in blocks that they hold already.
        "DeepSeek V4.1's replayed windows": any(a.startswith("DeepseekV41") for a in model.architectures),
        # A second pool of blocks, on the host.
        "HiSparse": vllm_config.attention_config.hisparse_config is not None,
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
