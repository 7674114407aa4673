"""What to run: a plan in YAML, checked and resolved. :mod:`~ecoserve.sweep.expansion` makes runs of it.

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

docs/sweep.md has the other axes, the engines and the search.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, Final, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from ecoserve.data.workload_rows import is_workload
from ecoserve.data.workloads import read_workload
from ecoserve.errors import ConfigError
from ecoserve.sweep.axes import (
    LENGTH_BLIND,
    SERVER,
    SYNTHETIC,
    Condition,
    LengthAxis,
    Name,
    PolicyAxis,
    SeedAxis,
    TraceAxis,
)
from ecoserve.sweep.engines import FUNCTIONS, EngineName
from ecoserve.sweep.identity import PlannedRun
from ecoserve.sweep.search import SearchPlan

__all__ = ["DEFAULT_RUN", "LENGTH_BLIND", "SYNTHETIC", "Condition", "SweepPlan"]

#: The function a sweep calls for each run unless its plan names another.
DEFAULT_RUN: Final = FUNCTIONS["virtual"]


class SweepPlan(Condition):
    """A sweep: the axes, the load, and what runs it."""

    title: str = Field("Accuracy versus throughput", min_length=1, max_length=200)
    trace: TraceAxis = Field(description="Files, hub ids, or `synthetic`.")
    predictor: str | None = Field(
        default=None, description="Checkpoint (folder or hub id) that `predicted` stands for."
    )
    policies: PolicyAxis = Field(["vllm", "ecoserve"])
    lengths: LengthAxis = Field(["true", "none"])
    seeds: SeedAxis = Field([0, 1, 2])
    requests: int = Field(400, description="Requests of one run.", ge=1)
    depth: Literal[1, 2] = Field(2, description="Pipeline depth: steps scheduled ahead of their output, plus one.")
    conditions: dict[Name, Condition] = Field(default_factory=dict)
    search: SearchPlan | None = Field(default=None, description="Search for the highest rate that meets a bound.")
    engine: EngineName = Field("virtual", description="What runs the runs.")
    urls: dict[str, str] = Field(default_factory=dict, description="Engine url: the server of each policy.")
    run: str = Field("", pattern=r"^([\w.]+:\w+)?$", description="Run function, as module:name, in place of ours.")

    @model_validator(mode="before")
    @classmethod
    def _filled(cls, content: Any) -> Any:
        """Policies at URLs are the servers that are named, unless a part of them is."""
        if isinstance(content, dict) and isinstance(content.get("urls"), dict):
            return {"policies": list(content["urls"]), "lengths": SERVER, **content}
        return content

    @model_validator(mode="after")
    def _whole(self) -> SweepPlan:
        if self.search is None and self.rates is None and not all(c.rates for c in self.conditions.values() or [self]):
            raise ValueError("rates: Field required")
        if (self.engine == "url") != bool(self.urls):
            raise ValueError("urls: goes with engine: url, which needs the server of each policy")
        at_servers = [self, *self.conditions.values()]
        if self.engine != "url" and any(SERVER in (c.lengths or []) for c in at_servers):
            raise ValueError("lengths: `server` is for engine: url")
        for policy in {p for c in at_servers for p in c.policies or []} if self.urls else ():
            if policy not in self.urls:
                raise ValueError(f"urls: names no server of policy {policy}")
        if "api_key" in self.settings:
            raise ValueError("settings: a key has no place in a plan; export VLLM_API_KEY")
        self.run = self.run or FUNCTIONS[self.engine]
        return self

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
            words = first["msg"].removeprefix("Value error, ")
            what = f"{key}: {words}" if key else words
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

        def found(traces: list[str]) -> list[str]:
            located = list(dict.fromkeys(_trace(trace, base, where) for trace in traces))
            if len({Path(trace).name for trace in located}) < len(located):
                raise ConfigError("trace: two files have one name", where=where, fix="rename one: runs carry the name")
            return located

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

        def changes(c: Condition) -> dict[str, Any]:
            """What of a condition, or of the plan itself, names files."""
            out: dict[str, Any] = {"settings": placed(c.settings)}
            if c.trace is not None:
                out["trace"] = found(c.trace)
            if c.lengths is not None:
                out["lengths"] = named(c.lengths)
            if c.gpus is not None:
                out["gpus"] = [
                    g.model_copy(update={"model": _located(g.model, base)}) if g.model else g for g in c.gpus
                ]
            return out

        conditions = {key: c.model_copy(update=changes(c)) for key, c in self.conditions.items()}
        return self.model_copy(update={**changes(self), "predictor": predictor, "conditions": conditions})

    def expand(self) -> list[PlannedRun]:
        """All runs but those of a search, each once: seeds innermost, so that a sweep stopped early has whole settings.

        Raises:
            ConfigError: for a setting or knob that the run function does not take.
        """
        from ecoserve.sweep.expansion import expand

        return expand(self)


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


def _trace(text: str, base: Path, where: str | None) -> str:
    if text.partition(":")[0] == SYNTHETIC:
        return text
    # What a variable holds was typed in the current folder, not in the plan's.
    trace = _existing(_expanded(text, where), Path.cwd() if "$" in text else base, "trace", where)
    if is_workload(trace):
        read_workload(trace)  # what is wrong with it is said now and not by every run
    return trace
