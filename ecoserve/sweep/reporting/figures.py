"""What the plots of the report have in common: which colour a policy has, which dash a kind of lengths, whiskers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from ecoserve.pages import SLOTS, LegendEntry, plain
from ecoserve.sweep.plan import LENGTH_BLIND
from ecoserve.sweep.reporting.metrics import Metric
from ecoserve.sweep.reporting.settings import Setting, Settings

#: The dash of a line by what the policy was told.
DASHES: Final = {"none": "dot", "true": "longdashdot", "noise": "solid", "predicted": "solid"}


@dataclass(slots=True)
class Style:
    """Which colour each policy has, in all plots."""

    slots: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, settings: Settings) -> Style:
        others = dict.fromkeys(s.policy for s in settings.all if s.policy != settings.baseline)
        slots = {policy: min(i, SLOTS - 1) for i, policy in enumerate(others, start=1)}
        return cls({settings.baseline: 0, **slots})

    def legend(self, setting: Setting, symbol: str = "circle") -> LegendEntry:
        """The legend's line of a setting."""
        return LegendEntry(setting.name, self.slots[setting.policy], dash_of(setting), symbol)


def dash_of(setting: Setting) -> str:
    """How a setting's line is drawn, so that colour is never needed."""
    return "dash" if setting.policy in LENGTH_BLIND else DASHES[setting.kind]


def whiskers(means: Sequence[float], lows: Sequence[float], highs: Sequence[float]) -> dict[str, Any]:
    """Error bars from the lowest to the highest seed."""
    return {
        "type": "data",
        "symmetric": False,
        "array": [high - mean for high, mean in zip(highs, means, strict=True)],
        "arrayminus": [mean - low for mean, low in zip(means, lows, strict=True)],
        "thickness": 1.5,
        "width": 4,
    }


def level_points(points: Sequence[tuple[float | str, Setting]], metric: Metric, unit_of_x: str = "") -> dict[str, Any]:
    """A metric's mean at each x, whiskers over seeds, and what is said when a point is touched; in column units."""
    known = [(x, s, level) for x, s in points if (level := s.level(metric)) is not None]
    scale = metric.column_scale
    means = [scale * level.mean for _, _, level in known]
    return {
        "x": [x for x, _, _ in known],
        "y": means,
        "error_y": whiskers(
            means, [scale * level.low for _, _, level in known], [scale * level.high for _, _, level in known]
        ),
        "text": [
            f"{plain(s.name)}<br>{x} {unit_of_x}<br>{plain(metric.title)} {plain(metric.write(level.mean))}"
            + (f" (seeds: {plain(ranged)})" if (ranged := metric.write_spread(level)) else "")
            for x, s, level in known
        ],
    }


def choosable(trace: dict[str, Any], by: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """A trace that a person may switch between several sets of points; the first is drawn at first."""
    first = next(iter(by.values()))
    return {**first, **trace, "meta": {**trace.get("meta", {}), "by": by}}


def y_choices(metrics: Sequence[Metric]) -> dict[str, Any]:
    """The layout's ``meta`` for a y axis that may show any of these metrics."""
    return {"axis": "y", "measures": {m.key: {"title": m.heading, "tickformat": ""} for m in metrics}}
