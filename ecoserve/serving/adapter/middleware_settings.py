"""Settings of the prediction middleware, read from the API server's environment: field ``x`` is ``ECOSERVE_X``.

vLLM makes middleware without arguments, maybe in several processes: the environment reaches all of them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from ecoserve.options import checked, flag, from_environment, variable

#: A day: no time that a client or an operator states is longer.
LONGEST_MS: Final = 86_400_000.0


class MiddlewareSettings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    predictor: str | None = Field(
        None, description="checkpoint of the length predictor, a folder or hub id; without one, finished lengths serve"
    )
    learn: str | None = Field(
        None, description="folder to learn response lengths in, from the server's own responses, and to start from"
    )
    level: Literal["auto", "full", "order"] = Field(
        "auto",
        description="full: our scheduler; order: vLLM's own, by request priorities; auto: full where it knows the "
        "configuration",
    )
    shadow: bool = Field(
        False, description="predict and count, but leave vLLM's order alone until an admin call says otherwise"
    )
    admin_key: str | None = Field(
        None, description="key of the admin calls, which change level and predictor; without it there are none"
    )
    predict_timeout_ms: float = Field(
        250.0, gt=0, le=60_000, description="longest wait of a request for its prediction"
    )
    predict_window_ms: float = Field(
        1.0, ge=0, le=1_000, description="wait for more prompts before a batch is predicted"
    )
    predict_batch: int = Field(32, ge=1, le=4096, description="prompts predicted in one call")
    predict_waiting: int = Field(1024, ge=1, le=1_000_000, description="prompts that may wait for a prediction at once")
    predict_threads: int = Field(
        0, ge=0, le=256, description="CPU threads of the predictor; 0: a quarter of the cores, 1 to 4"
    )
    trust_client: bool = Field(False, description="accept predictions and other keys of the scheduler from clients")
    replay: bool = Field(False, description="let clients force the lengths of responses, to replay a trace")
    max_body_bytes: int = Field(
        16 * 2**20,
        ge=1024,
        description="longer request bodies get no prediction, and may not name keys of ecoserve",
    )
    max_queue_s: float | None = Field(
        None, gt=0, le=86_400, description="429 while the open responses take longer than this; without it, no limit"
    )
    api_key: str | None = Field(
        None, description="key that requests need, where --api-key and VLLM_API_KEY cannot be seen"
    )
    client_slos: Literal["clamp", "off"] = Field(
        "clamp", description="SLOs of clients: clamp accepts them, raised to the minima below; off ignores them"
    )
    slo_min_ttft_ms: float = Field(50.0, gt=0, le=LONGEST_MS, description="minimum TTFT that clients can ask for")
    slo_min_tpot_ms: float = Field(5.0, gt=0, le=LONGEST_MS, description="minimum TPOT that clients can ask for")
    unloaded_ttft_ms: float | None = Field(
        None, gt=0, le=LONGEST_MS, description="TTFT of a typical prompt on an idle engine; without it, no default TTFT"
    )
    unloaded_tpot_ms: float | None = Field(
        None, gt=0, le=LONGEST_MS, description="TPOT on an idle engine; without it, no default TPOT"
    )
    slo_scale: float = Field(
        2.0, gt=0, le=1000, description="SLO of requests that state none, as a multiple of the unloaded times"
    )

    @field_validator("slo_scale")
    @classmethod
    def _scale_of_something(cls, value: float, info: ValidationInfo) -> float:
        if info.data.get("unloaded_ttft_ms") is None and info.data.get("unloaded_tpot_ms") is None:
            raise ValueError("a scale needs unloaded times to scale; ecoserve calibrate-forward measures them")
        return value

    @classmethod
    def read(
        cls, environment: Mapping[str, str] | None = None, options: Mapping[str, Any] | None = None
    ) -> MiddlewareSettings:
        """The settings in the environment (by default the process's), and those given as options, which win.

        Raises:
            ConfigError: naming the option or variable that is wrong.
        """
        given = options or {}
        found = from_environment(cls, os.environ if environment is None else environment)
        return checked(cls, {**found, **given}, lambda name: flag(name, cls) if name in given else variable(name))
