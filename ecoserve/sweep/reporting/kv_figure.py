"""The KV cache over time: held, reserved, lent and wasted, under the main load, one seed."""

from __future__ import annotations

from typing import Final

from ecoserve.pages import Cell, Column, Figure, Table, plots, write
from ecoserve.sweep.reporting.report_data import ReportData

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
    table = Table(
        "kv",
        "KV cache over time, as a share of the whole.",
        ["Seconds", *(Column(name.capitalize(), unit="share") for _, name, _, _ in _PARTS)],
        group_title="Setting",
    )
    for s in report.cast[:_PANELS]:
        run = min(s.runs, key=lambda run: run.seed)
        points = [p for p in report.details.kv(run) if p.replica == 0]
        if not points:
            continue
        times = [round(p.at_s, 3) for p in points]
        seconds = sum(p.seconds for p in points)
        columns = {key: [getattr(p, key) for p in points] for key, *_ in _PARTS}
        shares = {key: [None if v is None else round(v, 4) for v in values] for key, values in columns.items()}
        traces, spoken = [], []
        for key, name, slot, dash in _PARTS:
            mean = sum((v or 0.0) * p.seconds for v, p in zip(columns[key], points, strict=True)) / seconds
            spoken.append(f"{name} {write(mean, 'share')}")
            hover = f"{name}: %{{y:.0%}} at %{{x:.0f}} s"
            drawn = (times, shares[key]) if any(columns[key]) else ([], [])
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
