"""Settings of the scheduler, from vLLM's ``--additional-config '{"ecoserve": {...}}'``: their one definition."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from ecoserve.options import checked
from ecoserve.serving.core.policies import DEFAULT, KV_POLICIES, ORDERINGS, POLICIES, Policy

#: What our scheduler decides; an operator may change it while it serves.
Level = Literal["full", "order", "shadow"]

#: Key of our settings in vLLM's additional config.
CONFIG_KEY: Final = "ecoserve"

#: Names that a setting may have.
_NAMES: Final[dict[str, Mapping[str, object]]] = {
    "policy": POLICIES,
    "kv_policy": KV_POLICIES,
    "ordering": ORDERINGS,
}


class SchedulerSettings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    policy: str = Field(DEFAULT, description="one of " + ", ".join(POLICIES))
    kv_policy: str | None = Field(None, description="KV policy in place of the policy's own: " + ", ".join(KV_POLICIES))
    ordering: str | None = Field(None, description="ordering in place of the policy's own: " + ", ".join(ORDERINGS))
    epsilon: float = Field(
        0.1, gt=0, le=0.5, description="ranked: share of the forecast futures that may exceed the KV cache"
    )
    rho: float | None = Field(
        None, ge=0, le=1, description="ranked: correlation of the lengths' errors; None: measured on finished responses"
    )
    groups: bool | None = Field(None, description="admit decodes in time-synced groups, in place of the policy's own")
    group_ratio: float = Field(
        1.25, gt=1, le=16, description="groups: upper over lower edge of a bin of predicted lengths"
    )
    correction: bool | None = Field(
        None, description="correct predictions by finished responses, in place of the policy's own"
    )
    correction_rate: float = Field(
        0.02, gt=0, le=0.2, description="correction: learning rate of the quantile levels, per response"
    )
    target_forward_tokens: int | None = Field(
        None, ge=1, description="prompts fill each forward up to this many tokens; None: max_num_batched_tokens"
    )
    event_log: Path | None = Field(None, description="file for one JSON line per event; data-parallel ranks add -rankN")
    event_log_mb: float = Field(256.0, gt=0, description="size at which the event log ends, MB")
    padding: float = Field(
        0.15, ge=0, le=4, description="exact, pipelined: added to the predicted length, as a fraction of it"
    )
    buffer_tokens: int = Field(
        16, ge=0, le=65536, description="pipelined: tokens between a guest's expected end and its host's arrival"
    )
    buffer_quantile: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="pipelined: the guest's length at this quantile in place of buffer_tokens",
    )
    lending_depth: int = Field(3, ge=1, le=16, description="pipelined: levels of nested lending")
    relend: bool = Field(True, description="pipelined: lend a stretch again after its guest has finished")
    quantile: float = Field(
        0.8,
        gt=0,
        lt=1,
        description="ranked: quantile of the length that is reported as reserved",
    )
    reserve: float = Field(0.01, ge=0, lt=0.5, description="fraction of the KV cache that admission keeps free")
    waiting_share: float = Field(
        0.25,
        gt=0,
        le=1,
        description="exact, max, pipelined: fraction of the KV cache that requests without a reservation may hold",
    )
    paused_share: float = Field(
        0.0,
        ge=0,
        le=1,
        description="most KV that paused decodes may hold, fraction of the KV cache; above it a request is preempted",
    )
    ageing_tokens_per_s: float = Field(
        1.0, ge=0, le=1e6, description="sjf, srpt, slo: ageing rate, tokens per second waited"
    )
    ordering_quantile: float | None = Field(
        None, gt=0, lt=1, description="orderings by length: order by this quantile of the length instead of its mean"
    )
    max_wait_s: float = Field(
        120.0,
        gt=0,
        description="hrrn, paper, slo: ageing limit; after this wait a request is served first come, first served",
    )
    longer_first: bool = Field(True, description="paper: longer requests go first within a range")
    resume_steps: int = Field(
        4, ge=1, le=256, description="a paused decode resumes when the blocks of its next this many steps are free"
    )
    history_window: int = Field(
        1000,
        ge=8,
        le=100_000,
        description="finished lengths kept as the distribution for requests without a prediction",
    )
    level: Level = Field(
        "full", description="what is decided: full: all; order: only who is first; shadow: nothing, only counted"
    )
    check_every_step: bool = Field(False, description="recount the ledger after every step (tests)")

    @field_validator("target_forward_tokens", mode="before")
    @classmethod
    def _measured(cls, value: Any) -> Any:
        if value == "auto":
            raise ValueError("auto is for simulated GPUs; ecoserve calibrate-forward measures this machine's")
        return value

    @field_validator(*_NAMES)
    @classmethod
    def _known(cls, value: str | None, info: ValidationInfo) -> str | None:
        known = _NAMES[str(info.field_name)]
        if value is not None and value not in known:
            raise ValueError(f"{info.field_name} {value!r} is none of {', '.join(known)}")
        return value

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

    @property
    def parts(self) -> Policy:
        """The policy's parts, with those that a setting replaces."""
        row = POLICIES[self.policy]
        return row._replace(
            kv_policy=self.kv_policy or row.kv_policy,
            ordering=self.ordering or row.ordering,
            groups=row.groups if self.groups is None else self.groups,
            correction=row.correction if self.correction is None else self.correction,
        )
