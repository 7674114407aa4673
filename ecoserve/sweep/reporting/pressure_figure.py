"""The plot of what every setting changes against the baseline, with KV pressure and without."""

from __future__ import annotations

from typing import Final

from ecoserve.pages import Cell, Column, Figure, LegendEntry, Panel, Table, plain, spec, write, write_change
from ecoserve.sweep.reporting.choice import cast
from ecoserve.sweep.reporting.figures import Style
from ecoserve.sweep.reporting.metrics import NORMALIZED, write_comparison
from ecoserve.sweep.reporting.settings import Load, Setting, Settings, demand_peak
from ecoserve.sweep.reporting.tables import comparison_cell, level_cell

#: The most settings that are all shown.
_MOST: Final = 30


def pressure_figure(settings: Settings, style: Style) -> Figure | None:
    """Difference to the baseline under every load of the virtual sweep, those without pressure last."""
    order = {"pressure": 0, "between": 1, "unknown": 2, "no pressure": 3}
    loads = sorted(
        (x for x in settings.loads if x.engine == "virtual" and settings.baseline_of(x)),
        key=lambda x: (order[settings.pressure(x)], -(x.rate_rps or 0.0)),
    )
    rows: list[tuple[Load, Setting]] = []
    for load in loads:
        others = [s for s in settings.under(load) if s.policy != settings.baseline]
        if any(s.kind == "predicted" for s in others):
            others = [s for s in others if s.kind != "noise"]
        rows += [(load, s) for s in others]
    if len(rows) > _MOST:
        # Too many to read: those that the other plots show; the table of all settings has the rest.
        shown = {(s.policy, s.lengths, s.knobs) for s in cast(settings)}
        rows = [(load, s) for load, s in rows if (s.policy, s.lengths, s.knobs) in shown]
    compared = [
        (load, s, c) for load, s in rows if (b := settings.baseline_of(load)) and (c := s.against(b, NORMALIZED))
    ]
    compared = [item for item in compared if item[2].relative is not None]
    if not compared:
        return None
    table = Table(
        "pressure",
        f"{NORMALIZED.title} against {settings.baseline_name}, with and without pressure on the KV cache.",
        [
            Column("Setting", number=False),
            Column(NORMALIZED.heading, NORMALIZED.note),
            Column(f"Baseline ({NORMALIZED.unit})", settings.baseline_name),
            Column("Difference", "Mean over seeds of the relative difference, with its 95 % interval."),
        ],
        group_title="Load",
    )
    positions, labels, traces = [], [], []
    y = 0.0
    last: Load | None = None
    for load, s, c in compared:
        if load != last:
            y -= 0.9 if last is None else 1.3
            positions.append(y)
            labels.append(f"<b>{plain(f'{load.rate_title}, {_pressure_words(settings, load)}')}</b>")
            last = load
        y -= 1.0
        positions.append(y)
        labels.append(plain(s.name))
        relative = 100 * (c.relative or 0.0)
        low, high = (100 * (c.relative or 0.0) if b is None else 100 * b for b in (c.low, c.high))
        center, interval = write_comparison(c)
        hover = (
            f"{plain(s.name)}<br>{plain(load.title)}<br>{center}, {c.verdict}<br>95 % interval: {interval or 'none'}"
        )
        traces.append(
            {
                "x": [relative],
                "y": [y],
                "mode": "markers",
                "marker": {"size": 11, "symbol": "circle" if c.shown else "circle-open", "line": {"width": 2}},
                "error_x": {
                    "type": "data",
                    "symmetric": False,
                    "array": [high - relative],
                    "arrayminus": [relative - low],
                    "thickness": 2,
                    "width": 5,
                },
                "hovertemplate": f"{hover}<extra></extra>",
                "meta": {"slot": style.slots[s.policy]},
            }
        )
        base = settings.baseline_of(load)
        table.groups.append(load.title)
        table.rows.append(
            [
                Cell(s.name),
                level_cell(s, NORMALIZED),
                level_cell(base, NORMALIZED) if base else Cell("–"),
                comparison_cell(c),
            ]
        )
    layout = {
        "height": int(110 + 30 * -y),
        "yaxis": {
            "tickvals": positions,
            "ticktext": labels,
            "range": [y - 0.8, -0.2],
            "showgrid": False,
            "automargin": True,
            "zeroline": False,
        },
        "xaxis": {
            "title": {"text": f"normalized latency against {settings.baseline_name}, in % (left of 0 is better)"},
            "zeroline": True,
            "ticksuffix": " %",
        },
    }
    spoken = [f"{s.name} at {load.title}: {write_change(c.relative or 0.0)}, {c.verdict}" for load, s, c in compared]
    alt = f"Difference in normalized latency to {settings.baseline_name}. {'; '.join(spoken)}."
    policies = dict.fromkeys(s.policy for _, s, _ in compared)
    return Figure(
        "pressure",
        "With and without pressure on the KV cache",
        f"Zero is {settings.baseline_name}. Whiskers are 95 % intervals of the differences, paired by seed. "
        "A hollow point is a difference that is not shown.",
        [Panel("pressure-0", "", spec(traces, layout), alt)],
        [LegendEntry(policy, style.slots[policy], "", "circle") for policy in policies],
        table,
        wide=True,
    )


def _pressure_words(settings: Settings, load: Load) -> str:
    words = {"pressure": "KV cache short", "no pressure": "KV cache plentiful", "between": "KV cache nearly full"}
    peak = demand_peak(settings.under(load))
    named = words.get(settings.pressure(load), load.condition or "load not classified")
    return f"{named} (peak demand {write(peak)}×)" if peak is not None else named
