"""Two result folders compared: what changed from one to the other, metric by metric, and how sure that is.

docs/guides/sweep.md has the verdicts and the three kinds of intervals. The bootstraps apply to metrics of single
requests (latencies) only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, Final, Literal

import numpy as np

from ecoserve.sweep.identity import short_lengths
from ecoserve.sweep.plan import KNOB
from ecoserve.sweep.results import ResultFolder
from ecoserve.sweep.statistics import (
    SMALLEST_THAT_MATTERS,
    TINY,
    Floats,
    blocks,
    central,
    statistic_of,
    t_interval,
    two_levels,
)
from ecoserve.sweep.summary import RunRow, better

Change = Literal["lower", "higher", "no difference", "cannot tell"]
Method = Literal["paired by seed", "paired by request", "unpaired", "equal", "none"]

#: Differences within this are none, if the whole interval is within it.
MARGIN: Final = 0.025
METRICS: Final = (
    "normalized_latency_mean_ms",
    "normalized_latency_p99_ms",
    "ttft_mean_ms",
    "ttft_p99_ms",
    "tpot_mean_ms",
    "e2el_mean_ms",
    "e2el_p99_ms",
    "output_tokens_per_s",
    "throughput_rps",
    "goodput_rps",
    "slo_attainment",
    "preemptions",
    "recomputed_tokens",
)
#: Settings of a run that name it besides its seed; knobs come on top.
_NAMES: Final = (
    "condition", "policy", "lengths", "rate_rps", "trace", "slo_scale", "gpu", "model", "replicas", "router"
)  # fmt: skip

Name = tuple[tuple[str, Any], ...]
#: Differences by seed, or resampled ones.
Samples = Mapping[int, float] | Floats


@dataclass(frozen=True, slots=True)
class Difference:
    """One metric of one setting, B against A; ``a``, ``b``: means over the seeds, in the metric's unit.

    ``relative``: (B - A) / A, where A is zero over the larger of both; ``low``, ``high``: its 95 % interval.
    """

    metric: str
    a: float
    b: float
    relative: float
    low: float | None
    high: float | None
    verdict: Change
    better: bool | None
    method: Method
    seeds: int
    samples: Samples = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Compared:
    name: Mapping[str, Any]
    differences: list[Difference]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two folders compared: each metric over all settings and of each, and the settings that only one has."""

    overall: list[Difference]
    settings: list[Compared]
    only_a: list[Mapping[str, Any]]
    only_b: list[Mapping[str, Any]]
    same_tables: bool

    @property
    def worse(self) -> list[Difference]:
        return [d for d in self.overall if d.better is False]


def compare(a: ResultFolder, b: ResultFolder) -> Comparison:
    """Compare what two folders have in common but runs of searches; raises InputError if a folder is damaged."""
    first, second = a.summary(), b.summary()
    runs_a, runs_b = _by_name(first.runs), _by_name(second.runs)
    rng = np.random.default_rng(0)
    settings = []
    for name in runs_a:
        if name in runs_b:
            pair = _Pair(a, b, runs_a[name], runs_b[name])
            settings.append(Compared(dict(name), [d for m in METRICS if (d := pair.difference(m, rng)) is not None]))
    return Comparison(
        [d for m in METRICS if (d := _over_all(m, settings)) is not None],
        settings,
        [dict(n) for n in runs_a if n not in runs_b],
        [dict(n) for n in runs_b if n not in runs_a],
        first.meta.tables_sha256 == second.meta.tables_sha256 and first.meta.tables_sha256 is not None,
    )


def verdict_of(relative: float, low: float, high: float) -> Change:
    if (low > 0 or high < 0) and abs(relative) >= SMALLEST_THAT_MATTERS:
        return "lower" if relative < 0 else "higher"
    if low >= -MARGIN and high <= MARGIN:
        return "no difference"
    return "cannot tell"


def _by_name(runs: Sequence[RunRow]) -> dict[Name, dict[int, RunRow]]:
    found: dict[Name, dict[int, RunRow]] = {}
    for run in runs:
        if run.search is not None:
            continue
        values = {key: getattr(run, key) for key in _NAMES} | {"lengths": short_lengths(run.lengths)}
        values |= {k: v for k, v in sorted((run.model_extra or {}).items()) if k.startswith(KNOB)}
        name = tuple((key, value) for key, value in values.items() if value is not None)
        found.setdefault(name, {})[run.seed] = run
    return found


