"""How long one step takes, in virtual seconds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from pydantic import BaseModel, ConfigDict, Field


@dataclass(slots=True)
class StepWork:
    """What one step computes."""

    prefill_tokens: int = 0
    decodes: int = 0
    #: tokens of KVC that this step's attention reads, over all requests
    context_tokens: int = 0


class StepCost(Protocol):
    """A model of the GPU: work of one step to seconds."""

    def seconds(self, work: StepWork) -> float:
        """Seconds the step takes."""
        ...


class LinearCost(BaseModel):
    """A step cost that is linear in its work.

    The defaults are of the size of a 13B model on one A100-class GPU (weights read once a step, then compute per prompt
    token and cache reads per context token); they are a stand-in to test scheduling with, not a model of any GPU.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    step_s: float = Field(0.013, ge=0, description="seconds of any step")
    prefill_token_s: float = Field(1.04e-4, ge=0, description="seconds a prompt token")
    decode_s: float = Field(0.0, ge=0, description="seconds a decoding request")
    context_token_s: float = Field(4e-7, ge=0, description="seconds a token of KVC read")

    def seconds(self, work: StepWork) -> float:
        """Seconds the step takes."""
        return (
            self.step_s
            + self.prefill_token_s * work.prefill_tokens
            + self.decode_s * work.decodes
            + self.context_token_s * work.context_tokens
        )
