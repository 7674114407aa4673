"""Settings of the front door: one definition each, read from the environment of the API server.

vLLM makes middleware without arguments, and starts several API servers as processes of their own: the environment is
the one thing that reaches all of them. ``ecoserve serve`` sets it from its flags.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ecoserve.errors import ConfigError

PREFIX = "ECOSERVE_"


class FrontSettings(BaseModel):
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
    trust_client: bool = Field(False, description="accept predictions and deadlines that clients send")
    replay: bool = Field(False, description="accept recorded lengths that clients send, to be forced on the responses")
    max_body_bytes: int = Field(16 * 2**20, ge=1024, description="longer bodies are handed on unread")
    api_key: str | None = Field(
        None, description="key to ask for, where vLLM's own --api-key and VLLM_API_KEY cannot be seen"
    )

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> FrontSettings:
        """Read the settings.

        Raises:
            ConfigError: naming the variable that is wrong.
        """
        env = os.environ if environment is None else environment
        return cls._checked(
            {name: env[variable(name)] for name in cls.model_fields if env.get(variable(name), "") != ""}
        )

    def with_changes(self, changes: Mapping[str, Any]) -> FrontSettings:
        """The same settings with those of ``changes`` that are not None.

        Raises:
            ConfigError: naming the variable of the setting that is wrong.
        """
        return self._checked({**self.model_dump(), **{k: v for k, v in changes.items() if v is not None}})

    @classmethod
    def _checked(cls, values: Mapping[str, Any]) -> FrontSettings:
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            raise ConfigError(first["msg"], where=variable(str(first["loc"][0]))) from None

    def to_environment(self) -> dict[str, str]:
        """The variables that say what differs from the defaults."""
        out = {}
        for name, value in self.model_dump(exclude_defaults=True).items():
            out[variable(name)] = ("1" if value else "0") if isinstance(value, bool) else str(value)
        return out


def variable(name: str) -> str:
    """The environment variable of a field."""
    return PREFIX + name.upper()
