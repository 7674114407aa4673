"""The searches of a sweep: one for every point of its axes, all of them at once, each told of its own runs alone.

Rule: what a search runs next follows from its own runs, so that order, number of processes and interruptions change
nothing: a search that goes on in a folder is told of the finished runs first, and asks for the same ones again.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from ecoserve.errors import ConfigError
from ecoserve.sweep.axes import KNOB
from ecoserve.sweep.expansion import Point, check, points_of
from ecoserve.sweep.identity import PlannedRun
from ecoserve.sweep.search import Search, SearchPlan
from ecoserve.sweep.summary import SearchRow

if TYPE_CHECKING:
    from ecoserve.sweep.plan import SweepPlan

#: Label of a search's runs, and its values: a step towards the rate, or the unloaded reference.
LABEL: Final = "search"
STEP: Final = "step"
UNLOADED: Final = "unloaded"
#: Policy of the reference.
_BASELINE: Final = "vllm"


@dataclass(slots=True)
class _One:
    """One search with its point, its reference, and the runs it has asked for, in order."""

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
            self.search = Search(self.plan, self.point.seeds, bound)
            return self._next()
        runs = [self.unloaded.run(self.plan.unloaded_rate, seed, **{LABEL: UNLOADED}) for seed in self.point.seeds]
        self.asked |= {run.key: (run, self.plan.unloaded_rate, run.settings["seed"]) for run in runs}
        self.open |= {run.key for run in runs}
        return runs

    def ended(self, key: str, row: Mapping[str, Any] | None) -> list[PlannedRun]:
        """What follows from a run of this search; ``row`` is None if it failed."""
        self.open.discard(key)
        _, rate, seed = self.asked[key]
        value = None if row is None else row.get(self.plan.metric)
        if self.search is None:
            self.reference[key] = value
            self.failed |= row is None
        elif row is None:
            self.search.failed()
        else:
            self.search.tell(rate, seed, value)
        if self.open:
            return []
        if self.search is None:
            known = [value for value in self.reference.values() if value is not None]
            factor = self.plan.at_most_times_unloaded
            assert factor is not None
            bound = factor * math.fsum(known) / len(known) if len(known) == len(self.reference) else math.nan
            self.search = Search(self.plan, self.point.seeds, bound)
            if math.isnan(bound):
                self.search.state = "a run failed" if self.failed else "no such figure"
        return self._next()

    def _next(self) -> list[PlannedRun]:
        assert self.search is not None
        runs = []
        for rate, seed in self.search.next():
            run = self.point.run(rate, seed, **{LABEL: STEP})
            self.asked[run.key] = (run, rate, seed)
            runs.append(run)
        self.open |= {run.key for run in runs}
        return runs

    @property
    def over(self) -> bool:
        """Whether it has come to its end."""
        return self.search is not None and self.search.state is not None

    def at_most_left(self) -> int:
        """Runs that may still come, besides those asked for."""
        steps = self.plan.max_runs * len(self.point.seeds)
        taken = sum(run.labels[LABEL] == STEP for run, _, _ in self.asked.values())
        return 0 if self.over else steps - taken

    def row(self) -> SearchRow:
        """The search as the summary has it."""
        names = ("policy", "lengths")
        labels = {name: value for name, value in self.point.labels.items() if value is not None}
        row: dict[str, Any] = {**labels, **{name: self.point.settings[name] for name in names}}
        search = self.search
        row |= {"metric": self.plan.metric, "state": (search.state if search else None) or "not ended"}
        row["runs"] = [key for key, (run, _, _) in self.asked.items() if run.labels[LABEL] == STEP]
        if search is None:
            return SearchRow.model_validate(row)
        low, high = search.bracket()
        below, above = search.contrary()
        return SearchRow.model_validate(
            {
                **row,
                "at_least" if self.plan.at_least is not None else "at_most": _finite(search.bound),
                "rate_rps": low,
                "missed_from_rps": high,
                "value": None if low is None else search.mean(low),
                "value_missed": None if high is None else search.mean(high),
                "tried": sorted(search.values),
                "missed_below_rps": below,
                "met_above_rps": above,
            }
        )


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
        runs: list[PlannedRun] = []
        for one in self._all:
            runs += self._asked(one, one.begin())
        return runs

    def ended(self, run: PlannedRun, row: Mapping[str, Any] | None) -> list[PlannedRun]:
        """The runs that follow from one that ended; ``row`` is None if it failed."""
        runs: list[PlannedRun] = []
        for one in self._of.get(run.key, []):
            runs += self._asked(one, one.ended(run.key, row))
        return runs

    def follow(
        self, runs: Iterable[PlannedRun], row_of: Callable[[str], Mapping[str, Any] | None]
    ) -> tuple[list[PlannedRun], list[PlannedRun]]:
        """Those of the runs, and of what follows from them, that are still to be run; and those that are finished.

        Args:
            runs: what was asked for. row_of: the row of a finished run by its key, None for others.
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

    def _asked(self, one: _One, runs: Iterable[PlannedRun]) -> list[PlannedRun]:
        """Those of the runs that nobody has asked for yet: a reference serves all searches under its load."""
        new = []
        for run in runs:
            if run.key not in self._of:
                new.append(run)
            self._of.setdefault(run.key, []).append(one)
        return new

    def at_most_left(self) -> int:
        """Runs that may still come, besides those asked for."""
        return sum(one.at_most_left() for one in self._all)

    def runs(self) -> list[PlannedRun]:
        """Every run asked for, each once, search by search: an order that no chance of timing changes."""
        found = {key: run for one in self._all for key, (run, _, _) in one.asked.items()}
        return list(found.values())

    def rows(self) -> list[SearchRow]:
        """What they came to, in the order of the plan."""
        return [one.row() for one in self._all]


def _unloaded(point: Point, url: str | None) -> Point:
    """The stock engine under the same load, whatever the point's policy and knobs."""
    settings = {k: v for k, v in point.settings.items() if k != "scheduler"}
    labels = {k: v for k, v in point.labels.items() if not k.startswith(KNOB)}
    at = {} if url is None else {"url": url}
    return Point({**settings, "policy": _BASELINE, "lengths": "none", **at}, labels, seeds=point.seeds)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
