"""SLO attainment against the scale of the SLO, judged on the requests of a run after it.

With ``slo_scale`` a request's deadline is that many times what it takes on an idle engine. How many times it took is
therefore known for every request, and with it who would have met any other scale. What the schedulers were told is the
scale of the run; this says how its requests would have been judged by another.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from ecoserve.pages import Cell, Column, Figure, LegendEntry, Panel, Table, plain, spec, write
from ecoserve.sweep.reporting.choice import along, cast, main_load
from ecoserve.sweep.reporting.details import Column as Values
from ecoserve.sweep.reporting.details import Details
from ecoserve.sweep.reporting.figures import Style, dash_of, level_points
from ecoserve.sweep.reporting.metrics import SLO
from ecoserve.sweep.reporting.settings import Setting, Settings
from ecoserve.sweep.reporting.tables import level_cell

_SCALES: Final = tuple(float(s) for s in np.round(np.geomspace(1.0, 40.0, 41), 2))
_SHOWN: Final = (1.5, 2.0, 3.0, 4.0, 5.0, 7.0, 10.0, 15.0, 20.0)
_PANELS: Final = 2


def scale_figure(settings: Settings, style: Style, details: Details) -> Figure | None:
    """Attainment against scale under the main load and the one before; None where no run had deadlines."""
    load = main_load(settings)
    if load is None:
        return None
    rows = cast(settings)
    rates = sorted({s.load.rate_rps or 0.0 for one in rows for s in along(settings, one)})
    shown = [r for r in rates if r <= (load.rate_rps or 0.0)][-_PANELS:] or [load.rate_rps or 0.0]
    table = Table(
        "slo-scale",
        "Share of requests done within so many times what they take on an idle engine.",
        [Column("Setting", number=False), *(Column(f"{scale:g}×") for scale in _SHOWN)],
        group_title="Load",
    )
    if any(name == "slo_scale" for name, _ in load.variant):
        return _run_scales(settings, style)
    panels, legend, told = [], dict[str, LegendEntry](), set[float]()
    for number, rate in enumerate(shown):
        here = [s for one in rows for s in (along(settings, one) or [one]) if (s.load.rate_rps or 0.0) == rate]
        traces, spoken = [], []
        for s in here:
            taken = slowdowns(s, details)
            if not len(taken):
                continue
            told |= {float(scale) for run in s.runs if (scale := details.settings(run).get("slo_scale")) is not None}
            shares = [_within(taken, scale) for scale in _SCALES]
            legend[s.name] = style.legend(s, "")
            traces.append(
                {
                    "x": list(_SCALES),
                    "y": [round(v, 4) for v in shares],
                    "mode": "lines",
                    "line": {"width": 2.2, "dash": dash_of(s)},
                    "hovertemplate": f"{plain(s.name)}<br>%{{x}} times: %{{y:.0%}}<extra></extra>",
                    "meta": {"slot": style.slots[s.policy]},
                }
            )
            table.groups.append(s.load.title)
            cells = [Cell(write(v, "share"), raw=v) for v in (_within(taken, scale) for scale in _SHOWN)]
            table.rows.append([Cell(s.name), *cells])
            spoken.append(f"{s.name}: {write(_within(taken, 5.0), 'share')} within 5 times")
        if traces:
            layout = {
                "xaxis": {
                    "title": {"text": "SLO scale (times an idle engine)"},
                    "type": "log",
                    "tickvals": [1, 2, 5, 10, 20, 40],
                },
                "yaxis": {"title": {"text": "SLO attainment"}, "tickformat": ".0%", "range": [0, 1.02]},
            }
            alt = f"SLO attainment against the scale of the SLO at {here[0].load.title}. {'; '.join(spoken)}."
            panels.append(Panel(f"slo-scale-{number}", here[0].load.title, spec(traces, layout), alt))
    if not panels:
        return None
    scales = ", ".join(f"{scale:g}" for scale in sorted(told))
    return Figure(
        "slo-scale",
        "SLO attainment against the scale of the SLO",
        "How many requests were done within so many times what they take on an idle engine; all seeds together. "
        f"Schedulers were told an SLO of {scales} times; other scales are judged afterwards.",
        panels,
        list(legend.values()),
        table,
    )


def _run_scales(settings: Settings, style: Style) -> Figure | None:
    """Where the sweep varied the scale that the schedulers were told: attainment by that scale."""
    traces, legend, spoken = [], [], []
    table = Table(
        "slo-scale",
        "SLO attainment by the scale that the schedulers were told.",
        [Column("SLO scale", number=False), Column(SLO.heading, SLO.note)],
        group_title="Setting",
    )
    for one in cast(settings):
        own = dict(one.load.variant) | {"slo_scale": ""}
        line = [
            (float(dict(s.load.variant)["slo_scale"]), s)
            for s in settings.all
            if (s.policy, s.lengths, s.knobs, s.load.engine, s.load.condition, s.load.rate_rps)
            == (one.policy, one.lengths, one.knobs, one.load.engine, one.load.condition, one.load.rate_rps)
            and dict(s.load.variant) | {"slo_scale": ""} == own
            and s.level(SLO) is not None
        ]
        line.sort(key=lambda item: item[0])
        if len(line) < 2:
            continue
        traces.append(
            {
                **level_points(line, SLO, "times an idle engine"),
                "mode": "lines+markers",
                "line": {"width": 2.2, "dash": dash_of(one)},
                "hovertemplate": "%{text}<extra></extra>",
                "meta": {"slot": style.slots[one.policy]},
            }
        )
        legend.append(style.legend(one))
        for scale, s in line:
            table.groups.append(one.name)
            table.rows.append([Cell(f"{scale:g}", raw=scale), level_cell(s, SLO)])
        spoken.append(f"{one.name}: " + ", ".join(f"{table.rows[-1][1].text} at {scale:g}" for scale, _ in line[-1:]))
    if not traces:
        return None
    layout = {
        "xaxis": {"title": {"text": "SLO scale (times an idle engine)"}},
        "yaxis": {"title": {"text": SLO.heading}, "range": [0, 102]},
    }
    alt = f"SLO attainment against the scale that was told. {'; '.join(spoken)}."
    return Figure(
        "slo-scale",
        "SLO attainment against the scale of the SLO",
        "Each scale is a run of its own: the schedulers knew it. Whiskers run from the lowest to the highest seed.",
        [Panel("slo-scale-0", cast(settings)[0].load.rate_title, spec(traces, layout), alt)],
        legend,
        table,
        wide=True,
    )


def slowdowns(setting: Setting, details: Details) -> Values:
    """How many times its time on an idle engine each accepted request took (infinity: never done); empty if unknown."""
    found = []
    for run in setting.runs:
        scale, rows = details.settings(run).get("slo_scale"), details.requests(run)
        if scale is None or rows is None or np.isnan(rows["deadline_s"]).any():
            continue
        alone = (rows["deadline_s"] - rows["arrival_s"]) / float(scale)
        taken = np.where(np.isnan(rows["finish_s"]), np.inf, rows["finish_s"] - rows["arrival_s"])
        found.append(taken / alone)
    return np.concatenate(found) if found else np.zeros(0)


def _within(taken: Sequence[float] | Values, scale: float) -> float:
    # A deadline is met at the very moment; what is left of it after a division must not decide.
    return float(np.mean(np.asarray(taken) <= scale * (1 + 1e-9)))
