"""The axes of a sweep: what may vary, how it is written, and the labels that tell the runs apart.

Rule: an axis that is named labels its runs, so that nobody averages over it by accident; one that is not named leaves
runs, and their keys, as they were.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from ecoserve.errors import ConfigError, InputError
from ecoserve.serving.adapter.settings import POLICIES, SchedulerSettings
from ecoserve.serving.length_source import FORMS, LengthSource

#: Policies that decide without lengths: giving them predictions changes nothing.
LENGTH_BLIND: Final = frozenset(
    {"vllm", "vllm-watermark", "vllm-2024", "orca", "fastserve", "sarathi", "fastgen", "past-future", "distserve"}
)
SYNTHETIC: Final = "synthetic"
#: What ``lengths`` says where the server itself predicts.
SERVER: Final = "server"
#: Beginning of the label of a knob.
KNOB: Final = "knob_"
#: Values of a knob that only a simulated GPU resolves.
_RESOLVED_LATER: Final = {"target_forward_tokens": "auto"}


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


def _as_lengths(value: Any) -> Any:
    """YAML reads a bare ``true`` as a boolean and a bare ``null`` as nothing."""
    if value is True:
        return "true"
    return "none" if value is None or value is False else value


def _checked_lengths(value: Any) -> Any:
    value = _as_lengths(value)
    if not isinstance(value, str):
        raise ValueError(f"must be predicted or one of {FORMS}")
    if value in ("predicted", SERVER):
        return value
    try:
        return str(LengthSource.parse(value))
    except InputError as error:
        raise ValueError(error.what) from None


Lengths = Annotated[str, BeforeValidator(_checked_lengths)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)] | Literal["recorded"]
Text = Annotated[str, Field(min_length=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
PolicyAxis = Annotated[list[Text], BeforeValidator(_as_list), Field(min_length=1)]
LengthAxis = Annotated[list[Lengths], BeforeValidator(_as_list), Field(min_length=1)]
RateAxis = Annotated[list[Rate], BeforeValidator(_as_list), Field(min_length=1)]
SeedAxis = Annotated[list[Annotated[int, Field(ge=0)]], BeforeValidator(_as_list), Field(min_length=1)]
TraceAxis = Annotated[list[Text], BeforeValidator(_as_list), Field(min_length=1)]
KnobAxis = Annotated[list[Any], BeforeValidator(_as_list), Field(min_length=1)]
ScaleAxis = Annotated[list[Positive], BeforeValidator(_as_list), Field(min_length=1)]
CountAxis = Annotated[list[Annotated[int, Field(ge=1)]], BeforeValidator(_as_list), Field(min_length=1)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 _.-]{0,39}$")]


class Gpu(BaseModel):
    """One GPU and what it serves; what is not named stays as ``settings`` says."""

    model_config = ConfigDict(extra="forbid")

    gpu: Text | None = None
    model: Text | None = None
    tp: int | None = Field(default=None, ge=1)
    blocks: int | None = Field(default=None, ge=2)


GpuAxis = Annotated[list[Gpu], BeforeValidator(_as_list), Field(min_length=1)]


class Condition(BaseModel):
    """What one load condition changes; what it does not name stays as the plan says."""

    model_config = ConfigDict(extra="forbid")

    trace: TraceAxis | None = None
    policies: PolicyAxis | None = None
    lengths: LengthAxis | None = None
    rates: RateAxis | None = None
    seeds: SeedAxis | None = None
    knobs: dict[str, KnobAxis] | None = None
    slo_scales: ScaleAxis | None = None
    gpus: GpuAxis | None = None
    replicas: CountAxis | None = None
    requests: int | None = Field(default=None, ge=1)
    depth: Literal[1, 2] | None = None
    blocks: int | None = Field(default=None, ge=2)
    settings: dict[str, Any] = Field(default_factory=dict)


def loads(axes: Mapping[str, Any]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Settings and labels of every load but its rate: trace, GPU, replicas, SLO scale.

    Args:
        axes: values by the names of :class:`Condition`; an axis that is None is not named.
    """
    traces = [({"trace": trace}, {"trace": _short(trace)} if len(axes["trace"]) > 1 else {}) for trace in axes["trace"]]
    gpus = [(known, known) for gpu in axes["gpus"] or [] if (known := gpu.model_dump(exclude_none=True))]
    replicas = [({"replicas": n}, {"replicas": n}) for n in axes["replicas"] or []]
    scales = [({"slo_scale": scale}, {"slo_scale": scale}) for scale in axes["slo_scales"] or []]
    nothing: list[tuple[dict[str, Any], dict[str, Any]]] = [({}, {})]
    for parts in itertools.product(traces, gpus or nothing, replicas or nothing, scales or nothing):
        settings: dict[str, Any] = {}
        labels: dict[str, Any] = {}
        for one, label in parts:
            settings |= one
            labels |= {k: _short(v) if k == "model" else v for k, v in label.items()}
        yield settings, labels


def tunings(
    policy: str, knobs: Mapping[str, list[Any]] | None, common: Mapping[str, Any]
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Knobs and labels of every tuning of a policy; a policy without knobs has one, without labels.

    Args:
        common: knobs that all runs share; a value of the axis replaces them.
    """
    if not knobs or policy not in POLICIES:
        yield dict(common), {}
        return
    for values in itertools.product(*knobs.values()):
        chosen = dict(zip(knobs, values, strict=True))
        yield {**common, **chosen}, {f"{KNOB}{name}": value for name, value in chosen.items()}


def check_knobs(policy: str, knobs: Mapping[str, Any], where: str | None) -> None:
    """Refuse before any run what the scheduler would refuse in each.

    Raises:
        ConfigError: naming the knob.
    """
    if policy not in POLICIES:
        return
    known = {name: value for name, value in knobs.items() if _RESOLVED_LATER.get(name) != value}
    try:
        SchedulerSettings.parse({**known, "policy": policy})
    except ConfigError as error:
        raise ConfigError(f"{error.where}: {error.what}", where=where, fix="docs/serving.md lists the knobs") from error


def _short(text: str) -> str:
    """A path by its last part, anything else as it is."""
    return Path(text).name if Path(text).is_absolute() else text
