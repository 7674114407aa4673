"""Which colour each policy has, in all plots of the report."""

from __future__ import annotations

from dataclasses import dataclass, field

from ecoserve.pages import SLOTS
from ecoserve.sweep.reporting.settings import Settings


@dataclass(slots=True)
class Style:
    """Which colour each policy has, in all plots."""

    slots: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, settings: Settings) -> Style:
        others = dict.fromkeys(s.policy for s in settings.all if s.policy != settings.baseline)
        slots = {policy: min(i, SLOTS - 1) for i, policy in enumerate(others, start=1)}
        return cls({settings.baseline: 0, **slots})
