"""The axes of a sweep: what may vary, how a plan writes it, and the label that tells its runs apart.

An axis that is named labels its runs, so that they are never averaged over by accident; one that is not named leaves
runs, and their keys, as they were.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from ecoserve.errors import InputError
from ecoserve.serving.length_source import FORMS, LengthSource

#: Policies that decide without lengths: predictions change nothing for them.
LENGTH_BLIND: Final = frozenset(
    {"vllm", "vllm-watermark", "vllm-2024", "orca", "fastserve", "sarathi", "fastgen", "past-future", "distserve"}
)
SYNTHETIC: Final = "synthetic"
#: Value of ``lengths`` where the server itself predicts.
SERVER: Final = "server"
#: Prefix of a knob's label.
KNOB: Final = "knob_"


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


def _lengths(value: Any) -> Any:
    # YAML reads a bare `true` as a boolean and a bare `null` as nothing.
    value = "true" if value is True else "none" if value is None or value is False else value
    if not isinstance(value, str):
        raise ValueError(f"must be predicted or one of {FORMS}")
    if value in ("predicted", SERVER):
        return value
    try:
        return str(LengthSource.parse(value))
    except InputError as error:
        raise ValueError(error.what) from None


T = TypeVar("T")
#: One value, or a list of them.
Axis = Annotated[list[T], BeforeValidator(_as_list), Field(min_length=1)]
Lengths = Annotated[str, BeforeValidator(_lengths)]
Text = Annotated[str, Field(min_length=1)]
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Rate = Positive | Literal["recorded"]
Seed = Annotated[int, Field(ge=0)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 _.-]{0,39}$")]


class Gpu(BaseModel):
    """One GPU and what it serves; fields left out stay as ``settings`` has them."""

    model_config = ConfigDict(extra="forbid")

    gpu: Text | None = None
    model: Text | None = None
    tp: Count | None = None
    blocks: int | None = Field(default=None, ge=2)


class Condition(BaseModel):
    """What one load condition changes; fields left out stay as the plan has them."""

    model_config = ConfigDict(extra="forbid")

    trace: Axis[Text] | None = None
    policies: Axis[Text] | None = None
    lengths: Axis[Lengths] | None = None
    rates: Axis[Rate] | None = None
    seeds: Axis[Seed] | None = None
    knobs: dict[str, Axis[Any]] | None = None
    slo_scales: Axis[Positive] | None = None
    gpus: Axis[Gpu] | None = None
    replicas: Axis[Count] | None = None
    requests: Count | None = None
    depth: Literal[1, 2] | None = None
    blocks: int | None = Field(default=None, ge=2)
    settings: dict[str, Any] = Field(default_factory=dict)