@dataclass(slots=True)
class _Pair:
    a: ResultFolder
    b: ResultFolder
    runs_a: dict[int, RunRow]
    runs_b: dict[int, RunRow]
    tables: dict[str, Any] = field(default_factory=dict)

    def difference(self, metric: str, rng: np.random.Generator) -> Difference | None:
        """The metric's difference; None if a side has no figure."""
        known_a, known_b = _figures(self.runs_a, metric), _figures(self.runs_b, metric)
        if not known_a or not known_b:
            return None
        shared = sorted(known_a.keys() & known_b.keys())
        if shared:
            known_a, known_b = {s: known_a[s] for s in shared}, {s: known_b[s] for s in shared}
        means = fmean(known_a.values()), fmean(known_b.values())
        if shared and known_a == known_b:
            return _difference(metric, means, 0.0, (0.0, 0.0), "equal", len(shared), dict.fromkeys(shared, 0.0))
        if len(shared) > 1:
            each = _relatives(known_a, known_b)
            interval = t_interval(list(each.values()))
            return _difference(metric, means, fmean(each.values()), interval, "paired by seed", len(shared), each)
        relative = (means[1] - means[0]) / max(means[0] if means[0] > TINY else max(means), TINY)
        resampled = self._resampled(metric, sorted(known_a), sorted(known_b), bool(shared), rng)
        if resampled is None:
            return _difference(metric, means, relative, None, "none", len(shared))
        method: Method = "paired by request" if shared else "unpaired"
        return _difference(metric, means, relative, central(resampled), method, len(shared), resampled)

    def _resampled(
        self, metric: str, seeds_a: list[int], seeds_b: list[int], paired: bool, rng: np.random.Generator
    ) -> Floats | None:
        """Relative differences of resampled requests; None for what is no metric of single requests."""
        parts = metric.rsplit("_", 2)
        if len(parts) != 3 or parts[2] != "ms":
            return None
        column, statistic = f"{parts[0]}_s", statistic_of(parts[1])
        ours = [self._requests(self.a, self.runs_a[seed], column) for seed in seeds_a]
        theirs = [self._requests(self.b, self.runs_b[seed], column) for seed in seeds_b]
        if paired:
            both = [name for name in ours[0] if name in theirs[0]]
            if len(both) < 2:
                return None
            picks = blocks(len(both), rng)
            left, right = (statistic(np.array([side[0][n] for n in both])[picks]) for side in (ours, theirs))
        else:
            left, right = (
                two_levels([np.array(list(known.values())) for known in side], statistic, rng)
                for side in (ours, theirs)
            )
        return np.asarray(right / np.maximum(left, TINY) - 1)

    def _requests(self, folder: ResultFolder, run: RunRow, column: str) -> dict[str, float]:
        """A column of the completed requests that have it, by request, in the order of arrival."""
        key = f"{folder.path}\0{run.run}"
        if key not in self.tables:
            self.tables[key] = folder.requests(run.run).sort_by("arrival_s")
        table = self.tables[key]
        rows = zip(*(table[name].to_pylist() for name in ("request_id", column, "status")), strict=True)
        return {name: value for name, value, status in rows if status == "completed" and value is not None}


def _difference(
    metric: str,
    means: tuple[float, float],
    relative: float,
    interval: tuple[float, float] | None,
    method: Method,
    seeds: int,
    samples: Samples | None = None,
) -> Difference:
    verdict = "cannot tell" if interval is None else verdict_of(relative, *interval)
    low, high = interval or (None, None)
    good = verdict == better(metric) if verdict in ("lower", "higher") else None
    known = {} if samples is None else samples
    return Difference(metric, *means, relative, low, high, verdict, good, method, seeds, known)


def _over_all(metric: str, settings: Sequence[Compared]) -> Difference | None:
    """A metric over all settings, each counting the same; by seed where all settings were paired so."""
    found = [d for s in settings for d in s.differences if d.metric == metric]
    if not found:
        return None
    means = fmean(d.a for d in found), fmean(d.b for d in found)
    known = [d for d in found if d.method != "none"]
    relative = fmean(d.relative for d in known or found)
    by_seed = [d.samples for d in known if isinstance(d.samples, Mapping)]
    drawn = [d.samples for d in known if not isinstance(d.samples, Mapping)]
    seeds = sorted(set.intersection(*(set(samples) for samples in by_seed))) if by_seed else []
    if all(d.method == "equal" for d in found):
        return _difference(metric, means, 0.0, (0.0, 0.0), "equal", len(seeds))
    if len(seeds) > 1 and not drawn:
        each = [fmean(samples[seed] for samples in by_seed) for seed in seeds]
        return _difference(metric, means, relative, t_interval(each), "paired by seed", len(seeds))
    if drawn and all(d.method != "paired by seed" for d in known):
        method = next(d.method for d in known if d.method != "equal")
        return _difference(metric, means, relative, central(np.sum(drawn, axis=0) / len(known)), method, len(seeds))
    return _difference(metric, means, relative, None, "none", len(seeds))


def _figures(runs: Mapping[int, RunRow], metric: str) -> dict[int, float]:
    return {seed: float(v) for seed, run in runs.items() if (v := getattr(run, metric)) is not None}


def _relatives(a: Mapping[int, float], b: Mapping[int, float]) -> dict[int, float]:
    """Relative differences seed by seed; where a baseline is zero, over the larger mean of both sides."""
    if min(a.values()) > TINY:
        return {seed: b[seed] / a[seed] - 1 for seed in a}
    scale = max(fmean(a.values()), fmean(b.values()))
    return {seed: (b[seed] - a[seed]) / scale for seed in a}
