"""A plan's axes multiplied out: points first (everything but rate and seed), then runs.

Rule: what a run function would refuse is refused here, before anything has been run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ecoserve.sweep.axes import LENGTH_BLIND, Condition, check_knobs, loads, tunings
from ecoserve.sweep.engines import settings_model, takes
from ecoserve.sweep.identity import PlannedRun
from ecoserve.sweep.worker import check_settings

if TYPE_CHECKING:
    from ecoserve.sweep.plan import SweepPlan

_AXES = ("trace", "policies", "lengths", "rates", "seeds", "knobs", "slo_scales", "gpus", "replicas")
_LOAD = ("requests", "depth", "blocks")


@dataclass(frozen=True, slots=True)
class Point:
    """A setting of a sweep: all that its runs share but rate and seed.

    Attributes:
        settings: for the run function. labels: of its runs. rates: requests a second, or ``recorded``. seeds: in order.
    """

    settings: Mapping[str, Any]
    labels: Mapping[str, Any]
    rates: tuple[float | str, ...] = ()
    seeds: tuple[int, ...] = field(default=(0,))

    def run(self, rate: float | str, seed: int, **labels: Any) -> PlannedRun:
        """The run at a rate with a seed; ``labels`` are its own."""
        rate_rps = None if rate == "recorded" else rate
        return PlannedRun.of({**self.settings, "rate_rps": rate_rps, "seed": seed}, {**self.labels, **labels})


def expand(plan: SweepPlan) -> list[PlannedRun]:
    """All runs but those of a search, each once: rates outside, seeds innermost.

    Raises:
        ConfigError: for a setting or knob that the run function does not take.
    """
    runs: dict[str, PlannedRun] = {}
    for name in plan.conditions or [None]:
        points = list(points_of(plan, name))
        for rate in points[0].rates:
            for point in points:
                for seed in point.seeds:
                    run = point.run(rate, seed)
                    runs[run.key] = run
    check(plan, runs.values())
    return list(runs.values())


def points_of(plan: SweepPlan, condition: str | None) -> Iterator[Point]:
    """The points of one condition, in the order of the axes."""
    changes = Condition() if condition is None else plan.conditions[condition]

    def pick(key: str) -> Any:
        changed = getattr(changes, key)
        return getattr(plan, key) if changed is None else changed

    axes = {key: pick(key) for key in _AXES}
    common = {k: v for k in _LOAD if (v := pick(k)) is not None and takes(plan.run, k)}
    common |= {**plan.settings, **changes.settings}
    labels = {"engine": plan.engine, "condition": condition}
    for load, load_labels in loads(axes):
        for policy in axes["policies"]:
            at = {"url": plan.urls[policy]} if plan.urls else {}
            for lengths in ["none"] if policy in LENGTH_BLIND else axes["lengths"]:
                for knobs, knob_labels in tunings(policy, axes["knobs"], common.get("scheduler", {})):
                    settings = {"policy": policy, "lengths": lengths, **common, **load, **at}
                    if knobs:
                        settings["scheduler"] = knobs
                    yield Point(
                        settings,
                        {**labels, **load_labels, **knob_labels},
                        tuple(axes["rates"] or ()),
                        tuple(axes["seeds"]),
                    )


def check(plan: SweepPlan, runs: Any) -> None:
    """Refuse settings and knobs that a run function of ours would refuse in every run.

    Raises:
        ConfigError: naming the first.
    """
    model = settings_model(plan.run)
    for run in runs:
        if model is not None:
            check_settings(model, run.settings)
        check_knobs(str(run.settings["policy"]), run.settings.get("scheduler", {}), "knobs")
