"""The misprediction waterfall: what became of answers that outlived their reservation, rung by rung, cheapest first."""

from __future__ import annotations

from typing import Any, Final

from ecoserve.pages import NOTHING, Cell, Column, Figure, LegendEntry, Panel, Table, spec, write
from ecoserve.sweep.reporting.choice import main_load, stand_in
from ecoserve.sweep.reporting.figures import Style
from ecoserve.sweep.reporting.settings import Setting, Settings

#: Counter of a run, name of the rung, what it means.
RUNGS: Final = (
    ("underprediction_own_space", "own space", "Met from space that was its own and not lent: costs nothing."),
    ("underprediction_re_reserved", "reserved again", "A new reservation from what is now known of its length."),
    ("underprediction_global_reserve", "global reserve", "A block of what is kept for such cases."),
    ("underprediction_paused", "paused", "Stopped for a while with its KV cache kept."),
    ("underprediction_guest_moved", "guest moved", "The host came, and its guest moved or stopped."),
    ("underprediction_recomputed", "recomputed", "A victim's KV cache was dropped: work is lost."),
)
_COUNTS: Final = (("under_predictions", "Outlived"), ("over_predictions", "Ended before"))


def misprediction_figure(settings: Settings, style: Style) -> Figure | None:
    """One waterfall per policy that promises KV, under the main load; None where no rung was ever taken."""
    load = main_load(settings)
    ours = stand_in(settings, load) if load else None
    if load is None or ours is None:
        return None
    counted = [s for s in settings.under(load) if _total(s)]
    told = [s for s in counted if s.lengths in (ours.lengths, "none")]
    if not counted:
        return None
    panels: list[Panel] = []
    for s in (told or counted)[:4]:
        traces, spoken = _waterfall(s, style.slots[s.policy])
        layout = {
            "yaxis": {"title": {"text": "times per run"}, "rangemode": "tozero"},
            "xaxis": {"type": "category", "tickangle": 30},
            "bargap": 0.35,
        }
        alt = f"What became of outlived reservations, {s.name} at {load.title}, times per run: {spoken}."
        panels.append(Panel(f"ladder-{len(panels)}", s.name, spec(traces, layout), alt))
    table = Table(
        "ladder",
        "Wrong predictions and what was done about them, times per run, mean over seeds.",
        [
            Column("Setting", number=False),
            *(Column(title) for _, title in _COUNTS),
            *(Column(title.capitalize(), note) for _, title, note in RUNGS),
        ],
        group_title="Load",
    )
    for s in counted:
        table.groups.append(s.load.title)
        values = [s.level(key) for key, _ in _COUNTS] + [s.level(key) for key, _, _ in RUNGS]
        table.rows.append(
            [Cell(s.name), *(Cell(NOTHING) if v is None else Cell(write(v.mean), raw=v.mean) for v in values)]
        )
    shown = dict.fromkeys(s.policy for s in (told or counted)[:4])
    return Figure(
        "ladder",
        "What became of wrong predictions, rung by rung",
        f"At {load.title}: every time an answer outlived its reservation or the KV cache ran out, somebody paid. From "
        "the left, the cheapest way first; the last one throws work away. Mean over seeds.",
        panels,
        [LegendEntry(policy, style.slots[policy], "", "square") for policy in shown],
        table,
    )


def _total(setting: Setting) -> float:
    return sum(level.mean for key, _, _ in RUNGS if (level := setting.level(key)) is not None)


def _waterfall(setting: Setting, slot: int) -> tuple[list[dict[str, Any]], str]:
    """Bars that come down from all to nothing, and the same in words."""
    left = _total(setting)
    names, bases, heights, spoken = ["all"], [0.0], [left], [f"all {write(left)}"]
    for key, name, _ in RUNGS:
        level = setting.level(key)
        height = level.mean if level else 0.0
        left -= height
        names.append(name)
        bases.append(max(0.0, left))
        heights.append(height)
        spoken.append(f"{name} {write(height)}")
    trace = {
        "type": "bar",
        "x": names,
        "y": heights,
        "base": bases,
        "text": [write(height) for height in heights],
        "textposition": "outside",
        "cliponaxis": False,
        "hovertemplate": "%{x}: %{text}<extra></extra>",
        "meta": {"slot": slot},
    }
    return [trace], ", ".join(spoken)
