"""A policy as vLLM's engine arguments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ecoserve.errors import ConfigError
from ecoserve.serving.core.policies import POLICIES, STOCK_POLICIES
from ecoserve.serving.core.settings import CONFIG_KEY, SchedulerSettings


def policy_arguments(policy: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """vLLM's engine arguments that make it run ``policy``, counting.

    Args:
        policy: a policy of ours, with ``settings`` of the scheduler, or one of vLLM's own.

    Raises:
        ConfigError: for a policy or setting that is not known.
    """
    if policy in POLICIES:
        own = {"policy": policy, **settings}
        SchedulerSettings.parse(own)
        return {
            "scheduler_cls": "ecoserve.serving.adapter.scheduler.EcoServeScheduler",
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
