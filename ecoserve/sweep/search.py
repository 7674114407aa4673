"""The highest rate that meets a bound, in few runs: one search per point of the axes (docs/guides/sweep.md).

A bracketing secant method in the manner of Dekker, on the logarithm of the rate. The other seeds' effect is assumed at
neighbouring rates (a control variate) until they have been run there.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, Final, Literal, Protocol

from ecoserve.errors import ConfigError
from ecoserve.sweep.expansion import Point, check, points_of
from ecoserve.sweep.identity import PlannedRun
from ecoserve.sweep.plan import KNOB, SearchPlan, SweepPlan
from ecoserve.sweep.summary import SearchRow

#: A bracket wider than this (upper over lower end) is halved by the first seed alone.
_COARSE: Final = 1.25
#: Significant digits of a rate, so that two machines' logarithms give the same number.
_DIGITS: Final = 6

State = Literal["found", "met everywhere", "met nowhere", "out of runs", "a run failed", "no such figure"]


@dataclass(slots=True)
class Search:
    """One search: given values of the metric (by rate and seed), it names the next runs; ``state``: how it ended."""

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
        return fmean(self.values[rate].values())

    def score(self, rate: float) -> float:
        """Margin by which the mean over the seeds known at a rate meets the bound; negative if it misses it."""
        return self._score(self.mean(rate))

    def _score(self, mean: float) -> float:
        if self.plan.at_least is not None:
            return mean - self.bound
        return math.log(self.bound / mean) if mean > 0 and self.bound > 0 else self.bound - mean

    def contrary(self) -> tuple[list[float], list[float]]:
        """Where the metric is not monotone: rates below the answer that miss the bound, rates above it that meet it."""
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
        return self._score(self.values[rate][self.seeds[0]])

    def _whole(self, rate: float) -> bool:
        return len(self.values[rate]) == len(self.seeds)

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


#: Label of a search's runs, and its values: a step towards the rate, or the unloaded reference.
LABEL: Final = "search"
STEP: Final = "step"
UNLOADED: Final = "unloaded"
#: Policy of the reference.
_BASELINE: Final = "vllm"


@dataclass(slots=True)
class _One:
    """One search with its point, its reference, and the runs it has requested, in order (run, rate, seed by key)."""

    plan: SearchPlan
    point: Point
    unloaded: Point
    search: Search | None = None
    reference: dict[str, float | None] = field(default_factory=dict)
    asked: dict[str, tuple[PlannedRun, float, int]] = field(default_factory=dict)
    open: set[str] = field(default_factory=set)
    failed: bool = False

    def begin(self) -> list[PlannedRun]:
        if self.plan.at_most_times_unloaded is None:
            bound = self.plan.at_least if self.plan.at_least is not None else self.plan.at_most
            assert bound is not None
            return self._begin(bound)
        rate = self.plan.unloaded_rate
        return self._request(self.unloaded, [(rate, seed) for seed in self.point.seeds], UNLOADED)

    def ended(self, key: str, row: Mapping[str, Any] | None) -> list[PlannedRun]:
        self.open.discard(key)
        _, rate, seed = self.asked[key]
        value = None if row is None else row.get(self.plan.metric)
        if self.search is None:
            self.reference[key] = value
            self.failed |= row is None
        elif row is None:
            self.search.failed()
        else:
            self.search.add(rate, seed, value)
        if self.open:
            return []
        if self.search is not None:
            return self._next(self.search)
        values = [value for value in self.reference.values() if value is not None]
        assert self.plan.at_most_times_unloaded is not None
        whole = len(values) == len(self.reference)
        return self._begin(self.plan.at_most_times_unloaded * fmean(values) if whole else math.nan)

    def _begin(self, bound: float) -> list[PlannedRun]:
        self.search = Search(self.plan, self.point.seeds, bound)
        if math.isnan(bound):
            self.search.state = "a run failed" if self.failed else "no such figure"
        return self._next(self.search)

    def _next(self, search: Search) -> list[PlannedRun]:
        return self._request(self.point, search.next(), STEP)

    def _request(self, point: Point, wanted: list[tuple[float, int]], label: str) -> list[PlannedRun]:
        runs = {
            run.key: (run, rate, seed) for rate, seed in wanted for run in [point.run(rate, seed, **{LABEL: label})]
        }
        self.asked |= runs
        self.open |= runs.keys()
        return [run for run, _, _ in runs.values()]

    def at_most_left(self) -> int:
        """Runs that may still come, besides those requested."""
        if self.search is not None and self.search.state is not None:
            return 0
        return self.plan.max_runs * len(self.point.seeds) - len(self._steps())

    def _steps(self) -> list[str]:
        return [key for key, (run, _, _) in self.asked.items() if run.labels[LABEL] == STEP]

    def row(self) -> SearchRow:
        search = self.search
        row: dict[str, Any] = {
            **{name: value for name, value in self.point.labels.items() if value is not None},
            **{name: self.point.settings[name] for name in ("policy", "lengths")},
            "metric": self.plan.metric,
            "state": (search.state if search else None) or "not ended",
            "runs": self._steps(),
        }
        if search is not None:
            low, high = search.bracket()
            below, above = search.contrary()
            bound = search.bound if math.isfinite(search.bound) else None
            row |= {
                "at_least" if self.plan.at_least is not None else "at_most": bound,
                "rate_rps": low,
                "missed_from_rps": high,
                "value": None if low is None else search.mean(low),
                "value_missed": None if high is None else search.mean(high),
                "tried": sorted(search.values),
                "missed_below_rps": below,
                "met_above_rps": above,
            }
        return SearchRow.model_validate(row)


class Searching(Protocol):
    """A search as :class:`Searches` drives it; ``asked`` has every run it has requested, first in its tuple, by key."""

    asked: dict[str, tuple[PlannedRun, Any, Any]]

    def begin(self) -> list[PlannedRun]: ...

    def ended(self, key: str, row: Mapping[str, Any] | None) -> list[PlannedRun]:
        """The runs that follow, once all that were requested have ended; ``row`` is None if the run failed."""

    def at_most_left(self) -> int: ...

    def row(self) -> SearchRow | None:
        """Its result for the summary, if it belongs there."""


class Searches:
    """Searches that are run together: a run that several request is run once."""

    def __init__(self, searches: Sequence[Searching]) -> None:
        self._all = searches
        self._of: dict[str, list[Searching]] = {}
        self._ended: dict[str, Mapping[str, Any] | None] = {}

    @classmethod
    def of(cls, plan: SweepPlan) -> Searches:
        """All searches of a plan; ConfigError for a setting or knob that the run function does not take."""
        assert plan.search is not None
        if plan.urls and plan.search.at_most_times_unloaded and _BASELINE not in plan.urls:
            raise ConfigError("at_most_times_unloaded needs a server of policy vllm", where="urls", fix="name one")
        points = [point for name in plan.conditions or [None] for point in points_of(plan, name)]
        check(plan, [point.run(plan.search.range[0], point.seeds[0]) for point in points])
        url = plan.urls.get(_BASELINE)
        return cls([_One(plan.search, point, _unloaded(point, url)) for point in points])

    def __len__(self) -> int:
        return len(self._all)

    def begin(self) -> list[PlannedRun]:
        return [run for one in self._all for run in self._new(one, one.begin())]

    def ended(self, run: PlannedRun, row: Mapping[str, Any] | None) -> list[PlannedRun]:
        """The runs that follow from one that ended; ``row`` is None if it failed."""
        self._ended[run.key] = row
        return [new for one in self._of.get(run.key, []) for new in self._new(one, one.ended(run.key, row))]

    def follow(
        self, runs: Iterable[PlannedRun], row_of: Callable[[str], Mapping[str, Any] | None]
    ) -> tuple[list[PlannedRun], list[PlannedRun]]:
        """Of the runs and those that follow from them: the ones to be run, and the finished ones (with a row)."""
        asked, left, finished = deque(runs), [], []
        while asked:
            run = asked.popleft()
            row = row_of(run.key)
            if row is None:
                left.append(run)
            else:
                finished.append(run)
                asked.extend(self.ended(run, row))
        return left, finished

    def _new(self, one: Searching, runs: Iterable[PlannedRun]) -> list[PlannedRun]:
        """The runs that no search has requested before; those that have ended already are answered at once."""
        new, asked = [], deque(runs)
        while asked:
            run = asked.popleft()
            if run.key in self._ended:
                asked.extend(one.ended(run.key, self._ended[run.key]))
                continue
            if run.key not in self._of:
                new.append(run)
            self._of.setdefault(run.key, []).append(one)
        return new

    def at_most_left(self) -> int:
        return sum(one.at_most_left() for one in self._all)

    def runs(self) -> list[PlannedRun]:
        """Every run requested, each once, search by search: an order that does not depend on timing."""
        found = {key: run for one in self._all for key, (run, _, _) in one.asked.items()}
        return list(found.values())

    def rows(self) -> list[SearchRow]:
        return [row for one in self._all if (row := one.row()) is not None]


def _unloaded(point: Point, url: str | None) -> Point:
    """The stock engine under the same load, whatever the point's policy and knobs."""
    settings = {k: v for k, v in point.settings.items() if k != "scheduler"}
    labels = {k: v for k, v in point.labels.items() if not k.startswith(KNOB)}
    at = {} if url is None else {"url": url}
    return Point({**settings, "policy": _BASELINE, "lengths": "none", **at}, labels, seeds=point.seeds)
