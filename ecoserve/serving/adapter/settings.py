"""Settings of the scheduler, as they come from vLLM's ``--additional-config '{"ecoserve": {...}}'``.

A policy's name stands for a row of the table in docs/architecture.md; a knob given beside it replaces that part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from ecoserve.errors import ConfigError
from ecoserve.options import checked
from ecoserve.serving.core.kv.base import ForecastName, KVKnobs, KVPolicyName
from ecoserve.serving.core.orderings import OrderingKnobs, OrderingName


class PolicyRow(NamedTuple):
    """A row of the policy table: its parts."""

    kv_policy: KVPolicyName
    ordering: OrderingName
    groups: bool = False
    correction: bool = False


#: Policies that run on our scheduler.
POLICIES: Final[dict[str, PolicyRow]] = {
    "ecoserve": PolicyRow("pooled", "slo", correction=True),
    "ecoserve-exact": PolicyRow("exact", "srpt"),
    "ecoserve-d": PolicyRow("exact", "fcfs"),
    "ecoserve-sd": PolicyRow("exact", "fcfs", groups=True),
    "ecoserve-sdo": PolicyRow("exact", "paper", groups=True),
    "ecoserve-paper": PolicyRow("pipelined", "paper", groups=True),
    "orca": PolicyRow("max", "fcfs"),
}

#: Policies that are vLLM itself.
STOCK_POLICIES: Final = ("vllm", "vllm-watermark", "vllm-priority")

#: Key of our settings in vLLM's additional config.
CONFIG_KEY: Final = "ecoserve"


class SchedulerSettings(BaseModel):
    """Every setting of :class:`~ecoserve.serving.adapter.scheduler.EcoServeScheduler`, its default and its bounds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    policy: str = Field("ecoserve", description="a row of the policy table: " + ", ".join(POLICIES))
    kv_policy: KVPolicyName | None = Field(None, description="KV policy in place of the policy's own")
    ordering: OrderingName | None = Field(None, description="ordering in place of the policy's own")
    epsilon: float = Field(0.1, gt=0, le=0.5, description="pooled: share of the batch's futures that may overflow")
    forecast: ForecastName = Field(
        "spread",
        description="pooled: mean + spread (1.3 standard deviations at 0.1), sampled joint scenarios, or each request "
        "padded to its quantile",
    )
    reaction_steps: float = Field(30.0, gt=0, description="pooled: uncertainty farther ahead than this counts less")
    rho: float | None = Field(
        None, ge=0, le=1, description="pooled: common share of the lengths' spread; None: as measured on finished ones"
    )
    groups: bool | None = Field(None, description="time-synced groups of generations, in place of the policy's own")
    group_ratio: float = Field(1.25, gt=1, le=16, description="groups: upper over lower edge of a bin of lengths")
    correction: bool | None = Field(
        None, description="correct predictions by finished responses, in place of the policy's own"
    )
    correction_rate: float = Field(0.02, gt=0, le=0.2, description="correction: step of the levels per response")
    target_forward_tokens: int | None = Field(
        None, ge=1, description="prompts fill each forward up to so many tokens; None: vLLM's max_num_batched_tokens"
    )
    event_log: Path | None = Field(None, description="file for one JSON line per event")
    event_log_mb: float = Field(256.0, gt=0, description="the log ends when it is this large")
    padding: float = Field(0.15, ge=0, le=4, description="exact, pipelined: added to the predicted length, as a share")
    buffer_tokens: int = Field(
        16, ge=0, le=65536, description="pipelined: a guest is to be gone so many tokens before its host arrives"
    )
    buffer_quantile: float | None = Field(
        None, gt=0, lt=1, description="pipelined: in place of buffer_tokens, the guest's length at this quantile"
    )
    lending_depth: int = Field(3, ge=1, le=16, description="pipelined: levels of guests of guests")
    relend: bool = Field(True, description="pipelined: lend a stretch again after its guest has left")
    quantile: float = Field(
        0.8,
        gt=0,
        lt=1,
        description="pooled: quantile of the length that the books call promised, or that padded pads to",
    )
    reserve: float = Field(0.02, ge=0, lt=0.5, description="share of the KV that admission leaves free")
    waiting_share: float = Field(
        0.25, gt=0, le=1, description="the most KV that decodes which wait for their promise may hold, as a share"
    )
    paused_share: float = Field(
        0.02,
        ge=0,
        le=1,
        description="the most KV that decodes paused in a shortage may hold; beyond it one starts anew",
    )
    headroom: float = Field(
        0.1, ge=0, lt=1, description="pooled: share of the KV that the longest requests leave free, shorter ones less"
    )
    ageing_tokens_per_s: float = Field(
        5.0, ge=0, le=1e6, description="sjf, srpt, slo: size that a second of waiting makes up for"
    )
    ordering_quantile: float | None = Field(
        None, gt=0, lt=1, description="orderings by length: this quantile in place of the mean"
    )
    max_wait_s: float = Field(
        120.0, gt=0, description="hrrn, paper, slo: nobody is held back longer than this for his length or deadline"
    )
    longer_first: bool = Field(True, description="paper: the longer of two in the same ranges goes first")
    resume_steps: int = Field(
        4, ge=1, le=256, description="a paused decode goes on if this many steps' blocks are free"
    )
    history_window: int = Field(
        1000, ge=8, le=100_000, description="finished lengths remembered for want of a prediction"
    )
    check_every_step: bool = Field(False, description="recount the ledger after every step (tests)")

    @field_validator("target_forward_tokens", mode="before")
    @classmethod
    def _measured(cls, value: Any) -> Any:
        if value == "auto":
            raise ValueError("auto is for simulated GPUs; ecoserve calibrate-forward measures this machine's")
        return value

    @model_validator(mode="after")
    def _known(self) -> SchedulerSettings:
        if self.policy not in POLICIES:
            raise ValueError(f"policy {self.policy!r} is none of {', '.join(POLICIES)}")
        return self

    @classmethod
    def from_config(cls, additional_config: Any) -> SchedulerSettings:
        """Read our part of vLLM's additional config.

        Raises:
            ConfigError: naming the setting that is wrong.
        """
        own = additional_config.get(CONFIG_KEY, {}) if isinstance(additional_config, Mapping) else {}
        return cls.parse(own)

    @classmethod
    def parse(
        cls, values: Any, where: Callable[[str], str] = lambda name: f"ecoserve scheduler setting {name}"
    ) -> SchedulerSettings:
        """Validate ``values``; ``where`` is how the user wrote a setting.

        Raises:
            ConfigError: naming the setting that is wrong, and what is allowed.
        """
        return checked(cls, values, where)

    def knobs(self) -> KVKnobs:
        """The KV policy and its knobs."""
        return KVKnobs(
            policy=self.kv_policy or POLICIES[self.policy].kv_policy,
            epsilon=self.epsilon,
            headroom=self.headroom,
            forecast=self.forecast,
            buffer_tokens=self.buffer_tokens,
            buffer_quantile=self.buffer_quantile,
            lending_depth=self.lending_depth,
            relend=self.relend,
            padding=self.padding,
            quantile=self.quantile,
            reserve=self.reserve,
            waiting_share=self.waiting_share,
        )

    def ordering_knobs(self) -> OrderingKnobs:
        """The ordering of both queues and its knobs."""
        return OrderingKnobs(
            name=self.ordering or POLICIES[self.policy].ordering,
            ageing=self.ageing_tokens_per_s,
            quantile=self.ordering_quantile,
            max_wait_s=self.max_wait_s,
            longer_first=self.longer_first,
        )

    def grouped(self) -> bool:
        """Whether generations are admitted in time-synced groups."""
        return POLICIES[self.policy].groups if self.groups is None else self.groups

    def corrected(self) -> bool:
        """Whether predictions are corrected."""
        return POLICIES[self.policy].correction if self.correction is None else self.correction


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
