"""A sweep's plan in YAML, checked and resolved: its axes, its load, its search. docs/guides/sweep.md has every key.

An axis that is named labels its runs, so that they are never averaged over by accident.
"""

from __future__ import annotations

import os
import re
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from ecoserve.data.reading import is_workload
from ecoserve.data.workloads.spec import read_workload, yaml_problem
from ecoserve.deprecations import SUMMARY_KEYS, renamed
from ecoserve.errors import ConfigError, InputError
from ecoserve.options import problem
from ecoserve.serving.length_source import FORMS, LengthSource
from ecoserve.serving.routing import RouterName
from ecoserve.sweep.summary import Engine, RunRow
from ecoserve.sweep.worker import FUNCTIONS

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
    routers: Axis[RouterName] | None = None
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


#: File endings that a hub id does not have.
_FILES: Final = r"\.(json|jsonl|gz|parquet|csv|ya?ml)$"


class SweepPlan(Condition):
    """A sweep: the axes, the load, and what runs it."""

    title: str = Field("Accuracy versus throughput", min_length=1, max_length=200)
    trace: Axis[Text] = Field(description="Files, hub ids, or `synthetic`.")
    predictor: str | None = Field(None, description="Checkpoint (folder or hub id) that `predicted` stands for.")
    policies: Axis[Text] = Field(["vllm", "ecoserve"])
    lengths: Axis[Lengths] = Field(["true", "none"])
    seeds: Axis[Seed] = Field([0, 1, 2])
    requests: Count = Field(400, description="Requests of one run.")
    depth: Literal[1, 2] = Field(2, description="Pipeline depth: steps in flight.")
    conditions: dict[Name, Condition] = Field(default_factory=dict)
    search: SearchPlan | None = Field(None, description="Search for the highest rate that meets a bound.")
    engine: Engine = Field("virtual", description="What executes the runs.")
    urls: dict[str, str] = Field(default_factory=dict, description="Engine url: the server of each policy.")
    run: str = Field("", pattern=r"^([\w.]+:\w+)?$", description="Run function, as module:name, in place of ours.")

    @model_validator(mode="before")
    @classmethod
    def _of_urls(cls, content: Any) -> Any:
        """With ``urls``, policies are those of the servers by default."""
        if isinstance(content, dict) and isinstance(content.get("urls"), dict):
            return {"policies": list(content["urls"]), "lengths": SERVER, **content}
        return content

    @model_validator(mode="after")
    def _consistent(self) -> SweepPlan:
        parts = [self, *self.conditions.values()]
        if self.search is None and self.rates is None and not all(c.rates for c in self.conditions.values() or [self]):
            raise ValueError("rates: Field required")
        if (self.engine == "url") != bool(self.urls):
            raise ValueError("urls: goes with engine: url, which needs the server of each policy")
        if self.engine != "url" and any(SERVER in (c.lengths or []) for c in parts):
            raise ValueError("lengths: `server` is for engine: url")
        unserved = {p for c in parts for p in c.policies or []} - set(self.urls) if self.urls else set()
        if unserved:
            raise ValueError(f"urls: names no server of policy {min(unserved)}; it has {', '.join(self.urls)}")
        if "api_key" in self.settings:
            raise ValueError("settings: a key has no place in a plan; export VLLM_API_KEY")
        self.run = self.run or FUNCTIONS[self.engine]
        return self

    @classmethod
    def load(cls, path: str | Path, *, trace: str | None = None, predictor: str | None = None) -> SweepPlan:
        """Read, check and resolve a plan; ``trace`` and ``predictor`` replace its own. ConfigError names the key."""
        path = Path(path)
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise ConfigError("there is no such file", where=str(path), fix="check the path") from error
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot be read ({error})", where=str(path)) from error
        except yaml.YAMLError as error:
            raise ConfigError(f"is not YAML ({yaml_problem(error)})", where=str(path)) from error
        if not isinstance(content, dict):
            raise ConfigError(
                "is not a plan", where=str(path), fix="a plan is `key: value` lines; see docs/guides/sweep.md"
            )
        return cls.of(content, path.parent.resolve(), where=str(path), trace=trace, predictor=predictor)

    @classmethod
    def of(
        cls,
        content: Mapping[str, Any],
        base: Path,
        *,
        where: str,
        trace: str | None = None,
        predictor: str | None = None,
    ) -> SweepPlan:
        """Check and resolve a plan's keys, with paths relative to ``base``; otherwise as :meth:`load`."""
        given = {"trace": trace, "predictor": predictor}
        given = {name: located(value, Path.cwd()) for name, value in given.items() if value is not None}
        try:
            plan = cls.model_validate({**content, **given})
        except ValidationError as error:
            raise ConfigError(_explained(error), where=where, fix="see docs/guides/sweep.md") from error
        return plan.resolved(base, where=where)

    def resolved(self, base: Path, *, where: str | None = None) -> SweepPlan:
        """The plan with variables filled in, ``predicted`` named and paths (relative to ``base``) absolute.

        Raises ConfigError if a file or checkpoint is missing, or ``predicted`` stands for nothing.
        """
        files = _Files(base, where)
        predictor = None if self.predictor is None else files.existing(files.expanded(self.predictor), "predictor")

        def changes(c: Condition) -> dict[str, Any]:
            named = {k: located(str(c.settings[k]), base) for k in ("model", "tokenizer") if c.settings.get(k)}
            out: dict[str, Any] = {"settings": c.settings | named}
            if c.trace is not None:
                out["trace"] = files.traces(c.trace)
            if c.lengths is not None:
                out["lengths"] = list(dict.fromkeys(files.lengths(kind, predictor) for kind in c.lengths))
            if c.gpus is not None:
                out["gpus"] = [g.model_copy(update={"model": located(g.model, base)}) if g.model else g for g in c.gpus]
            return out

        conditions = {key: c.model_copy(update=changes(c)) for key, c in self.conditions.items()}
        return self.model_copy(update={**changes(self), "predictor": predictor, "conditions": conditions})


