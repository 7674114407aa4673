"""The searches of a sweep: one for every point of its axes, all of them at once, each given its own runs alone.

A search's next runs depend on its own runs only, so order, number of processes and interruptions change nothing: a
search that is resumed takes the finished runs first, and requests the same ones again.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, Final

from ecoserve.errors import ConfigError
from ecoserve.sweep.axes import KNOB
from ecoserve.sweep.expansion import Point, check, points_of
from ecoserve.sweep.identity import PlannedRun
from ecoserve.sweep.plan import SweepPlan
from ecoserve.sweep.search import Search, SearchPlan
from ecoserve.sweep.summary import SearchRow

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
        """The first runs."""
        if self.plan.at_most_times_unloaded is None:
            bound = self.plan.at_least if self.plan.at_least is not None else self.plan.at_most
            assert bound is not None
            return self._begin(bound)
        rate = self.plan.unloaded_rate
        return self._request(self.unloaded, [(rate, seed) for seed in self.point.seeds], UNLOADED)

    def ended(self, key: str, row: Mapping[str, Any] | None) -> list[PlannedRun]:
        """The runs that follow from a run of this search; ``row`` is None if it failed."""
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
        """The search as the summary has it."""
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


class Searches:
    """All searches of a plan.

    Raises:
        ConfigError: for a setting or knob that the run function does not take.
    """

    def __init__(self, plan: SweepPlan) -> None:
        assert plan.search is not None
        if plan.urls and plan.search.at_most_times_unloaded and _BASELINE not in plan.urls:
            raise ConfigError("at_most_times_unloaded needs a server of policy vllm", where="urls", fix="name one")
        points = [point for name in plan.conditions or [None] for point in points_of(plan, name)]
        check(plan, [point.run(plan.search.range[0], point.seeds[0]) for point in points])
        url = plan.urls.get(_BASELINE)
        self._all = [_One(plan.search, point, _unloaded(point, url)) for point in points]
        self._of: dict[str, list[_One]] = {}

    def __len__(self) -> int:
        return len(self._all)

    def begin(self) -> list[PlannedRun]:
        """The first runs of every search, each once."""
        return [run for one in self._all for run in self._new(one, one.begin())]

    def ended(self, run: PlannedRun, row: Mapping[str, Any] | None) -> list[PlannedRun]:
        """The runs that follow from one that ended; ``row`` is None if it failed."""
        return [new for one in self._of.get(run.key, []) for new in self._new(one, one.ended(run.key, row))]

    def follow(
        self, runs: Iterable[PlannedRun], row_of: Callable[[str], Mapping[str, Any] | None]
    ) -> tuple[list[PlannedRun], list[PlannedRun]]:
        """Of the runs, and of those that follow from them: the ones still to be run, and the finished ones.

        Args:
            runs: requested runs. row_of: the row of a finished run by its key, None for others.
        """
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

    def _new(self, one: _One, runs: Iterable[PlannedRun]) -> list[PlannedRun]:
        """The runs that no search has requested before: a reference serves all searches under its load."""
        new = []
        for run in runs:
            if run.key not in self._of:
                new.append(run)
            self._of.setdefault(run.key, []).append(one)
        return new

    def at_most_left(self) -> int:
        """Runs that may still come, besides those requested."""
        return sum(one.at_most_left() for one in self._all)

    def runs(self) -> list[PlannedRun]:
        """Every run requested, each once, search by search: an order that does not depend on timing."""
        found = {key: run for one in self._all for key, (run, _, _) in one.asked.items()}
        return list(found.values())

    def rows(self) -> list[SearchRow]:
        """The results, in the order of the plan."""
        return [one.row() for one in self._all]


def _unloaded(point: Point, url: str | None) -> Point:
    """The stock engine under the same load, whatever the point's policy and knobs."""
    settings = {k: v for k, v in point.settings.items() if k != "scheduler"}
    labels = {k: v for k, v in point.labels.items() if not k.startswith(KNOB)}
    at = {} if url is None else {"url": url}
    return Point({**settings, "policy": _BASELINE, "lengths": "none", **at}, labels, seeds=point.seeds)
