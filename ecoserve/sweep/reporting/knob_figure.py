"""Heat maps of a knob against the rate: the accuracy of the lengths always, and whatever else the sweep turned.

A cell is the paired difference of normalized latency to a reference under the same rate: for accuracies the baseline,
for other knobs the first of their conditions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from ecoserve.pages import Cell, Column, Figure, Panel, Table, plain, spec, write_change
from ecoserve.sweep.plan import LENGTH_BLIND
from ecoserve.sweep.reporting.choice import main_load, stand_in, tuned
from ecoserve.sweep.reporting.metrics import NORMALIZED
from ecoserve.sweep.reporting.settings import Load, Setting, Settings, lengths_name
from ecoserve.sweep.reporting.tables import comparison_cell
from ecoserve.sweep.statistics import Comparison

#: Colours end here, in per cent.
_MOST: Final = 80.0
_TEXT: Final = (
    "Each cell: normalized latency against {reference} at the same rate, paired by seed. Green is lower, red is "
    "higher; a cell in brackets is a difference that is not shown."
)


def accuracy_map(settings: Settings) -> Figure | None:
    """Accuracy × rate, one map per policy that uses lengths; None with fewer than two rates or accuracies."""
    load = main_load(settings)
    if load is None:
        return None
    loads = _row_of(settings, load)
    here = [
        s
        for x in loads
        for s in tuned(settings, settings.under(x))
        if s.policy not in LENGTH_BLIND and s.policy != settings.baseline
    ]
    kinds = sorted(dict.fromkeys(s.lengths for s in here), key=lambda lengths: _worth(here, lengths))
    if len(loads) < 2 or len(kinds) < 2:
        return None
    maps = []
    for policy in dict.fromkeys(s.policy for s in here):
        cells = [[_against(settings, x, policy, lengths) for x in loads] for lengths in kinds]
        maps.append((policy, [lengths_name(lengths) for lengths in kinds], cells))
    reference = settings.baseline_name
    return _figure("map-accuracy", "Accuracy of the lengths × arrival rate", reference, loads, maps, "Lengths")


def knob_map(settings: Settings) -> Figure | None:
    """Knobs and conditions × rate for the setting that the answer is about; None with fewer than two of them.

    Each row is a condition, a choice of knobs, or both; the first is what the others are held against.
    """
    load = main_load(settings)
    ours = stand_in(settings, load) if load else None
    if load is None or ours is None:
        return None
    same = [s for s in settings.all if (s.policy, s.lengths, s.load.engine) == (ours.policy, ours.lengths, load.engine)]
    rates = sorted({s.load.rate_rps for s in same if s.load.rate_rps is not None})
    found = {(_row_name(s), s.load.rate_rps): s for s in same}
    names = list(dict.fromkeys(_row_name(s) for s in same))
    shown = [n for n in names if any((names[0], r) in found and (n, r) in found for r in rates)]
    if len(shown) < (2 if any(s.knobs for s in same) else 3):
        return None  # two conditions are with and without pressure, which has a plot of its own
    cells = []
    for name in shown:
        row = []
        for rate in rates:
            mine, first = found.get((name, rate)), found.get((shown[0], rate))
            row.append(mine.against(first, NORMALIZED) if mine and first and mine is not first else None)
        cells.append(row)
    loads = [Load(load.engine, None, rate) for rate in rates]
    maps = [(f"{ours.policy}, {lengths_name(ours.lengths)}", shown, cells)]
    return _figure("map-knob", "Knobs and conditions × arrival rate", f"“{shown[0]}”", loads, maps, "Knobs")


def _row_name(setting: Setting) -> str:
    return ", ".join(part for part in (setting.load.others_title, setting.knobs_title) if part) or "as planned"


def _row_of(settings: Settings, load: Load) -> list[Load]:
    same = [x for x in settings.loads if x.family == load.family and x.rate_rps is not None]
    return sorted((x for x in same if settings.baseline_of(x)), key=lambda x: x.rate_rps or 0.0)


def _worth(here: Sequence[Setting], lengths: str) -> tuple[float, str]:
    """True lengths first, then by how well they rank, none last."""
    if lengths == "true":
        return (-2.0, lengths)
    levels = [level.mean for s in here if s.lengths == lengths and (level := s.level("prediction_kendall_tau"))]
    return (-levels[0] if levels else 2.0, lengths)


def _against(settings: Settings, load: Load, policy: str, lengths: str) -> Comparison | None:
    base = settings.baseline_of(load)
    here = tuned(settings, settings.under(load))
    mine = next((s for s in here if (s.policy, s.lengths) == (policy, lengths)), None)
    return mine.against(base, NORMALIZED) if mine and base else None


def _figure(
    name: str,
    title: str,
    reference: str,
    loads: Sequence[Load],
    maps: Sequence[tuple[str, list[str], list[list[Comparison | None]]]],
    head: str,
) -> Figure:
    panels = []
    table = Table(
        name,
        f"Normalized latency against {reference}, by arrival rate.",
        [Column(head, number=False), *(Column(x.rate_title) for x in loads)],
        group_title="Policy",
    )
    rates = [f"{x.rate_rps:g}" for x in loads]
    for number, (policy, rows, cells) in enumerate(maps):
        values = [[None if c is None or c.relative is None else 100 * c.relative for c in row] for row in cells]
        texts = [[_written(c) for c in row] for row in cells]
        trace = {
            "type": "heatmap",
            "x": rates,
            "y": [plain(row) for row in rows],
            "z": [[None if v is None else max(-_MOST, min(_MOST, v)) for v in row] for row in values],
            "text": texts,
            "texttemplate": "%{text}",
            "zmin": -_MOST,
            "zmax": _MOST,
            "showscale": False,
            "xgap": 2,
            "ygap": 2,
            "hovertemplate": "%{y} at %{x} requests/s: %{text}<extra></extra>",
            "meta": {"slot": 1, "diverging": 1},
        }
        layout = {
            "xaxis": {"title": {"text": "Arrival rate (requests/s)"}, "type": "category", "showgrid": False},
            "yaxis": {"type": "category", "autorange": "reversed", "showgrid": False, "ticks": ""},
            "height": 130 + 30 * len(rows),
        }
        spoken = [
            f"{row}: " + ", ".join(f"{text} at {rate}" for text, rate in zip(line, rates, strict=True) if text)
            for row, line in zip(rows, texts, strict=True)
        ]
        alt = f"Normalized latency of {policy} against {reference} by rate. {'; '.join(spoken)}."
        panels.append(Panel(f"{name}-{number}", policy, spec([trace], layout), alt))
        for row, line in zip(rows, cells, strict=True):
            table.groups.append(policy)
            table.rows.append([Cell(row), *(comparison_cell(c) for c in line)])
    return Figure(name, title, _TEXT.format(reference=reference), panels, [], table)


def _written(comparison: Comparison | None) -> str:
    if comparison is None or comparison.relative is None:
        return ""
    text = write_change(comparison.relative)
    return text if comparison.shown else f"({text})"
