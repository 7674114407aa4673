"""Metrics, and the loads and settings that they are of.

A *setting* is one policy with one kind of lengths and one choice of its knobs under one load, over all seeds. A *load*
is an engine, a condition, a rate, and what else of the load the sweep varied.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from ecoserve.pages import plain, plots
from ecoserve.pages.tables import NOTHING, digits, signed, write, write_change
from ecoserve.schema import Better
from ecoserve.serving.core.policies import BOUND, LENGTH_BLIND
from ecoserve.sweep.identity import short_lengths
from ecoserve.sweep.statistics import Comparison, Spread, paired, spread
from ecoserve.sweep.summary import Engine, RunRow, better


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric as the report shows it.

    ``column_unit``, ``column_scale``: the unit of a column or axis, and what a value is multiplied with.
    """

    key: str
    title: str
    unit: str
    note: str
    column_unit: str = ""
    column_scale: float = 1.0

    @property
    def better(self) -> Better | None:
        return better(self.key)

    @property
    def heading(self) -> str:
        unit = self.column_unit or self.unit
        return f"{self.title} ({unit})" if unit else self.title

    def column(self, value: float | None) -> str:
        """A value under :attr:`heading`: the number alone."""
        return NOTHING if value is None else digits(value * self.column_scale, count=not self.unit)

    def column_spread(self, level: Spread | None) -> str:
        """The range over seeds under :attr:`heading`; empty if all seeds agree or there is one."""
        low, high = (self.column(level.low), self.column(level.high)) if level is not None else ("", "")
        return "" if low == high else f"{low} to {high}"

    def write(self, value: float | None) -> str:
        return write(value, self.unit)

    def write_spread(self, level: Spread | None) -> str:
        """The range over seeds with its unit; empty if all seeds agree or there is one."""
        if level is None or level.n < 2 or level.low == level.high:
            return ""
        low, high = self.write(level.low), self.write(level.high)
        unit = high.rpartition(" ")[2] if " " in high else ""
        return f"{low.removesuffix(unit).rstrip() if low.endswith(f' {unit}') else low} to {high}"

    def write_level(self, level: Spread | None) -> str:
        ranged = self.write_spread(level)
        return self.write(level.mean if level else None) + (f" (seeds: {ranged})" if ranged else "")


_PER_TOKEN: Final = "Time from arrival to the last token, divided by the tokens of the answer"
NORMALIZED: Final = Metric(
    "normalized_latency_mean_ms", "Normalized latency", "ms/token", f"{_PER_TOKEN}; mean over requests."
)
NORMALIZED_P99: Final = Metric(
    "normalized_latency_p99_ms", "Normalized latency p99", "ms/token", f"{_PER_TOKEN}: 99 of 100 requests have less."
)
JCT: Final = Metric(
    "e2el_mean_ms", "JCT", "ms", "Job completion time: from arrival to the last token; mean.", "s", 1e-3
)
TTFT: Final = Metric("ttft_mean_ms", "TTFT", "ms", "Time to first token, from arrival; mean.")
TTFT_P99: Final = Metric(
    "ttft_p99_ms", "TTFT p99", "ms", "Time to first token: 99 of 100 requests have less.", "s", 1e-3
)
TPOT: Final = Metric("tpot_mean_ms", "TPOT", "ms", "Time per output token after the first; mean.")
TPOT_P99: Final = Metric("tpot_p99_ms", "TPOT p99", "ms", "Time per output token: 99 of 100 requests have less.")
THROUGHPUT: Final = Metric(
    "output_tokens_per_s", "Throughput", "tokens/s", "Generated tokens of finished answers per second."
)
PREEMPTIONS: Final = Metric(
    "preemptions", "Preemptions", "", "Times a running request lost its KV cache and had to start over."
)
RECOMPUTED: Final = Metric(
    "recomputed_tokens", "Recomputed tokens", "", "Tokens computed a second time because of preemptions."
)
PAUSES: Final = Metric(
    "pauses", "Pauses", "", "Times a request was stopped for a while with its KV cache kept: nothing is lost."
)
GOODPUT: Final = Metric("goodput_rps", "Goodput", "requests/s", "Requests that met their SLO, per second.")
SLO: Final = Metric("slo_attainment", "SLO attainment", "share", "Share of requests that met their SLO.", "%", 100.0)

