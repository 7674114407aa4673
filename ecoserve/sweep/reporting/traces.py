"""Traces that several figures of the report share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ecoserve.pages import plain, plots
from ecoserve.sweep.reporting.metrics import Metric
from ecoserve.sweep.reporting.settings import Setting


def setting_line(setting: Setting, by: Mapping[str, plots.Trace], **more: Any) -> plots.Trace:
    """A line in a setting's colour and dash; ``by`` holds its points for each choice of the figure."""
    looks = {"dash": setting.dash, "symbol": "circle", "hover": "%{text}", **more}
    return plots.line([], [], setting.slot, setting.name, by=by, **looks)


def level_points(points: Sequence[tuple[float | str, Setting]], metric: Metric, unit_of_x: str = "") -> plots.Trace:
    """A metric's mean at each x, in its column unit, with whiskers over the seeds and the text shown on hover."""
    known = [(x, s, level) for x, s in points if (level := s.level(metric)) is not None]
    means, low, high = (
        [metric.column_scale * getattr(level, name) for *_, level in known] for name in ("mean", "low", "high")
    )
    text = [
        f"{plain(s.name)}<br>{x} {unit_of_x}<br>{plain(metric.title)} {plain(metric.write_level(level))}"
        for x, s, level in known
    ]
    return {"x": [x for x, *_ in known], "y": means, "error_y": plots.whiskers(means, low, high), "text": text}


def y_choices(metrics: Sequence[Metric]) -> dict[str, Any]:
    """The layout's ``meta`` for a y axis that may show any of these metrics."""
    return {"axis": "y", "measures": {m.key: {"title": m.heading, "tickformat": ""} for m in metrics}}