@dataclass(frozen=True)
class _Files:
    base: Path
    where: str | None

    def expanded(self, text: str) -> str:
        text = os.path.expanduser(os.path.expandvars(text))
        if missing := re.search(r"\$\{?(\w+)\}?", text):
            what = f"the environment variable {missing[1]} is not set"
            raise ConfigError(what, where=self.where, fix=f"export {missing[1]}=...")
        return text

    def existing(self, text: str, key: str, base: Path | None = None) -> str:
        """The absolute path of an existing file or folder, or a hub id as it is."""
        path = located(text, base or self.base)
        if Path(path).is_absolute() and Path(path).exists():
            return path
        if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", text) and not re.search(_FILES, text):
            return text  # a hub id: reading it fails if there is none
        fix = "name an existing file or folder, or a hub id"
        raise ConfigError(f"{key}: there is no {text}", where=self.where, fix=fix)

    def traces(self, names: list[str]) -> list[str]:
        found = list(dict.fromkeys(self._trace(name) for name in names))
        if len({Path(trace).name for trace in found}) < len(found):
            raise ConfigError("trace: two files have one name", where=self.where, fix="rename one: runs carry the name")
        return found

    def _trace(self, text: str) -> str:
        if text.partition(":")[0] == SYNTHETIC:
            return text
        # A variable's path was typed in the current folder, not in the plan's.
        trace = self.existing(self.expanded(text), "trace", Path.cwd() if "$" in text else None)
        if is_workload(trace):
            read_workload(trace)  # a mistake in it is reported now and not by every run
        return trace

    def lengths(self, text: str, predictor: str | None) -> str:
        kind, colon, detail = text.partition(":")
        if kind != "predicted":
            return text
        if colon:
            return f"predicted:{self.existing(self.expanded(detail), 'lengths')}"
        if predictor is None:
            fix = "set `predictor:`, write predicted:CHECKPOINT, or pass --predictor"
            raise ConfigError("lengths: `predicted` needs a checkpoint", where=self.where, fix=fix)
        return f"predicted:{predictor}"


def located(text: str, base: Path) -> str:
    """An existing path made absolute; anything else (a hub id) as it is."""
    path = base / Path(text).expanduser()
    return str(path.resolve()) if path.exists() else text


def _explained(error: ValidationError) -> str:
    """The first mistake with its key, and the allowed names if there is no such key."""
    first = error.errors()[0]
    key, what = problem(error)
    key = key.replace(".constrained-float", "")
    if first["type"] == "extra_forbidden":
        inner: dict[object, type[BaseModel]] = {"conditions": Condition, "search": SearchPlan, "gpus": Gpu}
        model: type[BaseModel] = next((inner[part] for part in reversed(first["loc"][:-1]) if part in inner), SweepPlan)
        what = f"no such key; allowed: {', '.join(model.model_fields)}"
    return f"{key}: {what}" if key else what
