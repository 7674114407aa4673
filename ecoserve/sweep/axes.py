"""The axes of a sweep: what may vary, and how a plan writes it.

An axis that is named labels its runs, so that they are never averaged over by accident.
"""

from __future__ import annotations

import typing
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from ecoserve.deprecations import SUMMARY_KEYS, renamed
from ecoserve.errors import InputError
from ecoserve.serving.core.policies import POLICIES, STOCK_POLICIES
from ecoserve.serving.length_source import FORMS, LengthSource
from ecoserve.sweep.summary import RunRow

#: Policies that decide without lengths: predictions change nothing for them.
LENGTH_BLIND: Final = frozenset(
    {*STOCK_POLICIES} - {"vllm-priority"} | {name for name, p in POLICIES.items() if p[:2] == ("max", "fcfs")}
)
SYNTHETIC: Final = "synthetic"
#: Value of ``lengths`` where the server itself predicts.
SERVER: Final = "server"
#: Prefix of a knob's label.
KNOB: Final = "knob_"


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
Axis = Annotated[
    list[T], BeforeValidator(lambda value: value if isinstance(value, list) else [value]), Field(min_length=1)
]
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


class SearchPlan(BaseModel):
    model_config = ConfigDict(extra="forbid")

    axis: Literal["rate"] = "rate"
    range: tuple[Positive, Positive] = Field(description="Lowest and highest rate, requests a second.")
    metric: str = Field(description="Key of a run.")
    at_least: float | None = None
    at_most: float | None = None
    at_most_times_unloaded: float | None = Field(
        default=None, gt=1, description="At most so many times the baseline policy's at `unloaded_rate`."
    )
    tolerance: float = Field(0.02, gt=0, le=0.5, description="How far above the answer a rate fails, as a share.")
    max_runs: int = Field(12, ge=2, description="Rates tried at most, each once a seed.")
    unloaded_rate: Positive = Field(0.01, description="Requests a second at which requests do not overlap.")

    @field_validator("metric")
    @classmethod
    def _a_figure(cls, metric: str) -> str:
        (metric,) = renamed({metric: None}, SUMMARY_KEYS, "summary key")
        figures = [
            name
            for name, info in RunRow.model_fields.items()
            if {float, int} & {info.annotation, *typing.get_args(info.annotation)}
        ]
        if metric not in figures:
            raise ValueError(f"{metric} is no figure of a run; one of {', '.join(figures)}")
        return metric

    @model_validator(mode="after")
    def _one_bound(self) -> SearchPlan:
        if sum(b is not None for b in (self.at_least, self.at_most, self.at_most_times_unloaded)) != 1:
            raise ValueError("name one of at_least, at_most, at_most_times_unloaded")
        if not self.range[0] < self.range[1]:
            raise ValueError("range: the lower rate first")
        return self
