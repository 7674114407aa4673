"""Two result folders compared: what changed from one to the other, metric by metric, and how sure that is.

Rule: there are four verdicts on a relative difference. *lower*, *higher*: the 95 % interval excludes zero and the
difference is at least :data:`~ecoserve.sweep.statistics.SMALLEST_THAT_MATTERS`. *no difference*: else, if the whole
interval lies within :data:`MARGIN` (equivalence is shown, which is more than that no difference is). *cannot tell*:
everything else; more seeds or requests would tell.

Runs are matched by setting and seed. How the interval is made depends on what both have:

- the same seeds, two or more: Student's t of the differences seed by seed, which have the same arrivals and requests;
- one seed in common: a bootstrap over requests, the same ones in both (:mod:`~ecoserve.sweep.resampling`);
- no seed in common: a bootstrap over seeds and, within them, over requests, each side by itself.

The last two only say what a metric of single requests (a latency) is; they know nothing of seeds that were not run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import numpy as np

from ecoserve.sweep.axes import KNOB
from ecoserve.sweep.identity import short_lengths
from ecoserve.sweep.resampling import Floats, blocks, central, statistic_of, two_levels
from ecoserve.sweep.results import ResultFolder
from ecoserve.sweep.statistics import SMALLEST_THAT_MATTERS, t_interval
from ecoserve.sweep.summary import RunRow

Change = Literal["lower", "higher", "no difference", "cannot tell"]
Method = Literal["paired by seed", "paired by request", "unpaired", "equal", "none"]

#: Differences within this are none, if the whole interval is within it.
MARGIN: Final = 0.025
#: Metrics that are compared, and which way is better.
METRICS: Final[Mapping[str, Literal["lower", "higher"]]] = {
    "normalized_latency_mean_ms": "lower",
    "normalized_latency_p99_ms": "lower",
    "ttft_mean_ms": "lower",
    "ttft_p99_ms": "lower",
    "tpot_mean_ms": "lower",
    "e2el_mean_ms": "lower",
    "e2el_p99_ms": "lower",
    "output_tokens_per_s": "higher",
    "throughput_rps": "higher",
    "goodput_rps": "higher",
    "slo_attainment": "higher",
    "preemptions": "lower",
    "recomputed_tokens": "lower",
}
#: Settings of a run that name it besides its seed; knobs come on top.
_NAMES: Final = ("condition", "policy", "lengths", "rate_rps", "trace", "slo_scale", "gpu", "model", "replicas")
_TINY: Final = 1e-12

Name = tuple[tuple[str, Any], ...]


@dataclass(frozen=True, slots=True)
class Difference:
    """One metric of one setting, B against A.

    Attributes:
        metric: its key. a, b: means over the seeds used, in the metric's unit.
        relative: (B - A) / A, mean over the seeds; where A is zero, over the larger of both.
        low, high: its 95 % interval.
        verdict: what may be said. better: whether the change is for the better; None if there is none.
        method: how the interval was made. seeds: how many of them.
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
    #: what the pooled interval is made of: differences by seed, or resampled ones
    samples: Mapping[int, float] | Floats = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Compared:
    """A setting that both folders have: its name as labels, and its metrics."""

    name: Mapping[str, Any]
    differences: list[Difference]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two folders compared.

    Attributes:
        overall: each metric over all settings. settings: each metric of each.
        only_a, only_b: settings that one has and the other lacks. same_tables: the folders' tables are equal.
    """

    overall: list[Difference]
    settings: list[Compared]
    only_a: list[Mapping[str, Any]]
    only_b: list[Mapping[str, Any]]
    same_tables: bool

    @property
    def worse(self) -> list[Difference]:
        """Metrics that changed for the worse over all settings."""
        return [d for d in self.overall if d.better is False]


def compare(a: ResultFolder, b: ResultFolder) -> Comparison:
    """Compare what two folders have in common; runs of searches are left out.

    Raises:
        InputError: if a folder is damaged.
    """
    first, second = a.summary(), b.summary()
    runs_a, runs_b = _by_name(first.runs), _by_name(second.runs)
    rng = np.random.default_rng(0)
    settings = []
    for name in runs_a:
        if name in runs_b:
            pair = _Pair(a, b, runs_a[name], runs_b[name])
            settings.append(Compared(dict(name), [d for m in METRICS if (d := pair.difference(m, rng)) is not None]))
    overall = [d for m in METRICS if (d := _over_all(m, settings)) is not None]
    same = first.meta.tables_sha256 == second.meta.tables_sha256 and first.meta.tables_sha256 is not None
    return Comparison(
        overall,
        settings,
        [dict(n) for n in runs_a if n not in runs_b],
        [dict(n) for n in runs_b if n not in runs_a],
        same,
    )


def verdict_of(relative: float, low: float, high: float) -> Change:
    """What may be said of a relative difference with this 95 % interval."""
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
        values = {key: getattr(run, key) for key in _NAMES}
        values["lengths"] = short_lengths(run.lengths)
        values |= {k: v for k, v in sorted((run.model_extra or {}).items()) if k.startswith(KNOB)}
        name = tuple((key, value) for key, value in values.items() if value is not None)
        found.setdefault(name, {})[run.seed] = run
    return found


@dataclass(slots=True)
class _Pair:
    """The runs of one setting in both folders, by seed."""

    a: ResultFolder
    b: ResultFolder
    runs_a: dict[int, RunRow]
    runs_b: dict[int, RunRow]
    tables: dict[str, Any] = field(default_factory=dict)

    def difference(self, metric: str, rng: np.random.Generator) -> Difference | None:
        """The metric's difference; None if neither side has a figure."""
        known_a, known_b = _figures(self.runs_a, metric), _figures(self.runs_b, metric)
        if not known_a or not known_b:
            return None
        shared = sorted(known_a.keys() & known_b.keys())
        if shared:
            known_a, known_b = {s: known_a[s] for s in shared}, {s: known_b[s] for s in shared}
        mean_a, mean_b = _mean(known_a.values()), _mean(known_b.values())
        if shared and known_a == known_b:
            nought = dict.fromkeys(shared, 0.0)
            return _difference(metric, mean_a, mean_b, 0.0, (0.0, 0.0), "equal", len(shared), nought)
        if len(shared) > 1:
            each = _relatives(known_a, known_b)
            interval = t_interval(list(each.values()))
            relative = _mean(each.values())
            return _difference(metric, mean_a, mean_b, relative, interval, "paired by seed", len(shared), each)
        relative = (mean_b - mean_a) / max(mean_a if mean_a > _TINY else max(mean_a, mean_b), _TINY)
        method: Method = "paired by request" if shared else "unpaired"
        resampled = self._resampled(metric, sorted(known_a), sorted(known_b), bool(shared), rng)
        if resampled is None:
            return _difference(metric, mean_a, mean_b, relative, None, "none", len(shared), {})
        return _difference(metric, mean_a, mean_b, relative, central(resampled), method, len(shared), resampled)

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
            left = statistic(np.array([ours[0][name] for name in both])[picks])
            right = statistic(np.array([theirs[0][name] for name in both])[picks])
        else:
            left = two_levels([np.array(list(known.values())) for known in ours], statistic, rng)
            right = two_levels([np.array(list(known.values())) for known in theirs], statistic, rng)
        changes: Floats = right / np.maximum(left, _TINY) - 1
        return changes

    def _requests(self, folder: ResultFolder, run: RunRow, column: str) -> dict[str, float]:
        """A column of the completed requests that have it, by request, in the order of arrival."""
        key = f"{folder.path}\0{run.run}"
        if key not in self.tables:
            self.tables[key] = folder.requests(run.run).sort_by("arrival_s")
        table = self.tables[key]
        names, values = table["request_id"].to_pylist(), table[column].to_pylist()
        done = [status == "completed" for status in table["status"].to_pylist()]
        return {n: v for n, v, ok in zip(names, values, done, strict=True) if ok and v is not None}


