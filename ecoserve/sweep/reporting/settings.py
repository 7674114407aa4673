"""Runs gathered to settings: everything but the seed is equal, so that levels and paired differences can be told.

A *setting* is one policy with one kind of lengths and one choice of its knobs under one load; a *load* is an engine, a
condition, a rate, and whatever else of the load the sweep varied (its trace, GPU, replicas, SLO scale).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from ecoserve.sweep.axes import KNOB
from ecoserve.sweep.identity import short_lengths
from ecoserve.sweep.plan import LENGTH_BLIND
from ecoserve.sweep.reporting.metrics import Metric
from ecoserve.sweep.statistics import Comparison, Spread, paired, spread
from ecoserve.sweep.summary import Engine, RunRow

Pressure = Literal["pressure", "no pressure", "between", "unknown"]

#: From DESIGN: peak demand of the load, if nobody waited, over the usable KV.
PRESSURE_FROM: Final = 1.3
NO_PRESSURE_TO: Final = 0.7

#: What a sweep may vary of a load besides its rate: key of a run, and what stands before its value.
_VARIANTS: Final = {
    "trace": "", "gpu": "", "model": "", "tp": "tp", "replicas": "replicas:", "slo_scale": "SLO scale",
}  # fmt: skip

_POLICY_NAMES: Final = {
    "vllm": "vLLM default",
    "vllm-watermark": "vLLM with watermark",
    "vllm-priority": "vLLM, priority by length",
    "vllm-2024": "vLLM of 2024",
}


@dataclass(frozen=True, slots=True)
class Load:
    """What the requests were thrown at: engine, condition, rate (requests/s; None for recorded arrivals)."""

    engine: Engine
    condition: str | None
    rate_rps: float | None
    #: (name, value) of what else the sweep varied
    variant: tuple[tuple[str, str], ...] = ()

    @property
    def rate_title(self) -> str:
        """``20 requests/s``."""
        return "recorded arrivals" if self.rate_rps is None else f"{self.rate_rps:g} requests/s"

    @property
    def title(self) -> str:
        """``20 requests/s, pressure``."""
        return ", ".join([self.rate_title, *self._others])

    @property
    def others_title(self) -> str:
        """The same without the rate: ``pressure``; empty if there is nothing to say."""
        return ", ".join(self._others)

    @property
    def family(self) -> tuple[object, ...]:
        """What loads share that differ in nothing but the rate."""
        return self.engine, self.condition, self.variant

    @property
    def _others(self) -> list[str]:
        named = [f"{_VARIANTS[name]} {value}".strip() for name, value in self.variant]
        return [*([] if self.condition is None else [self.condition]), *named]


@dataclass(slots=True)
class Setting:
    """All runs of one policy with one kind of lengths under one load."""

    load: Load
    policy: str
    lengths: str
    #: (name, value) of the knobs that the sweep turned
    knobs: tuple[tuple[str, str], ...] = ()
    runs: list[RunRow] = field(default_factory=list)

    @property
    def kind(self) -> str:
        """``true``, ``predicted``, ``none``, or ``noise`` for every error of a known kind."""
        kind = self.lengths.partition(":")[0]
        if kind == "server":
            return "predicted"
        return kind if kind in ("true", "predicted", "none") else "noise"

    @property
    def name(self) -> str:
        """For people: ``ecoserve, predicted lengths``."""
        policy = _POLICY_NAMES.get(self.policy, self.policy)
        told = "" if self.policy in LENGTH_BLIND else lengths_name(self.lengths)
        return ", ".join(part for part in (policy, told, self.knobs_title) if part)

    @property
    def knobs_title(self) -> str:
        """``epsilon 0.1, headroom 0``; empty where no knob was turned."""
        return ", ".join(f"{name} {value}" for name, value in self.knobs)

    def values(self, key: str) -> dict[int, float]:
        """A metric by seed, for the runs that have it."""
        found: dict[int, float] = {}
        for run in self.runs:
            value = getattr(run, key)
            if value is not None:
                found[run.seed] = float(value)
        return found

    def level(self, metric: Metric | str) -> Spread | None:
        """A metric over the seeds."""
        key = metric if isinstance(metric, str) else metric.key
        return spread(list(self.values(key).values()))

    def against(self, other: Setting, metric: Metric) -> Comparison | None:
        """A metric of this setting against another's, paired by seed."""
        better = metric.better or "lower"
        return paired(self.values(metric.key), other.values(metric.key), better)


