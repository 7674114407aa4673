"""Settings of the front door: one definition each, read from the environment of the API server.

vLLM makes middleware without arguments, and starts several API servers as processes of their own: the environment is
the one thing that reaches all of them. ``ecoserve serve`` sets it from its flags.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ecoserve.errors import ConfigError

PREFIX = "ECOSERVE_"

#: Where an operator gives unloaded times and no scale.
SLO_SCALE: Final = 2.0


class MiddlewareSettings(BaseModel):
    """Each field ``x`` is the environment variable ``ECOSERVE_X``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    predictor: str | None = Field(
        None, description="checkpoint of the length predictor; without one nothing is predicted"
    )
    predict_timeout_ms: float = Field(250.0, gt=0, le=60_000, description="longest wait for a prediction")
    predict_window_ms: float = Field(1.0, ge=0, le=1_000, description="wait for company before a batch is predicted")
    predict_batch: int = Field(32, ge=1, le=4096, description="prompts predicted in one call")
    predict_waiting: int = Field(1024, ge=1, le=1_000_000, description="prompts that may wait for a prediction at once")
    predict_threads: int = Field(0, ge=0, le=256, description="CPU threads of the predictor; 0: a few of the cores")
    trust_client: bool = Field(False, description="accept the scheduler's own keys from clients, unchecked")
    client_slos: Literal["clamp", "off"] = Field(
        "clamp", description="clients' SLOs: clamp takes them, raised to the least ones; off does not look at them"
    )
    slo_min_ttft_ms: float = Field(50.0, gt=0, le=86_400_000, description="least time to first token for clients")
    slo_min_tpot_ms: float = Field(5.0, gt=0, le=86_400_000, description="least time per further token for clients")
    slo_scale: float | None = Field(
        None, gt=0, le=1000, description="SLO of requests that state none: so many times the unloaded times (2)"
    )
    unloaded_ttft_ms: float | None = Field(
        None, gt=0, le=86_400_000, description="what an idle engine needs for a usual prompt's first token"
    )
    unloaded_tpot_ms: float | None = Field(
        None, gt=0, le=86_400_000, description="what an idle engine needs for each further token"
    )
    replay: bool = Field(False, description="accept recorded lengths that clients send, to be forced on the responses")
    max_body_bytes: int = Field(16 * 2**20, ge=1024, description="longer bodies are handed on unread")
    api_key: str | None = Field(
        None, description="key to ask for, where vLLM's own --api-key and VLLM_API_KEY cannot be seen"
    )

    @model_validator(mode="after")
    def _scale_of_something(self) -> MiddlewareSettings:
        if self.slo_scale is not None and self.unloaded_ttft_ms is None and self.unloaded_tpot_ms is None:
            raise ValueError("a scale needs unloaded times to scale; ecoserve calibrate-forward measures them")
        return self

    def scale(self) -> float:
        """The factor of the operator's SLO."""
        return SLO_SCALE if self.slo_scale is None else self.slo_scale

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> MiddlewareSettings:
        """Read the settings.

        Raises:
            ConfigError: naming the variable that is wrong.
        """
        env = os.environ if environment is None else environment
        return cls._checked(
            {name: env[variable(name)] for name in cls.model_fields if env.get(variable(name), "") != ""}
        )

    def with_changes(self, changes: Mapping[str, Any]) -> MiddlewareSettings:
        """The same settings with those of ``changes`` that are not None.

        Raises:
            ConfigError: naming the variable of the setting that is wrong.
        """
        return self._checked({**self.model_dump(), **{k: v for k, v in changes.items() if v is not None}})

    @classmethod
    def _checked(cls, values: Mapping[str, Any]) -> MiddlewareSettings:
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            name = str(first["loc"][0]) if first["loc"] else "slo_scale"
            raise ConfigError(first["msg"].removeprefix("Value error, "), where=variable(name)) from None

    def to_environment(self) -> dict[str, str]:
        """The variables that say what differs from the defaults."""
        out = {}
        for name, value in self.model_dump(exclude_defaults=True).items():
            out[variable(name)] = ("1" if value else "0") if isinstance(value, bool) else str(value)
        return out


def variable(name: str) -> str:
    """The environment variable of a field."""
    return PREFIX + name.upper()
