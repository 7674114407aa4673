"""A plan's axes multiplied out: points first (everything but rate and seed), then runs; and how long they take."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Final

from ecoserve.errors import ConfigError
from ecoserve.options import checked
from ecoserve.serving.core.policies import LENGTH_BLIND, POLICIES
from ecoserve.serving.core.settings import SchedulerSettings
from ecoserve.serving.simulate.settings import SimulateSettings
from ecoserve.sweep.identity import PlannedRun, canonical
from ecoserve.sweep.plan import KNOB, Condition, SweepPlan
from ecoserve.sweep.worker import perform, settings_model, takes

#: Values of a knob that only a simulated GPU resolves.
_RESOLVED_LATER: Final = {"target_forward_tokens": "auto"}

#: Settings of some runs, and the labels that tell these from others.
Part = tuple[dict[str, Any], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Point:
    """All that some runs of a sweep share but rate (requests/s, or ``recorded``) and seed."""

    settings: Mapping[str, Any]
    labels: Mapping[str, Any]
    rates: tuple[float | str, ...] = ()
    seeds: tuple[int, ...] = (0,)

    def run(self, rate: float | str, seed: int, **labels: Any) -> PlannedRun:
        rate_rps = None if rate == "recorded" else rate
        return PlannedRun.of({**self.settings, "rate_rps": rate_rps, "seed": seed}, {**self.labels, **labels})


def expand(plan: SweepPlan) -> list[PlannedRun]:
    """All runs but those of a search, each once; seeds innermost, so that a sweep stopped early has whole settings.

    Raises ConfigError for a setting or knob that the run function does not take.
    """
    runs: dict[str, PlannedRun] = {}
    for name in plan.conditions or [None]:
        points = list(points_of(plan, name))
        for rate, point in itertools.product(points[0].rates, points):
            runs |= {run.key: run for seed in point.seeds for run in [point.run(rate, seed)]}
    check(plan, runs.values())
    return list(runs.values())


def points_of(plan: SweepPlan, condition: str | None) -> Iterator[Point]:
    changes = Condition() if condition is None else plan.conditions[condition]
    merged = {name: getattr(plan, name) for name in Condition.model_fields}
    merged |= {name: value for name in merged if (value := getattr(changes, name)) is not None}
    load = ("requests", "depth", "blocks")
    common = {k: merged[k] for k in load if merged[k] is not None and takes(plan.run, k)}
    common |= {**plan.settings, **changes.settings}
    labels = {"engine": plan.engine, "condition": condition}
    for (of_load, load_labels), policy in itertools.product(_loads(merged), merged["policies"]):
        at = {"url": plan.urls[policy]} if plan.urls else {}
        tunings = list(_tunings(policy, merged["knobs"], common.get("scheduler", {})))
        for lengths in ["none"] if policy in LENGTH_BLIND else merged["lengths"]:
            for knobs, knob_labels in tunings:
                settings = {"policy": policy, "lengths": lengths, **common, **of_load, **at}
                if knobs:
                    settings["scheduler"] = knobs
                names = {**labels, **load_labels, **knob_labels}
                yield Point(settings, names, tuple(merged["rates"] or ()), tuple(merged["seeds"]))


#: Settings that change nothing about what can be refused before a run.
_OF_THE_LOAD: Final = ("rate_rps", "seed", "requests", "trace", "split", "slo_scale")


def check(plan: SweepPlan, runs: Iterable[PlannedRun]) -> None:
    """Refuse what a run function of ours would refuse in every run: raises ConfigError for the first.

    In virtual time that is what ``ecoserve simulate`` refuses, by the same check, once for all runs that differ in
    their load alone.
    """
    model = settings_model(plan.run)
    refused_later: dict[str, SimulateSettings] = {}
    for run in runs:
        settings = None if model is None else checked(model, run.settings, "settings")
        if isinstance(settings, SimulateSettings):
            machine = {k: v for k, v in run.settings.items() if k not in _OF_THE_LOAD}
            refused_later.setdefault(canonical(machine), settings)
        policy = str(run.settings["policy"])
        if policy not in POLICIES:
            continue
        knobs = run.settings.get("scheduler", {})
        known = {name: value for name, value in knobs.items() if _RESOLVED_LATER.get(name) != value}
        try:
            SchedulerSettings.parse({**known, "policy": policy})
        except ConfigError as error:
            raise ConfigError(f"{error.where}: {error.what}", where="knobs", fix=error.fix) from error
    if refused_later:
        from ecoserve.serving.simulate.run import check as refuse  # imports vLLM

        for settings in refused_later.values():
            refuse(settings)


def _loads(axes: Mapping[str, Any]) -> Iterator[Part]:
    """Every load but its rate: trace, GPU, replicas, router, SLO scale. An axis that is None is not named."""
    traces = [({"trace": trace}, {"trace": _short(trace)} if len(axes["trace"]) > 1 else {}) for trace in axes["trace"]]
    gpus = [(known, known) for gpu in axes["gpus"] or [] if (known := gpu.model_dump(exclude_none=True))]
    replicas = [({"replicas": n}, {"replicas": n}) for n in axes["replicas"] or []]
    routers = [({"router": name}, {"router": name}) for name in axes["routers"] or []]
    scales = [({"slo_scale": scale}, {"slo_scale": scale}) for scale in axes["slo_scales"] or []]
    nothing: list[Part] = [({}, {})]
    for parts in itertools.product(traces, gpus or nothing, replicas or nothing, routers or nothing, scales or nothing):
        settings: dict[str, Any] = {}
        labels: dict[str, Any] = {}
        for one, label in parts:
            settings |= one
            labels |= {k: _short(v) if k == "model" else v for k, v in label.items()}
        yield settings, labels


def _tunings(policy: str, knobs: Mapping[str, list[Any]] | None, common: Mapping[str, Any]) -> Iterator[Part]:
    """Knobs of every tuning of a policy, on top of the ``common`` ones; policies of vLLM have no tunings."""
    if not knobs or policy not in POLICIES:
        yield dict(common), {}
        return
    for values in itertools.product(*knobs.values()):
        chosen = dict(zip(knobs, values, strict=True))
        yield {**common, **chosen}, {f"{KNOB}{name}": value for name, value in chosen.items()}


def _short(text: str) -> str:
    return Path(text).name if Path(text).is_absolute() else text


#: Requests of a run that is only timed.
_SHORT: Final = 60


@dataclass(frozen=True, slots=True)
class Estimate:
    """Seconds for all runs at ``jobs`` at once, None if unknown; and what that rests on."""

    seconds: float | None
    basis: str


def estimate(
    runs: Sequence[PlannedRun], *, function: str, engine: str, jobs: int, finished: Sequence[Mapping[str, Any]]
) -> Estimate:
    """The time of ``runs`` of ``function``, ``jobs`` at once: by finished runs (rows) if there are any.

    Without them, in virtual time, a short run of each policy is timed, twice, because the first one loads the trace and
    the engine's code; on a real clock a run lasts as long as its arrivals.
    """
    if not runs:
        return Estimate(0.0, "nothing to run")
    if known := [(str(row["policy"]), float(row["wall_s"])) for row in finished if row.get("wall_s") is not None]:
        each = {policy: fmean(s for p, s in known if p == policy) for policy, _ in known}
        usual = fmean(seconds for _, seconds in known)
        total = sum(each.get(_policy(run), usual) for run in runs)
        return Estimate(total / jobs, f"{len(known)} finished runs")
    if engine != "virtual":
        loads = [(run.settings.get("requests"), run.settings.get("rate_rps")) for run in runs]
        lasting = [float(n) / float(rate) for n, rate in loads if n is not None and rate is not None]
        if len(lasting) < len(loads):
            return Estimate(None, "recorded arrivals: unknown until one has run")
        return Estimate(sum(lasting) / jobs, "requests and rates; at least")
    return _timed(runs, function, jobs)


def _timed(runs: Sequence[PlannedRun], function: str, jobs: int) -> Estimate:
    total, start = 0.0, 0.0
    by_policy: dict[str, list[PlannedRun]] = {}
    for run in runs:
        by_policy.setdefault(_policy(run), []).append(run)
    for policy, some in by_policy.items():
        middle = some[len(some) // 2]
        requests = min(_SHORT, int(middle.settings.get("requests", _SHORT)))
        short = {**middle.settings, "requests": requests}
        first, second = perform(function, short), perform(function, short)
        if second.result is None:
            return Estimate(None, f"a short run with policy {policy} fails: {second.error}")
        start = max(start, first.wall_s - second.wall_s)
        total += sum(second.wall_s / requests * int(run.settings.get("requests", requests)) for run in some)
    return Estimate(start + total / jobs, f"a short run of each of {len(by_policy)} policies")


def _policy(run: PlannedRun) -> str:
    return str(run.settings.get("policy"))