def lengths_name(lengths: str) -> str:
    """What a policy is told, for people."""
    kind, _, detail = lengths.partition(":")
    if kind == "predicted":
        name = short_lengths(lengths).partition(":")[2]
        return f"predicted lengths ({name})" if name else "predicted lengths"
    return {
        "true": "true lengths (oracle)",
        "noise": f"length error σ = {detail}",
        "tau": f"lengths ranked with τ = {detail}",
        "bins": f"a classifier right in {detail} of cases",
        "bias": f"lengths {detail} times the truth",
        "constant": f"{detail} tokens told for all",
        "random": "somebody else’s lengths",
        "inverted": "lengths upside down",
        "server": "the server’s own predictions",
        "none": "no prediction",
    }.get(kind, lengths)


class Settings:
    """All settings of a folder, by load, in the order in which they were planned."""

    def __init__(self, runs: Iterable[RunRow], baseline: str = "vllm") -> None:
        self.baseline = baseline
        found: dict[tuple[Load, str, str, tuple[tuple[str, str], ...]], Setting] = {}
        planned = [run for run in runs if run.search is None]
        varied = [name for name in _VARIANTS if len({str(_label(run, name)) for run in planned}) > 1]
        for run in planned:
            load = Load(run.engine, run.condition, run.rate_rps, tuple((n, str(_label(run, n))) for n in varied))
            knobs = tuple(
                (k.removeprefix(KNOB), str(v)) for k, v in (run.model_extra or {}).items() if k.startswith(KNOB)
            )
            key = (load, run.policy, run.lengths, knobs)
            found.setdefault(key, Setting(load, run.policy, run.lengths, knobs)).runs.append(run)
        self.all: list[Setting] = list(found.values())

    @property
    def baseline_name(self) -> str:
        """What the others are compared with, in running text."""
        return "vLLM’s default" if self.baseline == "vllm" else _POLICY_NAMES.get(self.baseline, self.baseline)

    @property
    def loads(self) -> list[Load]:
        """Every load that has a run."""
        return list(dict.fromkeys(setting.load for setting in self.all))

    def under(self, load: Load) -> list[Setting]:
        """The settings of one load: baseline first, oracle last, else as planned."""
        here = [s for s in self.all if s.load == load]
        return sorted(here, key=lambda s: (s.policy != self.baseline, s.kind == "true"))

    def baseline_of(self, load: Load) -> Setting | None:
        """The setting that the others of a load are compared with."""
        return next((s for s in self.under(load) if s.policy == self.baseline), None)

    def pressure(self, load: Load) -> Pressure:
        """Whether KV is short under a load: by its measured peak demand, else by the condition's name."""
        peak = demand_peak(self.under(load))
        if peak is not None:
            if peak >= PRESSURE_FROM:
                return "pressure"
            return "no pressure" if peak <= NO_PRESSURE_TO else "between"
        name = (load.condition or "").lower().replace("_", "-")
        if name.startswith(("no-pressure", "no pressure", "relaxed")):
            return "no pressure"
        return "pressure" if name.startswith("pressure") else "unknown"


def _label(run: RunRow, name: str) -> object:
    return getattr(run, name, None)


def demand_peak(settings: Sequence[Setting]) -> float | None:
    """Peak KV demand of a load over the usable KV, as the runs measured it; mean over them."""
    peaks = [run.kv_demand_peak for s in settings for run in s.runs if run.kv_demand_peak is not None]
    return sum(peaks) / len(peaks) if peaks else None
