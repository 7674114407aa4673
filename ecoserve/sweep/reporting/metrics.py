"""The metrics of the report: name, unit, direction, and how numbers are written.

Definitions live in :mod:`ecoserve.serving.runs`, units in :mod:`ecoserve.sweep.summary`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ecoserve.pages.numbers import NOTHING, digits, signed, write, write_change
from ecoserve.sweep.statistics import Better, Comparison, Spread


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric as the report shows it.

    Attributes:
        key: its key in a run.
        title: its name.
        unit: the unit of its numbers.
        better: which way is better; None where neither is.
        note: one sentence for a newcomer.
        column_unit, column_scale: the unit of all numbers of a column or axis, and what a value is multiplied with.
    """

    key: str
    title: str
    unit: str
    better: Better | None
    note: str
    column_unit: str = ""
    column_scale: float = 1.0

    @property
    def heading(self) -> str:
        """Title and unit for the head of a column."""
        unit = self.column_unit or self.unit
        return f"{self.title} ({unit})" if unit else self.title

    def column(self, value: float | None) -> str:
        """A value under :attr:`heading`: the number alone."""
        return NOTHING if value is None else digits(value * self.column_scale, count=not self.unit)

    def column_spread(self, level: Spread | None) -> str:
        """The range over seeds under :attr:`heading`; empty if all seeds agree or there is one."""
        if level is None or level.n < 2 or level.low == level.high:
            return ""
        low, high = self.column(level.low), self.column(level.high)
        return "" if low == high else f"{low} to {high}"

    def write(self, value: float | None) -> str:
        """A value with its unit."""
        return write(value, self.unit)

    def write_spread(self, level: Spread | None) -> str:
        """The range over seeds with its unit; empty if all seeds agree or there is one."""
        if level is None or level.n < 2 or level.low == level.high:
            return ""
        low, high = self.write(level.low), self.write(level.high)
        unit = high.rpartition(" ")[2] if " " in high else ""
        return f"{low.removesuffix(unit).rstrip() if low.endswith(f' {unit}') else low} to {high}"

    def write_level(self, level: Spread | None) -> str:
        """The mean, and in brackets the range over seeds."""
        ranged = self.write_spread(level)
        return self.write(level.mean if level else None) + (f" (seeds: {ranged})" if ranged else "")


_PER_TOKEN: Final = "Time from arrival to the last token, divided by the tokens of the answer"
NORMALIZED: Final = Metric(
    "normalized_latency_mean_ms", "Normalized latency", "ms/token", "lower", f"{_PER_TOKEN}; mean over requests."
)
NORMALIZED_P99: Final = Metric(
    "normalized_latency_p99_ms", "Normalized latency p99", "ms/token", "lower",
    f"{_PER_TOKEN}: 99 of 100 requests have less.",
)  # fmt: skip
JCT: Final = Metric(
    "e2el_mean_ms", "JCT", "ms", "lower", "Job completion time: from arrival to the last token; mean.", "s", 1e-3
)
TTFT: Final = Metric("ttft_mean_ms", "TTFT", "ms", "lower", "Time to first token, from arrival; mean.")
TTFT_P99: Final = Metric(
    "ttft_p99_ms", "TTFT p99", "ms", "lower", "Time to first token: 99 of 100 requests have less.", "s", 1e-3
)
TPOT_P99: Final = Metric(
    "tpot_p99_ms", "TPOT p99", "ms", "lower", "Time per output token: 99 of 100 requests have less."
)
THROUGHPUT: Final = Metric(
    "output_tokens_per_s", "Throughput", "tokens/s", "higher", "Generated tokens of finished answers per second."
)
PREEMPTIONS: Final = Metric(
    "preemptions", "Preemptions", "", "lower", "Times a running request lost its KV cache and had to start over."
)
RECOMPUTED: Final = Metric(
    "recomputed_tokens", "Recomputed tokens", "", "lower", "Tokens computed a second time because of preemptions."
)
PAUSES: Final = Metric(
    "pauses", "Pauses", "", None, "Times a request was stopped for a while with its KV cache kept: nothing is lost."
)
GOODPUT: Final = Metric("goodput_rps", "Goodput", "requests/s", "higher", "Requests that met their SLO, per second.")
SLO: Final = Metric(
    "slo_attainment", "SLO attainment", "share", "higher", "Share of requests that met their SLO.", "%", 100.0
)

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
