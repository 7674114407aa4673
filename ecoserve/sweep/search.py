"""The highest rate that meets a bound, in few runs.

The answer is the highest rate tried at which the mean over the seeds meets the bound, below every rate tried at which
it does not; the lowest of those is at most the tolerance above it. Where the metric is not monotone in the rate, the
answer is the lowest such crossing, and the others are named.

A seed's arrivals and requests are the same at all rates, only stretched, so each seed's metric is nearly smooth in the
rate. While the bracket is wide the first seed alone halves it on the logarithm of the rate. Inside, every rate is run
with all seeds, at the crossing of a straight line through the bracket's ends, or, where that closes in too slowly, in
the middle again (a bracketing secant method in the manner of Dekker). The other seeds' effect at one rate is assumed at
its neighbours (a control variate) until they have been run there. Ends of the range are only run where the bracket
reaches them.
"""

from __future__ import annotations

import math
import typing
from dataclasses import dataclass, field
from statistics import fmean
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from ecoserve.deprecations import SUMMARY_KEYS, renamed
from ecoserve.sweep.axes import Positive
from ecoserve.sweep.summary import RunRow

#: A bracket wider than this (upper over lower end) is halved by the first seed alone.
_COARSE: Final = 1.25
#: Significant digits of a rate, so that two machines' logarithms give the same number.
_DIGITS: Final = 6

State = Literal["found", "met everywhere", "met nowhere", "out of runs", "a run failed", "no such figure"]


class SearchPlan(BaseModel):
    """What a search looks for."""

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


@dataclass(slots=True)
class Search:
    """One search: given values, it names the next runs.

    Attributes:
        plan: what is looked for. seeds: in order. bound: of the metric.
        values: by rate and seed.
        state: how it ended; None while it has not.
    """

    plan: SearchPlan
    seeds: tuple[int, ...]
    bound: float
    values: dict[float, dict[int, float]] = field(default_factory=dict)
    state: State | None = None
    _widths: list[float] = field(default_factory=list)

    def add(self, rate: float, seed: int, value: float | None) -> None:
        """Take the metric of a run; None if the run has no such figure."""
        if value is None or not math.isfinite(value):
            self.state = "no such figure"
        else:
            self.values.setdefault(rate, {})[seed] = value

    def failed(self) -> None:
        """A run of this search failed."""
        self.state = "a run failed"

    def next(self) -> list[tuple[float, int]]:
        """Rates and seeds to run next; all their values are to be added before the next call. None: it has ended."""
        if self.state is not None:
            return []
        low, high = self.bracket()
        first, last = self.plan.range
        if high == first or low == last:
            self.state = "met nowhere" if high == first else "met everywhere"
        elif low and high and self._close(low, high):
            self.state = "found"
        else:
            rate, seeds = self._choose(low, high)
            known = self.values.get(rate, {})
            if known or len(self.values) < self.plan.max_runs:
                return [(rate, seed) for seed in seeds if seed not in known]
            self.state = "out of runs"
        return []

    def bracket(self) -> tuple[float | None, float | None]:
        """The answer so far and the lowest rate that misses the bound; None where none has been tried."""
        whole = [rate for rate in self.values if self._whole(rate)]
        high = min((rate for rate in whole if self.score(rate) < 0), default=None)
        low = max((rate for rate in whole if self.score(rate) >= 0 and (high is None or rate < high)), default=None)
        return low, high

    def mean(self, rate: float) -> float:
        """The metric at a rate, over the seeds known there."""
        return fmean(self.values[rate].values())

    def score(self, rate: float) -> float:
        """Margin by which the mean over the seeds known at a rate meets the bound; negative if it misses it."""
        return self._score(self.mean(rate))

    def _score(self, mean: float) -> float:
        if self.plan.at_least is not None:
            return mean - self.bound
        return math.log(self.bound / mean) if mean > 0 and self.bound > 0 else self.bound - mean

    def contrary(self) -> tuple[list[float], list[float]]:
        """Where the metric is not monotone: rates below the answer that miss the bound, rates above it that meet it.

        A rate that only the first seed was run at is compared with this seed at the answer.
        """
        low, high = self.bracket()
        below = [rate for rate in self.values if low and rate < low and self._first(rate) < 0 <= self._first(low)]
        above = [
            rate
            for rate in self.values
            if high
            and rate > high
            and (self._first(rate) >= 0 > self._first(high) or (self._whole(rate) and self.score(rate) >= 0))
        ]
        return sorted(below), sorted(above)

    def _first(self, rate: float) -> float:
        """The first seed's score."""
        return self._score(self.values[rate][self.seeds[0]])

    def _whole(self, rate: float) -> bool:
        """Whether all seeds are known at a rate."""
        return len(self.values[rate]) == len(self.seeds)

    # -- where to look ------------------------------------------------------------------------------------------------

    def _close(self, low: float, high: float) -> bool:
        return high <= low * (1 + self.plan.tolerance)

    def _choose(self, low: float | None, high: float | None) -> tuple[float, tuple[int, ...]]:
        a, b = low or self.plan.range[0], high or self.plan.range[1]
        # The first seed alone narrows the bracket, but does not close it.
        missed = min((r for r in self.values if a < r < b and self._guess(r) < 0), default=b)
        met = max((r for r in self.values if a < r < missed and self._guess(r) >= 0), default=a)
        if missed > met * _COARSE:
            if len(self.seeds) == 1 or (low is None and high is None):
                return _rounded(math.sqrt(met * missed)), self.seeds[:1]
            # The first seed was no good guide: step by step away from the rates that all seeds were run at.
            if missed <= met * _COARSE**2:
                return _rounded(math.sqrt(met * missed)), self.seeds
            return _rounded(missed / _COARSE if missed in self.values else met * _COARSE), self.seeds
        if self._close(met, missed):
            # Closed, but for an end that not every seed, or no run at all, was run at.
            return (met if met != low else missed), self.seeds
        self._widths.append(math.log(b / a))
        return self._inside(met, missed), self.seeds

    def _guess(self, rate: float) -> float:
        """A rate's score, or its forecast: the first seed's, plus the other seeds' effect at the nearest rate."""
        if self._whole(rate):
            return self.score(rate)
        whole = [r for r in self.values if self._whole(r)]
        near = min(whole, key=lambda r: (abs(math.log(r / rate)), r), default=None)
        if near is None or abs(math.log(near / rate)) > math.log(_COARSE):
            return self._first(rate)
        return self._first(rate) + (self.score(near) - self._first(near))

    def _inside(self, met: float, missed: float) -> float:
        """A rate within the bracket, such that the next one may close it."""
        tolerance = self.plan.tolerance
        slow = len(self._widths) > 2 and self._widths[-1] > self._widths[-3] / 2
        if slow or met not in self.values or missed not in self.values:
            return _rounded(math.sqrt(met * missed))
        up, down = self._guess(met), -self._guess(missed)
        part = up / (up + down) if up + down > 0 else 0.5
        crossing = met * (missed / met) ** part
        if crossing <= met * (1 + tolerance):
            return _rounded(met * (1 + 0.95 * tolerance))
        if crossing >= missed / (1 + tolerance):
            return _rounded(missed / (1 + 0.95 * tolerance))
        return _rounded(crossing)


def _rounded(rate: float) -> float:
    return float(f"{rate:.{_DIGITS}g}")
