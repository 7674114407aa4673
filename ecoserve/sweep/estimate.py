"""How long a sweep will take, before it is run.

Finished runs in the folder are the best evidence. Without them, in virtual time, a short run of each policy is timed,
twice, because the first one loads the trace and the engine's code. On a real clock a run lasts at least as long as its
arrivals.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Final

from ecoserve.sweep.identity import PlannedRun
from ecoserve.sweep.worker import perform

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
    """The time of ``runs``.

    Args:
        runs: the runs.
        function: the run function. engine: what it drives; ``virtual`` if runs do not last as long as their arrivals.
        jobs: runs at once.
        finished: rows of finished runs of the same sweep.
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