def _difference(
    metric: str,
    a: float,
    b: float,
    relative: float,
    interval: tuple[float, float] | None,
    method: Method,
    seeds: int,
    samples: Mapping[int, float] | Floats,
) -> Difference:
    verdict = "cannot tell" if interval is None else verdict_of(relative, *interval)
    low, high = interval or (None, None)
    better = None if verdict not in ("lower", "higher") else verdict == METRICS[metric]
    return Difference(metric, a, b, relative, low, high, verdict, better, method, seeds, samples)


def _over_all(metric: str, settings: Sequence[Compared]) -> Difference | None:
    """A metric over all settings, each counting the same.

    By seed where all settings were paired so: one seed's settings share their arrivals, so the seeds are what varies.
    """
    found = [d for s in settings for d in s.differences if d.metric == metric]
    if not found:
        return None
    a, b = _mean(d.a for d in found), _mean(d.b for d in found)
    known = [d for d in found if d.method != "none"]
    relative = _mean(d.relative for d in known or found)
    by_seed = [d.samples for d in known if isinstance(d.samples, Mapping)]
    drawn = [d.samples for d in known if not isinstance(d.samples, Mapping)]
    seeds = sorted(set.intersection(*(set(samples) for samples in by_seed))) if by_seed else []
    if all(d.method == "equal" for d in found):
        return _difference(metric, a, b, 0.0, (0.0, 0.0), "equal", len(seeds), {})
    if len(seeds) > 1 and not drawn:
        each = [_mean(samples[seed] for samples in by_seed) for seed in seeds]
        return _difference(metric, a, b, relative, t_interval(each), "paired by seed", len(seeds), {})
    if drawn and all(d.method != "paired by seed" for d in known):
        method = next(d.method for d in known if d.method != "equal")
        return _difference(metric, a, b, relative, central(np.sum(drawn, axis=0) / len(known)), method, len(seeds), {})
    return _difference(metric, a, b, relative, None, "none", len(seeds), {})


def _figures(runs: Mapping[int, RunRow], metric: str) -> dict[int, float]:
    return {seed: float(v) for seed, run in runs.items() if (v := getattr(run, metric)) is not None}


def _relatives(a: Mapping[int, float], b: Mapping[int, float]) -> dict[int, float]:
    """Relative differences seed by seed; where a baseline is zero, over the larger mean of both sides."""
    if min(a.values()) > _TINY:
        return {seed: b[seed] / a[seed] - 1 for seed in a}
    scale = max(_mean(a.values()), _mean(b.values()))
    return {seed: (b[seed] - a[seed]) / scale for seed in a}


def _mean(values: Any) -> float:
    known = list(values)
    return math.fsum(known) / len(known)