#: The columns of a table of settings, in this order.
MAIN: Final = (NORMALIZED, JCT, THROUGHPUT, SLO, PREEMPTIONS, RECOMPUTED, PAUSES)


def inner(title: str) -> str:
    """A title within a sentence: ``throughput``, but ``JCT``."""
    return title if title.isupper() else title[:1].lower() + title[1:]


def write_comparison(comparison: Comparison) -> tuple[str, str]:
    """A difference and its 95 % interval (empty with one seed): ``("−71 %", "−74 % to −68 %")``."""

    def text(value: float) -> str:
        return signed(value) if comparison.relative is None else write_change(value)

    low, high = comparison.low, comparison.high
    center = text(comparison.difference if comparison.relative is None else comparison.relative)
    return center, "" if low is None or high is None else f"{text(low)} to {text(high)}"


#: What a sweep may vary of a load besides its rate: key of a run, and the words before its value.
VARIANTS: Final = {
    "trace": "", "gpu": "", "model": "", "tp": "tp", "replicas": "replicas:", "router": "", "slo_scale": "SLO scale",
}  # fmt: skip
POLICY_NAMES: Final = {
    "vllm": "vLLM default",
    "vllm-watermark": "vLLM with watermark",
    "vllm-priority": "vLLM, priority by length",
    "order": "level order",
    "vllm-2024": "vLLM of 2024",
    "orca": "ORCA",
    "sarathi": "Sarathi-Serve",
    "fastgen": "FastGen",
    "fastserve": "FastServe",
    "multires": "MultiRes",
    "past-future": "Past-Future",
    "hrrn": "HRRN",
    "volume": "smallest volume first",
    "distserve": "DistServe",
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
        kind = "true" if self.policy == BOUND else self.lengths.partition(":")[0]
        if kind == "server":
            return "predicted"
        return kind if kind in ("true", "predicted", "none") else "noise"

    @property
    def blind(self) -> bool:
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
        """``epsilon 0.1, resume_steps 8``; empty if the sweep varied no knob."""
        return ", ".join(f"{name} {value}" for name, value in self.knobs)

    @property
    def choice(self) -> tuple[object, ...]:
        """What the same setting has under every load: policy, lengths and knobs."""
        return self.policy, self.lengths, self.knobs

    def values(self, key: str) -> dict[int, float]:
        found = ((run.seed, getattr(run, key)) for run in self.runs)
        return {seed: float(value) for seed, value in found if value is not None}

    def level(self, metric: Metric | str) -> Spread | None:
        key = metric if isinstance(metric, str) else metric.key
        return spread(list(self.values(key).values()))

    def mean(self, metric: Metric | str) -> float | None:
        level = self.level(metric)
        return None if level is None else level.mean

    def against(self, other: Setting, metric: Metric) -> Comparison | None:
        return paired(self.values(metric.key), other.values(metric.key), metric.better or "lower")


def lengths_name(lengths: str) -> str:
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


def setting_line(setting: Setting, by: Mapping[str, plots.Trace], **more: Any) -> plots.Trace:
    """A line in a setting's colour and dash; ``by`` holds its points for each choice of the figure."""
    looks = {"dash": setting.dash, "symbol": "circle", "hover": "%{text}", **more}
    return plots.line([], [], setting.slot, setting.name, by=by, **looks)


def level_points(points: Sequence[tuple[float | str, Setting]], metric: Metric, unit_of_x: str = "") -> plots.Trace:
    """A metric's mean at each x, in its column unit, with whiskers over the seeds and the text shown on hover."""
    known = [(x, s, level) for x, s in points if (level := s.level(metric)) is not None]
    means, low, high = (
        [metric.column_scale * getattr(level, name) for *_, level in known] for name in ("mean", "low", "high")
    )
    text = [
        f"{plain(s.name)}<br>{x} {unit_of_x}<br>{plain(metric.title)} {plain(metric.write_level(level))}"
        for x, s, level in known
    ]
    return {"x": [x for x, *_ in known], "y": means, "error_y": plots.whiskers(means, low, high), "text": text}


def y_choices(metrics: Sequence[Metric]) -> dict[str, Any]:
    """The layout's ``meta`` for a y axis that may show any of these metrics."""
    return {"axis": "y", "measures": {m.key: {"title": m.heading, "tickformat": ""} for m in metrics}}
