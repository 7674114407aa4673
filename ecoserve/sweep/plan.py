"""What to run: a plan in YAML, checked, resolved, and expanded to runs.

::

    title: What are predicted lengths worth?
    trace: ${ECOSERVE_DATA}          # file (beside this plan; of a variable: here), hub id, or synthetic
    predictor: checkpoints/encoder   # what `predicted` stands for
    policies: [vllm, ecoserve]
    lengths: [true, predicted, noise:0.8, none]
    rates: [8, 16]                   # requests per second, or `recorded`
    seeds: [0, 1, 2]
    requests: 400
    depth: 2
    conditions:                      # each changes what it names; without it there is one, unnamed
      pressure: {blocks: 1800}
      no-pressure: {blocks: 20000, lengths: [true, none]}
    settings:                        # anything else the run function takes
      {max_num_seqs: 64, gpu: h100_sxm, model: llama-3.1-8b}

Policies that never look at lengths run once, with ``none``, whatever the axis says.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from ecoserve.data.workload_rows import is_workload
from ecoserve.data.workloads import read_workload
from ecoserve.errors import ConfigError, InputError
from ecoserve.serving.told import FORMS, LengthsTold
from ecoserve.sweep.identity import PlannedRun

#: The function a sweep calls for each run unless its plan names another.
DEFAULT_RUN: Final = "ecoserve.serving.simulate.run:simulate"
#: Policies that decide without lengths: giving them predictions changes nothing.
LENGTH_BLIND: Final = frozenset(
    {"vllm", "vllm-watermark", "vllm-2024", "orca", "fastserve", "sarathi", "fastgen", "past-future", "distserve"}
)
SYNTHETIC: Final = "synthetic"


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
    if value == "predicted":
        return value
    try:
        return str(LengthsTold.parse(value))
    except InputError as error:
        raise ValueError(error.what) from None


Lengths = Annotated[str, BeforeValidator(_checked_lengths)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)] | Literal["recorded"]
PolicyAxis = Annotated[list[Annotated[str, Field(min_length=1)]], BeforeValidator(_as_list), Field(min_length=1)]
LengthAxis = Annotated[list[Lengths], BeforeValidator(_as_list), Field(min_length=1)]
RateAxis = Annotated[list[Rate], BeforeValidator(_as_list), Field(min_length=1)]
SeedAxis = Annotated[list[Annotated[int, Field(ge=0)]], BeforeValidator(_as_list), Field(min_length=1)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 _.-]{0,39}$")]


class Condition(BaseModel):
    """What one load condition changes; what it does not name stays as the plan says."""

    model_config = ConfigDict(extra="forbid")

    policies: PolicyAxis | None = None
    lengths: LengthAxis | None = None
    rates: RateAxis | None = None
    seeds: SeedAxis | None = None
    requests: int | None = Field(default=None, ge=1)
    depth: Literal[1, 2] | None = None
    blocks: int | None = Field(default=None, ge=2)
    settings: dict[str, Any] = Field(default_factory=dict)


class SweepPlan(BaseModel):
    """A sweep: the axes, the load, and what runs it."""

    model_config = ConfigDict(extra="forbid")

    title: str = Field("Accuracy versus throughput", min_length=1, max_length=200)
    trace: str = Field(description="File, hub id, or `synthetic`.", min_length=1)
    predictor: str | None = Field(
        default=None, description="Checkpoint (folder or hub id) that `predicted` stands for."
    )
    policies: PolicyAxis = ["vllm", "ecoserve"]
    lengths: LengthAxis = ["true", "none"]
    rates: RateAxis
    seeds: SeedAxis = [0, 1, 2]
    requests: int = Field(400, description="Requests of one run.", ge=1)
    depth: Literal[1, 2] = Field(2, description="Pipeline depth: steps scheduled ahead of their output, plus one.")
    blocks: int | None = Field(default=None, description="KVC blocks; None for the run function's own choice.", ge=2)
    conditions: dict[Name, Condition] = Field(default_factory=dict)
    settings: dict[str, Any] = Field(default_factory=dict, description="Further settings of the run function.")
    run: str = Field(DEFAULT_RUN, pattern=r"^[\w.]+:\w+$", description="Run function, as module:name.")

    @classmethod
    def load(cls, path: str | Path, *, trace: str | None = None, predictor: str | None = None) -> SweepPlan:
        """Read, check and resolve a plan.

        Args:
            path: the YAML file.
            trace, predictor: used instead of the plan's; relative paths are relative to the current folder.

        Raises:
            ConfigError: naming the key that is wrong.
        """
        path = Path(path)
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise ConfigError("there is no such file", where=str(path), fix="check the path") from error
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot be read ({error})", where=str(path)) from error
        except yaml.YAMLError as error:
            raise ConfigError(f"is not YAML ({_yaml_problem(error)})", where=str(path)) from error
        if not isinstance(content, dict):
            raise ConfigError("is not a plan", where=str(path), fix="a plan is `key: value` lines; see docs/sweep.md")
        here = Path.cwd()
        if trace is not None:
            content["trace"] = _located(trace, here)
        if predictor is not None:
            content["predictor"] = _located(predictor, here)
        try:
            plan = cls.model_validate(content)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"] if part != "constrained-float")
            what = f"{key}: {first['msg'].removeprefix('Value error, ')}"
            raise ConfigError(what, where=str(path), fix="see docs/sweep.md") from error
        return plan.resolved(path.parent.resolve(), where=str(path))

    def resolved(self, base: Path, *, where: str | None = None) -> SweepPlan:
        """The plan with variables filled in, ``predicted`` named and paths absolute.

        Args:
            base: folder that relative paths are relative to.
            where: name of the plan, for messages.

        Raises:
            ConfigError: if a file or checkpoint is missing, or ``predicted`` stands for nothing.
        """
        trace = self.trace
        if trace.partition(":")[0] != SYNTHETIC:
            # What a variable holds was typed in the current folder, not in the plan's.
            trace = _existing(_expanded(trace, where), Path.cwd() if "$" in trace else base, "trace", where)
            if is_workload(trace):
                read_workload(trace)  # what is wrong with it is said now and not by every run
        predictor = self.predictor
        if predictor is not None:
            predictor = _existing(_expanded(predictor, where), base, "predictor", where)

        def named(lengths: list[str]) -> list[str]:
            return list(dict.fromkeys(name(kind) for kind in lengths))

        def name(lengths: str) -> str:
            if lengths == "predicted":
                if predictor is None:
                    raise ConfigError(
                        "lengths: `predicted` needs a checkpoint",
                        where=where,
                        fix="set `predictor:`, write predicted:CHECKPOINT, or pass --predictor",
                    )
                return f"predicted:{predictor}"
            kind, colon, detail = lengths.partition(":")
            if kind == "predicted" and colon:
                return f"predicted:{_existing(_expanded(detail, where), base, 'lengths', where)}"
            return lengths

        def placed(settings: dict[str, Any]) -> dict[str, Any]:
            """Settings that may name a folder beside the plan: the served model, its tokenizer."""
            names = {k: settings[k] for k in ("model", "tokenizer") if settings.get(k)}
            return settings | {k: _located(str(name), base) for k, name in names.items()}

        conditions = {}
        for key, c in self.conditions.items():
            changes: dict[str, Any] = {"settings": placed(c.settings)}
            if c.lengths is not None:
                changes["lengths"] = named(c.lengths)
            conditions[key] = c.model_copy(update=changes)
        update = {"trace": trace, "predictor": predictor, "lengths": named(self.lengths), "conditions": conditions}
        return self.model_copy(update=update | {"settings": placed(self.settings)})

    def expand(self) -> list[PlannedRun]:
        """All runs, each once: seeds innermost, so that a sweep that is stopped early has whole settings."""
        runs = itertools.chain.from_iterable(self._expand_condition(name) for name in self.conditions or [None])
        return list({run.key: run for run in runs}.values())

    def _expand_condition(self, name: str | None) -> Iterator[PlannedRun]:
        changes = Condition() if name is None else self.conditions[name]

        def pick(key: str) -> Any:
            changed = getattr(changes, key)
            return getattr(self, key) if changed is None else changed

        labels = {"engine": "virtual", "condition": name}
        for rate, policy in itertools.product(pick("rates"), pick("policies")):
            for lengths in ["none"] if policy in LENGTH_BLIND else pick("lengths"):
                for seed in pick("seeds"):
                    settings: dict[str, Any] = {
                        "policy": policy,
                        "lengths": lengths,
                        "rate_rps": None if rate == "recorded" else rate,
                        "seed": seed,
                        "trace": self.trace,
                        "requests": pick("requests"),
                        "depth": pick("depth"),
                        **({} if pick("blocks") is None else {"blocks": pick("blocks")}),
                        **self.settings,
                        **changes.settings,
                    }
                    yield PlannedRun.of(settings, labels)


def _yaml_problem(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or "cannot be read"
    return f"line {mark.line + 1}: {problem}" if mark is not None else str(problem)


def _expanded(text: str, where: str | None) -> str:
    text = os.path.expanduser(os.path.expandvars(text))
    missing = re.search(r"\$\{?(\w+)\}?", text)
    if missing:
        raise ConfigError(
            f"the environment variable {missing[1]} is not set", where=where, fix=f"export {missing[1]}=..."
        )
    return text


def _located(text: str, base: Path) -> str:
    """An existing path made absolute; anything else (a hub id) as it is."""
    path = base / Path(text).expanduser()
    return str(path.resolve()) if path.exists() else text


def _existing(text: str, base: Path, key: str, where: str | None) -> str:
    """The absolute path of an existing file or folder, or a hub id as it is."""
    located = _located(text, base)
    if Path(located).is_absolute() and Path(located).exists():
        return located
    if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", text) and not re.search(r"\.(json|jsonl|gz|parquet|csv|ya?ml)$", text):
        return text  # a hub id: what reads it will say if there is none
    raise ConfigError(f"{key}: there is no {text}", where=where, fix="name an existing file or folder, or a hub id")
