"""KV over time: what is held, reserved, lent and wasted, under the main load, one seed."""

from __future__ import annotations

from typing import Final

from ecoserve.pages import Cell, Column, Figure, LegendEntry, Panel, Table, spec, write
from ecoserve.sweep.reporting.choice import cast
from ecoserve.sweep.reporting.details import Details
from ecoserve.sweep.reporting.figures import Style
from ecoserve.sweep.reporting.settings import Settings

#: Column of a point, name, colour, dash.
_PARTS: Final = (
    ("held", "held", 0, "solid"),
    ("reserved", "reserved beyond what is written", 1, "dash"),
    ("lent", "lent, of what is reserved", 3, "dot"),
    ("wasted", "wasted", 2, "longdashdot"),
)
_PANELS: Final = 6


def kv_figure(settings: Settings, style: Style, details: Details) -> Figure | None:
    """One plot per setting that is shown; None where no run kept it."""
    panels: list[Panel] = []
    table = Table(
        "kv",
        "KV cache over time, as a share of what there is.",
        [Column("Seconds", number=False), *(Column(name.capitalize()) for _, name, _, _ in _PARTS)],
        group_title="Setting",
    )
    for s in cast(settings)[:_PANELS]:
        run = min(s.runs, key=lambda run: run.seed)
        points = [p for p in details.kv(run) if p.replica == 0]
        if not points:
            continue
        traces = []
        for key, name, slot, dash in _PARTS:
            values = [getattr(p, key) for p in points]
            if all(v is None or v == 0 for v in values):
                continue
            traces.append(
                {
                    "x": [round(p.at_s, 3) for p in points],
                    "y": [None if v is None else round(v, 4) for v in values],
                    "mode": "lines",
                    "line": {"width": 1.8, "dash": dash},
                    "hovertemplate": f"{name}: %{{y:.0%}} at %{{x:.0f}} s<extra></extra>",
                    "meta": {"slot": slot},
                }
            )
        seconds = sum(p.seconds for p in points)
        means = {key: sum((getattr(p, key) or 0.0) * p.seconds for p in points) / seconds for key, _, _, _ in _PARTS}
        layout = {
            "xaxis": {"title": {"text": "seconds of the run"}, "range": [0, points[-1].at_s + points[-1].seconds]},
            "yaxis": {"title": {"text": "share of the KV cache"}, "tickformat": ".0%", "range": [0, 1.05]},
            "height": 280,
        }
        spoken = ", ".join(f"{name} {write(means[key], 'share')}" for key, name, _, _ in _PARTS)
        alt = f"KV cache over time, {s.name} at {s.load.title}, seed {run.seed}. Averages: {spoken}."
        panels.append(Panel(f"kv-{len(panels)}", s.name, spec(traces, layout), alt))
        for p in points:
            table.groups.append(s.name)
            cells = [getattr(p, key) for key, _, _, _ in _PARTS]
            table.rows.append(
                [
                    Cell(f"{p.at_s:.2f}", raw=round(p.at_s, 3)),
                    *(
                        Cell("–" if v is None else write(v, "share"), raw=None if v is None else round(v, 4))
                        for v in cells
                    ),
                ]
            )
    if not panels:
        return None
    load = cast(settings)[0].load
    return Figure(
        "kv",
        "The KV cache over time",
        f"At {load.title}, the lowest seed, each replica’s first. Reserved: promised to running answers beyond what "
        "they have written. Wasted: promised beyond what the answer turned out to need and not lent, and held by "
        "paused answers.",
        panels,
        [LegendEntry(name, slot, dash) for _, name, slot, dash in _PARTS],
        table,
    )
