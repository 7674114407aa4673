"""Which runs the report's sentences are about: a load to read the answer off, a setting that stands for ecoserve.

The answer is read off in virtual time where there is any, under KVC pressure, at the highest rate.
"""

from __future__ import annotations

from typing import Final

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
            levels = sorted({s.lengths for s in candidates}, key=_number)
            candidates = [s for s in candidates if s.lengths == levels[len(levels) // 2]]
        if candidates:
            return min(candidates, key=latency)
    return None


def _number(lengths: str) -> tuple[str, float]:
    """What controlled errors are sorted by: their kind, then how large they are."""
    kind, colon, number = lengths.partition(":")
    return kind, float(number) if colon else 0.0


def latency(setting: Setting) -> float:
    """Mean normalized latency in milliseconds a token, to sort by; settings without one come last."""
    level = setting.level(NORMALIZED)
    return level.mean if level else float("inf")


def same_policy(settings: Settings, load: Load, policy: str, kind: str) -> Setting | None:
    """The first setting of a policy with a kind of lengths (``true``, ``predicted``, ``noise``, ``none``)."""
    return next((s for s in settings.under(load) if s.policy == policy and s.kind == kind), None)


def counterpart(settings: Settings, load: Load, ours: Setting) -> Setting | None:
    """The same setting under another load; with the same kind of lengths, if just these were not run there."""
    mine = [s for s in settings.under(load) if s.policy == ours.policy and s.kind == ours.kind]
    return next((s for s in mine if s.lengths == ours.lengths), mine[0] if mine else None)


def relaxed_load(settings: Settings, load: Load | None, ours: Setting | None) -> tuple[Load, Comparison] | None:
    """The same setting where KVC is plentiful, against the baseline there."""
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
