"""The difference of every setting to the baseline, with KV pressure and without."""

from __future__ import annotations

from typing import Final

from ecoserve.pages import Column, Figure, Table, plain, plots, write, write_change
from ecoserve.sweep.reporting.metrics import NORMALIZED, write_comparison
from ecoserve.sweep.reporting.report_data import PRESSURES, ReportData
from ecoserve.sweep.reporting.settings import Load, Setting
from ecoserve.sweep.reporting.tables import comparison_cell, level_cell
from ecoserve.sweep.statistics import Comparison

#: The most settings that are all shown.
_MOST: Final = 30
_WORDS: Final = {"pressure": "KV cache short", "no pressure": "KV cache plentiful", "between": "KV cache nearly full"}


def pressure_figure(report: ReportData) -> Figure | None:
    """Difference to the baseline under every load of the virtual sweep, those without pressure last."""
    compared = _compared(report)
    if not compared:
        return None
    columns: list[Column | str] = [
        "Setting",
        Column(NORMALIZED.heading, NORMALIZED.note),
        Column(f"Baseline ({NORMALIZED.unit})", report.baseline_name),
        Column("Difference", "Mean over seeds of the relative difference, with its 95 % interval."),
    ]
    caption = f"{NORMALIZED.title} against {report.baseline_name}, with and without pressure on the KV cache."
    table = Table("pressure", caption, columns, group_title="Load")
    ticks: dict[float, str] = {}
    traces, spoken = [], []
    y = 0.0
    last: Load | None = None
    for s, base, c in compared:
        if s.load != last:
            y -= 0.9 if last is None else 1.3
            ticks[y] = f"<b>{plain(f'{s.load.rate_title}, {_pressure_words(report, s.load)}')}</b>"
            last = s.load
        y -= 1.0
        ticks[y] = plain(s.name)
        relative, low, high = (100 * ((c.relative or 0.0) if v is None else v) for v in (c.relative, c.low, c.high))
        center, interval = write_comparison(c)
        words = [plain(s.name), plain(s.load.title), f"{center}, {c.verdict}", f"95 % interval: {interval or 'none'}"]
        bars = plots.whiskers([relative], [low], [high], 2)
        symbol = "circle" if c.shown else "circle-open"
        looks: plots.Trace = {"symbol": symbol, "key": "circle", "size": 11, "error_x": bars}
        traces.append(plots.points([relative], [y], s.slot, s.policy, hover="<br>".join(words), **looks))
        table.add([s.name, level_cell(s, NORMALIZED), level_cell(base, NORMALIZED), comparison_cell(c)], s.load.title)
        spoken.append(f"{s.name} at {s.load.title}: {write_change(c.relative or 0.0)}, {c.verdict}")
    alt = f"Difference in normalized latency to {report.baseline_name}. {'; '.join(spoken)}."
    title = f"normalized latency against {report.baseline_name}, in % (left of 0 is better)"
    named: plots.Trace = {
        "tickvals": list(ticks),
        "ticktext": list(ticks.values()),
        "range": [y - 0.8, -0.2],
        "showgrid": False,
    }
    axes: plots.Trace = {"x": plots.axis(title, percent=True, zeroline=True), "y": plots.axis(zeroline=False, **named)}
    panel = plots.panel(traces, alt, **axes, height=int(110 + 30 * -y))
    text = (
        f"Zero is {report.baseline_name}. Whiskers are 95 % intervals of the differences, paired by seed. A hollow "
        "point is a difference that is not shown."
    )
    return Figure("pressure", "With and without pressure on the KV cache", text, [panel], table)


def _compared(report: ReportData) -> list[tuple[Setting, Setting, Comparison]]:
    """Setting, baseline and their comparison, in the order of the plot."""
    virtual = [x for x in report.loads if x.engine == "virtual" and report.baseline_of(x)]
    rows: list[Setting] = []
    for load in sorted(virtual, key=lambda x: (PRESSURES.index(report.pressure(x)), -(x.rate_rps or 0.0))):
        others = [s for s in report.under(load) if s.policy != report.baseline]
        predicted = any(s.kind == "predicted" for s in others)
        rows += [s for s in others if not (predicted and s.kind == "noise")]
    if len(rows) > _MOST:
        # Too many to read: those that the other plots show; the table of all settings has the rest.
        shown = {s.choice for s in report.cast}
        rows = [s for s in rows if s.choice in shown]
    found = [(s, base, s.against(base, NORMALIZED)) for s in rows if (base := report.baseline_of(s.load))]
    return [(s, base, c) for s, base, c in found if c is not None and c.relative is not None]


def _pressure_words(report: ReportData, load: Load) -> str:
    named = _WORDS.get(report.pressure(load), load.condition or "load not classified")
    peak = report.demand_peak(load)
    return f"{named} (peak demand {write(peak)}×)" if peak is not None else named
