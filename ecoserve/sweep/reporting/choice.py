"""Which runs the report's sentences are about: a load to read the answer off, a setting that stands for ecoserve.

The answer is read off in virtual time where there is any, under KV pressure, at the highest rate.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from ecoserve.serving.adapter.settings import STOCK_POLICIES
from ecoserve.sweep.reporting.metrics import NORMALIZED
from ecoserve.sweep.reporting.settings import Load, Setting, Settings
from ecoserve.sweep.statistics import Comparison

#: Which kind of lengths stands for "what a user gets": a trained predictor, else the next best thing that was run.
_STAND_INS: Final = ("predicted", "noise", "none", "true")


def main_load(settings: Settings) -> Load | None:
    """The load the answer is read off at; None if nothing ran next to the baseline."""
    ranks = {"pressure": 0, "between": 1, "unknown": 2, "no pressure": 3}
    loads = [load for load in settings.loads if settings.baseline_of(load) and stand_in(settings, load)]
    return min(
        loads,
        key=lambda load: (load.engine != "virtual", ranks[settings.pressure(load)], -(load.rate_rps or 0.0)),
        default=None,
    )


def stand_in(settings: Settings, load: Load) -> Setting | None:
    """The setting that stands for ecoserve under a load: the best that needs no oracle, predictions before all else."""
    here = [s for s in settings.under(load) if s.policy != settings.baseline and s.level(NORMALIZED)]
    for kind in _STAND_INS:
        candidates = [s for s in here if s.kind == kind]
        if kind == "noise" and candidates:
            # Neither the best nor the worst of the controlled errors: nobody could pick one of them.
            levels = sorted({s.lengths for s in candidates}, key=lambda name: _accuracy(candidates, name))
            candidates = [s for s in candidates if s.lengths == levels[len(levels) // 2]]
        if candidates:
            return _ours_or_better(candidates)
    return None


def _ours_or_better(candidates: Sequence[Setting]) -> Setting:
    """The fastest of our policies, unless one of vLLM's own is shown to be faster: who is first must not be luck."""
    best = min(candidates, key=latency)
    mine = min((s for s in candidates if s.policy not in STOCK_POLICIES), key=latency, default=best)
    against = best.against(mine, NORMALIZED)
    return best if against is not None and against.verdict == "better" else mine


def cast(settings: Settings) -> list[Setting]:
    """Who is shown where not everybody can be: one setting of each policy under the main load, as many as lines fit.

    The baseline; every other policy with the lengths that stand for what a user gets; and the policy that the answer is
    about with true lengths and with none.
    """
    load = main_load(settings)
    ours = stand_in(settings, load) if load else None
    if load is None or ours is None:
        return []
    here = settings.under(load)
    chosen = [s for s in here if s.policy == settings.baseline][:1]
    for policy in dict.fromkeys(s.policy for s in here if s.policy != settings.baseline):
        mine = [s for s in here if s.policy == policy]
        told = [s for s in mine if s.lengths == ours.lengths]
        chosen += [min(told, key=latency) if told else min(mine, key=lambda s: (_STAND_INS.index(s.kind), latency(s)))]
    for kind in ("none", "true"):
        same = same_policy(settings, load, ours.policy, kind)
        chosen += [same] if same and same not in chosen else []
    return chosen


def tuned(settings: Settings, here: Sequence[Setting]) -> list[Setting]:
    """Of settings that differ in knobs only, those with the knobs that :func:`cast` shows, if it shows their policy."""
    knobs = {s.policy: s.knobs for s in reversed(cast(settings))}
    return [s for s in here if s.knobs == knobs.get(s.policy, s.knobs)]


def along(settings: Settings, setting: Setting) -> list[Setting]:
    """The same setting at every rate of its condition, slowest first."""
    same = [
        s
        for s in settings.all
        if (s.policy, s.lengths, s.knobs, s.load.family)
        == (setting.policy, setting.lengths, setting.knobs, setting.load.family)
        and s.load.rate_rps is not None
    ]
    return sorted(same, key=lambda s: s.load.rate_rps or 0.0)


def _accuracy(candidates: Sequence[Setting], lengths: str) -> tuple[float, str, float]:
    """What controlled errors are sorted by: how well they rank, worst first, if that is known; then kind and size."""
    levels = [level.mean for s in candidates if s.lengths == lengths and (level := s.level("prediction_kendall_tau"))]
    kind, colon, number = lengths.partition(":")
    return (levels[0] if levels else 0.0), kind, float(number) if colon else 0.0


def latency(setting: Setting) -> float:
    """Mean normalized latency in milliseconds a token, to sort by; settings without one come last."""
    level = setting.level(NORMALIZED)
    return level.mean if level else float("inf")


def same_policy(settings: Settings, load: Load, policy: str, kind: str) -> Setting | None:
    """The best setting of a policy with a kind of lengths (``true``, ``predicted``, ``noise``, ``none``)."""
    return min((s for s in settings.under(load) if s.policy == policy and s.kind == kind), key=latency, default=None)


def counterpart(settings: Settings, load: Load, ours: Setting) -> Setting | None:
    """The same setting under another load; with the same kind of lengths, if just these were not run there."""
    mine = [s for s in settings.under(load) if (s.policy, s.kind, s.knobs) == (ours.policy, ours.kind, ours.knobs)]
    return next((s for s in mine if s.lengths == ours.lengths), mine[0] if mine else None)


def relaxed_load(settings: Settings, load: Load | None, ours: Setting | None) -> tuple[Load, Comparison] | None:
    """The same setting where KV is plentiful, against the baseline there."""
    if load is None or ours is None:
        return None
    for other in sorted(settings.loads, key=lambda x: (x.engine != load.engine, -(x.rate_rps or 0.0))):
        base = settings.baseline_of(other)
        same = counterpart(settings, other, ours)
        if other == load or settings.pressure(other) != "no pressure" or base is None or same is None:
            continue
        comparison = same.against(base, NORMALIZED)
        if comparison:
            return other, comparison
    return None
