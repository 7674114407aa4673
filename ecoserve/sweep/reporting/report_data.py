"""What the parts of a report read: settings by load, which of them the answer is about, and the rows behind the runs.

The answer is read off in virtual time if there is any, under KV pressure, at the highest rate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from ecoserve.pages.plots import SLOTS
from ecoserve.serving.core.policies import BOUND, STOCK_POLICIES
from ecoserve.serving.runs import KVPoint
from ecoserve.sweep.plan import KNOB
from ecoserve.sweep.reporting.settings import NORMALIZED, POLICY_NAMES, VARIANTS, Load, Metric, Setting
from ecoserve.sweep.results import ResultFolder
from ecoserve.sweep.statistics import Comparison
from ecoserve.sweep.summary import NO_PRESSURE_TO, PRESSURE_FROM, RunRow, Summary

Values = npt.NDArray[np.float64]
_COLUMNS: Final = (
    "arrival_s", "prompt_tokens", "output_tokens", "finish_s", "predicted_tokens", "pit", "deadline_s",
    "ttft_s", "e2el_s", "normalized_latency_s",
)  # fmt: skip


class Details:
    """Rows behind the runs of ``folder``; without a folder there are none."""

    def __init__(self, folder: ResultFolder | None = None) -> None:
        self._folder = folder
        self._settings = {} if folder is None else {run.key: run.settings for run in folder.expected}
        self._requests: dict[str, dict[str, Values]] = {}

    def requests(self, run: RunRow) -> dict[str, Values] | None:
        """The accepted requests of a run, column by column, NaN where there is no value; None if there are none."""
        if self._folder is None or not (self._folder.path / "requests" / f"{run.run}.parquet").is_file():
            return None
        if run.run not in self._requests:
            table = self._folder.requests(run.run)
            kept = np.array([s != "rejected" for s in table["status"].to_pylist()], dtype=bool)
            self._requests[run.run] = {
                name: np.asarray(table[name].to_numpy(zero_copy_only=False), dtype=np.float64)[kept]
                for name in _COLUMNS
            }
        return self._requests[run.run]

    def together(self, runs: Sequence[RunRow], name: str) -> Values:
        parts = [found[name] for run in runs if (found := self.requests(run)) is not None]
        return np.concatenate(parts) if parts else np.zeros(0)

    def kv(self, run: RunRow) -> list[KVPoint]:
        return [] if self._folder is None else self._folder.kv(run.run)

    def settings(self, run: RunRow) -> Mapping[str, Any]:
        return self._settings.get(run.run, {})


Pressure = Literal["pressure", "between", "unknown", "no pressure"]

PRESSURES: Final[tuple[Pressure, ...]] = ("pressure", "between", "unknown", "no pressure")
#: Which kind of lengths stands for what a user gets: a trained predictor, else the next best that was run.
_STAND_INS: Final = ("predicted", "noise", "none", "true")


class ReportData:
    """A summary's runs gathered to settings, in the order of the plan; ``details`` has the rows behind the runs."""

    def __init__(self, summary: Summary, details: Details | None = None) -> None:
        self.summary = summary
        self.details = details or Details()
        self.baseline = summary.meta.baseline_policy
        found: dict[tuple[object, ...], Setting] = {}
        planned = [run for run in summary.runs if run.search is None]
        varied = [name for name in VARIANTS if len({_label(run, name) for run in planned}) > 1]
        for run in planned:
            load = Load(run.engine, run.condition, run.rate_rps, tuple((n, _label(run, n)) for n in varied))
            extra = run.model_extra or {}
            knobs = tuple((key.removeprefix(KNOB), str(v)) for key, v in extra.items() if key.startswith(KNOB))
            setting = Setting(load, run.policy, run.lengths, knobs)
            found.setdefault((load, *setting.choice), setting).runs.append(run)
        self.settings = list(found.values())
        others = dict.fromkeys(s.policy for s in self.settings if s.policy != self.baseline)
        slots = {policy: min(i, SLOTS - 1) for i, policy in enumerate(others, start=1)}
        for setting in self.settings:
            setting.slot = slots.get(setting.policy, 0)

    @property
    def baseline_name(self) -> str:
        return "vLLM’s default" if self.baseline == "vllm" else POLICY_NAMES.get(self.baseline, self.baseline)

    @cached_property
    def loads(self) -> list[Load]:
        return list(dict.fromkeys(setting.load for setting in self.settings))

    def under(self, load: Load) -> list[Setting]:
        """The settings of one load: baseline first, oracles last."""
        here = [s for s in self.settings if s.load == load]
        return sorted(here, key=lambda s: (s.policy != self.baseline, s.kind == "true"))

    def baseline_of(self, load: Load) -> Setting | None:
        """The setting that the others of a load are compared with."""
        return next((s for s in self.under(load) if s.policy == self.baseline), None)

    def times_the_bound(self, setting: Setting) -> float | None:
        """Normalized latency of a setting over that of the bound under the same load; None without one."""
        bound = next((s for s in self.under(setting.load) if s.policy == BOUND), None)
        mine, least = setting.mean(NORMALIZED), bound and bound.mean(NORMALIZED)
        return mine / least if mine is not None and least else None

    def demand_peak(self, load: Load) -> float | None:
        """Peak KV demand over the usable KV cache, as the runs measured it; mean over them."""
        peaks = [run.kv_demand_peak for s in self.under(load) for run in s.runs if run.kv_demand_peak is not None]
        return sum(peaks) / len(peaks) if peaks else None

    def pressure(self, load: Load) -> Pressure:
        """Whether the KV cache is short under a load: by the measured peak demand, else by the condition's name."""
        peak = self.demand_peak(load)
        if peak is not None:
            return "pressure" if peak >= PRESSURE_FROM else "no pressure" if peak <= NO_PRESSURE_TO else "between"
        name = (load.condition or "").lower().replace("_", "-")
        if name.startswith(("no-pressure", "no pressure", "relaxed")):
            return "no pressure"
        return "pressure" if name.startswith("pressure") else "unknown"

    @cached_property
    def load(self) -> Load | None:
        """The load that the answer is read off at; None if nothing ran next to the baseline."""
        loads = [x for x in self.loads if self.baseline_of(x) and self.stand_in(x)]

        def rank(x: Load) -> tuple[bool, int, float]:
            return x.engine != "virtual", PRESSURES.index(self.pressure(x)), -(x.rate_rps or 0.0)

        return min(loads, key=rank, default=None)

    @cached_property
    def ours(self) -> Setting | None:
        return self.stand_in(self.load) if self.load else None

    @cached_property
    def base(self) -> Setting | None:
        return self.baseline_of(self.load) if self.load else None

    @cached_property
    def comparison(self) -> Comparison | None:
        return self.ours.against(self.base, NORMALIZED) if self.ours and self.base else None

    @cached_property
    def relaxed(self) -> tuple[Load, Comparison] | None:
        """The same setting where the KV cache is plentiful, against the baseline there."""
        if self.load is None or self.ours is None:
            return None
        engine = self.load.engine
        for other in sorted(self.loads, key=lambda x: (x.engine != engine, -(x.rate_rps or 0.0))):
            base, same = self.baseline_of(other), self.counterpart(other)
            if other != self.load and self.pressure(other) == "no pressure" and base and same:
                comparison = same.against(base, NORMALIZED)
                if comparison:
                    return other, comparison
        return None

    def stand_in(self, load: Load) -> Setting | None:
        """The setting that stands for ecoserve under a load: the best without an oracle, predictions before all."""
        here = [s for s in self.under(load) if s.policy not in (self.baseline, BOUND) and s.level(NORMALIZED)]
        for kind in _STAND_INS:
            candidates = [s for s in here if s.kind == kind]
            if kind == "noise" and candidates:
                # Neither the best nor the worst of the controlled errors: a user cannot pick one.
                levels = sorted({s.lengths for s in candidates}, key=lambda name: _accuracy(candidates, name))
                candidates = [s for s in candidates if s.lengths == levels[len(levels) // 2]]
            if candidates:
                return _ours_or_better(candidates)
        return None

    @cached_property
    def cast(self) -> list[Setting]:
        """The settings shown where not all fit: under the main load, the baseline and one of each other policy, and the
        policy that the answer is about with true lengths and with none.
        """
        if self.load is None or self.ours is None:
            return []
        here = self.under(self.load)
        chosen = [s for s in here if s.policy == self.baseline][:1]
        for policy in dict.fromkeys(s.policy for s in here if s.policy != self.baseline):
            mine = [s for s in here if s.policy == policy]
            same = [s for s in mine if s.lengths == self.ours.lengths]
            chosen += [min(same or mine, key=lambda s: (_STAND_INS.index(s.kind), latency(s)))]
        for kind in ("none", "true"):
            other = self.same_policy(self.load, self.ours.policy, kind)
            chosen += [other] if other and other not in chosen else []
        return chosen

    def tuned(self, here: Sequence[Setting]) -> list[Setting]:
        """Of settings that differ in knobs only, those with the knobs that :attr:`cast` shows for their policy."""
        knobs = {s.policy: s.knobs for s in reversed(self.cast)}
        return [s for s in here if s.knobs == knobs.get(s.policy, s.knobs)]

    def along(self, setting: Setting) -> list[Setting]:
        """The same setting at every rate of its condition, slowest first."""
        family = (*setting.choice, setting.load.family)
        same = [s for s in self.settings if (*s.choice, s.load.family) == family and s.load.rate_rps is not None]
        return sorted(same, key=lambda s: s.load.rate_rps or 0.0)

    def lines(self, metric: Metric) -> list[list[Setting]]:
        """The settings of :attr:`cast` through their rates, as far as they have the metric at two rates or more."""
        lines = [[s for s in self.along(one) if s.level(metric)] for one in self.cast]
        return [line for line in lines if len(line) > 1]

    def same_policy(self, load: Load, policy: str, kind: str) -> Setting | None:
        """The best setting of a policy with a kind of lengths (``true``, ``predicted``, ``noise``, ``none``)."""
        return min((s for s in self.under(load) if s.policy == policy and s.kind == kind), key=latency, default=None)

    def counterpart(self, load: Load) -> Setting | None:
        """:attr:`ours` under another load; with the same kind of lengths, if those lengths were not run there."""
        ours = self.ours
        if ours is None:
            return None
        mine = [s for s in self.under(load) if (s.policy, s.kind, s.knobs) == (ours.policy, ours.kind, ours.knobs)]
        return next((s for s in mine if s.lengths == ours.lengths), mine[0] if mine else None)


def latency(setting: Setting) -> float:
    mean = setting.mean(NORMALIZED)
    return float("inf") if mean is None else mean


def _label(run: RunRow, name: str) -> str:
    return str(getattr(run, name, None))


def _ours_or_better(candidates: Sequence[Setting]) -> Setting:
    """The fastest of our policies, unless one of vLLM's own is shown to be faster: luck must not decide."""
    best = min(candidates, key=latency)
    mine = min((s for s in candidates if s.policy not in STOCK_POLICIES), key=latency, default=best)
    against = best.against(mine, NORMALIZED)
    return best if against is not None and against.verdict == "better" else mine


def _accuracy(candidates: Sequence[Setting], lengths: str) -> tuple[float, str, float]:
    """Sort key of controlled errors: how well they rank, worst first, if that is known; then kind and size."""
    taus = [tau for s in candidates if s.lengths == lengths and (tau := s.mean("prediction_kendall_tau")) is not None]
    kind, colon, number = lengths.partition(":")
    return (taus[0] if taus else 0.0), kind, float(number) if colon else 0.0
