"""How long a sweep will take, before it is run.

Rule: what has been run in the folder tells best. Without it, in virtual time, a short run of each policy is timed,
twice, because the first one loads the trace and the engine's code; on a real clock a run lasts as long as its arrivals
at least.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ecoserve.sweep.identity import PlannedRun
from ecoserve.sweep.worker import perform

#: Requests of a run that is only timed.
_SHORT: Final = 60


@dataclass(frozen=True, slots=True)
class Estimate:
    """Seconds for all runs at ``jobs`` at once, None if nothing can be said; and what that is taken from."""

    seconds: float | None
    basis: str


def estimate(
    runs: Sequence[PlannedRun], *, function: str, engine: str, jobs: int, finished: Sequence[Mapping[str, Any]]
) -> Estimate:
    """The time of ``runs``.

    Args:
        runs: what is to be run.
        function: the run function. engine: what it drives: ``virtual`` for whatever needs no time of its own.
        jobs: runs at once.
        finished: rows of finished runs of the same sweep.
    """
    if not runs:
        return Estimate(0.0, "nothing to run")
    if known := [(str(row["policy"]), float(row["wall_s"])) for row in finished if row.get("wall_s") is not None]:
        each = {policy: _mean([s for p, s in known if p == policy]) for policy, _ in known}
        usual = _mean([seconds for _, seconds in known])
        total = sum(each.get(str(run.settings.get("policy")), usual) for run in runs)
        return Estimate(total / jobs, f"{len(known)} finished runs")
    if engine != "virtual":
        lasting = [_lasting(run) for run in runs]
        if None in lasting:
            return Estimate(None, "recorded arrivals: unknown until one has run")
        return Estimate(sum(s or 0.0 for s in lasting) / jobs, "requests and rates; at least")
    return _timed(runs, function, jobs)


def _timed(runs: Sequence[PlannedRun], function: str, jobs: int) -> Estimate:
    total, start = 0.0, 0.0
    by_policy: dict[str, list[PlannedRun]] = {}
    for run in runs:
        by_policy.setdefault(str(run.settings.get("policy")), []).append(run)
    for policy, some in by_policy.items():
        middle = some[len(some) // 2]
        requests = min(_SHORT, int(middle.settings.get("requests", _SHORT)))
        short = {**middle.settings, "requests": requests}
        first, second = perform(function, short), perform(function, short)
        if second.result is None:
            return Estimate(None, f"a short run with policy {policy} fails: {second.error}")
        start = max(start, first.wall_s - second.wall_s)
        each = second.wall_s / requests
        total += sum(each * int(run.settings.get("requests", requests)) for run in some)
    return Estimate(start + total / jobs, f"a short run of each of {len(by_policy)} policies")


def _lasting(run: PlannedRun) -> float | None:
    rate, requests = run.settings.get("rate_rps"), run.settings.get("requests")
    return None if rate is None or requests is None else float(requests) / float(rate)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
