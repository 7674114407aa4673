"""Figures of the KV cache: its use over time, and the scheduler's actions when a reservation was too small."""

from __future__ import annotations

from typing import Final

from ecoserve.pages import Cell, Column, Figure, Table, plots, write
from ecoserve.sweep.reporting.report_data import ReportData
from ecoserve.sweep.reporting.settings import Setting

#: Column of a point, name, colour, dash.
_PARTS: Final = (
    ("held", "held", 0, "solid"),
    ("reserved", "reserved beyond what is written", 1, "dash"),
    ("lent", "lent, of what is reserved", 3, "dot"),
    ("wasted", "wasted", 2, "longdashdot"),
)
_PANELS: Final = 6


def kv_figure(report: ReportData) -> Figure | None:
    """One plot per setting that is shown; None if no run recorded it."""
    panels = []
    columns = ["Seconds", *(Column(name.capitalize(), unit="share") for _, name, _, _ in _PARTS)]
    table = Table("kv", "KV cache over time, as a share of the whole.", columns, group_title="Setting")
    for s in report.cast[:_PANELS]:
        run = min(s.runs, key=lambda run: run.seed)
        points = [p for p in report.details.kv(run) if p.replica == 0]
        if not points:
            continue
        times = [round(p.at_s, 3) for p in points]
        seconds = sum(p.seconds for p in points)
        parts = {key: [getattr(p, key) for p in points] for key, *_ in _PARTS}
        shares = {key: [None if v is None else round(v, 4) for v in values] for key, values in parts.items()}
        traces, spoken = [], []
        for key, name, slot, dash in _PARTS:
            mean = sum((v or 0.0) * p.seconds for v, p in zip(parts[key], points, strict=True)) / seconds
            spoken.append(f"{name} {write(mean, 'share')}")
            hover = f"{name}: %{{y:.0%}} at %{{x:.0f}} s"
            drawn = (times, shares[key]) if any(parts[key]) else ([], [])
            traces.append(plots.line(*drawn, slot, name, hover=hover, dash=dash, width=1.8))
        x = plots.axis("seconds of the run", range=[0, points[-1].at_s + points[-1].seconds])
        y = plots.axis("share of the KV cache", share=True, range=[0, 1.05])
        alt = f"KV cache over time, {s.name} at {s.load.title}, seed {run.seed}. Averages: {', '.join(spoken)}."
        panels.append(plots.panel(traces, alt, s.name, x=x, y=y, height=280))
        for at, *row in zip(times, *shares.values(), strict=True):
            table.add([Cell(at, f"{at:.2f}"), *row], s.name)
    if not panels:
        return None
    text = (
        f"At {report.cast[0].load.title}, the lowest seed, the first replica. Reserved: kept for running answers "
        "beyond what they have written. Wasted: reserved beyond what the answer turned out to need and not lent, and "
        "held by paused requests."
    )
    return Figure("kv", "The KV cache over time", text, panels, table)


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
_WATERFALLS: Final = 4


def underprediction_figure(report: ReportData) -> Figure | None:
    """One waterfall per policy that reserves KV, under the main load; None if no action was ever taken."""
    load, ours = report.load, report.ours
    counted = [s for s in report.under(load) if _total(s)] if load else []
    if load is None or ours is None or not counted:
        return None
    shown = ([s for s in counted if s.lengths in (ours.lengths, "none")] or counted)[:_WATERFALLS]
    panels = []
    for s in shown:
        trace, spoken = _waterfall(s)
        alt = f"Actions for outlived reservations, {s.name} at {load.title}, times per run: {spoken}."
        x = plots.axis(type="category", tickangle=30)
        panels.append(plots.panel([trace], alt, s.name, x=x, y=plots.from_zero("times per run"), bargap=0.35))
    actions = (Column(title.capitalize(), note) for _, title, note in ACTIONS)
    caption = "Wrong predictions and the actions taken, times per run, mean over seeds."
    table = Table("ladder", caption, ["Setting", *(title for _, title in _COUNTS), *actions], group_title="Load")
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
