"""Loads and settings: runs that differ in nothing but the seed are one setting.

A *setting* is one policy with one kind of lengths and one choice of its knobs under one load. A *load* is an engine, a
condition, a rate, and what else of the load the sweep varied (its trace, GPU, replicas, SLO scale).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from ecoserve.sweep.identity import short_lengths
from ecoserve.sweep.plan import LENGTH_BLIND
from ecoserve.sweep.reporting.metrics import Metric
from ecoserve.sweep.statistics import Comparison, Spread, paired, spread
from ecoserve.sweep.summary import Engine, RunRow

#: What a sweep may vary of a load besides its rate: key of a run, and the words before its value.
VARIANTS: Final = {
    "trace": "", "gpu": "", "model": "", "tp": "tp", "replicas": "replicas:", "slo_scale": "SLO scale",
}  # fmt: skip
POLICY_NAMES: Final = {
    "vllm": "vLLM default",
    "vllm-watermark": "vLLM with watermark",
    "vllm-priority": "vLLM, priority by length",
    "vllm-2024": "vLLM of 2024",
}
#: The dash of a line by the kind of lengths that the policy uses.
_DASHES: Final = {"none": "dot", "true": "longdashdot", "noise": "solid", "predicted": "solid"}


@dataclass(frozen=True, slots=True)
class Load:
    """Engine, condition, rate (requests/s; None for recorded arrivals), and (name, value) of what else was varied."""

    engine: Engine
    condition: str | None
    rate_rps: float | None
    variant: tuple[tuple[str, str], ...] = ()

    @property
    def rate_title(self) -> str:
        """``20 requests/s``."""
        return "recorded arrivals" if self.rate_rps is None else f"{self.rate_rps:g} requests/s"

    @property
    def title(self) -> str:
        """``20 requests/s, pressure``."""
        return ", ".join(part for part in (self.rate_title, self.others_title) if part)

    @property
    def others_title(self) -> str:
        """The title without the rate: ``pressure``; may be empty."""
        named = [f"{VARIANTS[name]} {value}".strip() for name, value in self.variant]
        return ", ".join([*([] if self.condition is None else [self.condition]), *named])

    @property
    def family(self) -> tuple[object, ...]:
        """What loads share that differ in the rate only."""
        return self.engine, self.condition, self.variant


@dataclass(slots=True)
class Setting:
    """All runs of one policy with one kind of lengths and one choice of knobs (name, value) under one load."""

    load: Load
    policy: str
    lengths: str
    knobs: tuple[tuple[str, str], ...] = ()
    runs: list[RunRow] = field(default_factory=list)
    #: place of the policy in the palette; 0 is the baseline
    slot: int = 0

    @property
    def kind(self) -> str:
        """``true``, ``predicted``, ``none``, or ``noise`` for every error of a known kind."""
        kind = self.lengths.partition(":")[0]
        if kind == "server":
            return "predicted"
        return kind if kind in ("true", "predicted", "none") else "noise"

    @property
    def blind(self) -> bool:
        """Whether the policy ignores lengths."""
        return self.policy in LENGTH_BLIND

    @property
    def dash(self) -> str:
        """How the setting's line is drawn, so that colour is never needed."""
        return "dash" if self.blind else _DASHES[self.kind]

    @property
    def name(self) -> str:
        """``ecoserve, predicted lengths``."""
        policy = POLICY_NAMES.get(self.policy, self.policy)
        lengths = "" if self.blind else lengths_name(self.lengths)
        return ", ".join(part for part in (policy, lengths, self.knobs_title) if part)

    @property
    def knobs_title(self) -> str:
        """``epsilon 0.1, headroom 0``; empty if the sweep varied no knob."""
        return ", ".join(f"{name} {value}" for name, value in self.knobs)

    @property
    def choice(self) -> tuple[object, ...]:
        """What the same setting has under every load: policy, lengths and knobs."""
        return self.policy, self.lengths, self.knobs

    def values(self, key: str) -> dict[int, float]:
        """A metric by seed, for the runs that have it."""
        found = ((run.seed, getattr(run, key)) for run in self.runs)
        return {seed: float(value) for seed, value in found if value is not None}

    def level(self, metric: Metric | str) -> Spread | None:
        """A metric over the seeds; None if no run has it."""
        key = metric if isinstance(metric, str) else metric.key
        return spread(list(self.values(key).values()))

    def mean(self, metric: Metric | str) -> float | None:
        """A metric's mean over the seeds."""
        level = self.level(metric)
        return None if level is None else level.mean

    def against(self, other: Setting, metric: Metric) -> Comparison | None:
        """A metric of this setting against another's, paired by seed."""
        return paired(self.values(metric.key), other.values(metric.key), metric.better or "lower")


def lengths_name(lengths: str) -> str:
    """A source of lengths in words."""
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
        "constant": f"{detail} tokens for all requests",
        "random": "lengths of other requests",
        "inverted": "lengths in reversed order",
        "server": "the server’s own predictions",
        "none": "no prediction",
    }.get(kind, lengths)
