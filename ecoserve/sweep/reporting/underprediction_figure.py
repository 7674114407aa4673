"""What the scheduler did for answers that outlived their reservation: a waterfall of its actions, cheapest first."""

from __future__ import annotations

from typing import Final

from ecoserve.pages import Column, Figure, Table, plots, write
from ecoserve.sweep.reporting.report_data import ReportData
from ecoserve.sweep.reporting.settings import Setting

#: Counter of a run, name of the action, what it means.
ACTIONS: Final = (
    ("underprediction_own_space", "own space", "Own space that was not lent: costs nothing."),
    ("underprediction_re_reserved", "reserved again", "A new reservation from the updated prediction of its length."),
    ("underprediction_global_reserve", "global reserve", "A block of the reserve kept for such cases."),
    ("underprediction_paused", "paused", "Stopped for a while with its KV cache kept."),
    ("underprediction_guest_moved", "guest moved", "The request that borrowed its space was moved or stopped."),
    ("underprediction_recomputed", "recomputed", "A victim's KV cache was dropped: work is lost."),
)
_COUNTS: Final = (("under_predictions", "Outlived"), ("over_predictions", "Ended before"))
_PANELS: Final = 4


def underprediction_figure(report: ReportData) -> Figure | None:
    """One waterfall per policy that reserves KV, under the main load; None if no action was ever taken."""
    load, ours = report.load, report.ours
    counted = [s for s in report.under(load) if _total(s)] if load else []
    if load is None or ours is None or not counted:
        return None
    shown = ([s for s in counted if s.lengths in (ours.lengths, "none")] or counted)[:_PANELS]
    panels = []
    for s in shown:
        trace, spoken = _waterfall(s)
        alt = f"Actions for outlived reservations, {s.name} at {load.title}, times per run: {spoken}."
        x = plots.axis(type="category", tickangle=30)
        panels.append(plots.panel([trace], alt, s.name, x=x, y=plots.from_zero("times per run"), bargap=0.35))
    table = Table(
        "ladder",
        "Wrong predictions and the actions taken, times per run, mean over seeds.",
        [
            "Setting",
            *(title for _, title in _COUNTS),
            *(Column(title.capitalize(), note) for _, title, note in ACTIONS),
        ],
        group_title="Load",
    )
    for s in counted:
        table.add([s.name, *(s.mean(key) for key, *_ in (*_COUNTS, *ACTIONS))], s.load.title)
    text = (
        f"At {load.title}: every time an answer outlived its reservation or the KV cache ran out, the scheduler took "
        "one of these actions. From the left, the cheapest first; the last one loses work. Mean over seeds."
    )
    return Figure("ladder", "Actions on wrong predictions", text, panels, table)


def _total(setting: Setting) -> float:
    return sum(setting.mean(key) or 0.0 for key, _, _ in ACTIONS)


def _waterfall(setting: Setting) -> tuple[plots.Trace, str]:
    """Bars that come down from all to zero, and the same in words."""
    left = _total(setting)
    names, bases, heights = ["all"], [0.0], [left]
    for key, name, _ in ACTIONS:
        height = setting.mean(key) or 0.0
        left -= height
        names.append(name)
        bases.append(max(0.0, left))
        heights.append(height)
    text = [write(height) for height in heights]
    more: plots.Trace = {"base": bases, "text": text, "textposition": "outside", "cliponaxis": False}
    trace = plots.bars(names, heights, setting.slot, setting.policy, hover="%{x}: %{text}", **more)
    return trace, ", ".join(f"{name} {height}" for name, height in zip(names, text, strict=True))
