"""How far what was told can be trusted: calibration and error of the lengths, on the requests that were served."""

from __future__ import annotations

from typing import Final

import numpy as np

from ecoserve.pages import NOTHING, Cell, Column, Figure, LegendEntry, Panel, Table, plain, spec, write
from ecoserve.sweep.plan import LENGTH_BLIND
from ecoserve.sweep.reporting.choice import main_load
from ecoserve.sweep.reporting.details import Details
from ecoserve.sweep.reporting.settings import Setting, Settings, lengths_name

_LEVELS: Final = tuple(round(0.05 * i, 2) for i in range(21))
_ERRORS: Final = (0, 5, 10, 20, 30, 50, 75, 100, 150, 200, 300, 400, 500, 750, 1000)
_DASHES: Final = ("solid", "dash", "dot", "dashdot")


def calibration_figure(settings: Settings, details: Details) -> Figure | None:
    """What was told against what came, one line per kind of lengths; None where nothing but the truth was told."""
    load = main_load(settings)
    if load is None:
        return None
    found: dict[str, Setting] = {}
    for s in settings.under(load):
        wrong = s.policy not in LENGTH_BLIND and s.kind in ("noise", "predicted")
        if wrong and any(details.requests(run) is not None for run in s.runs):
            found.setdefault(s.lengths, s)
    if not found:
        return None
    table = Table(
        "calibration",
        "What was told against what came, by kind of lengths; all seeds together.",
        [
            Column("Lengths", number=False),
            Column("Mean error (tokens)", "Mean distance between the told median and the true length."),
            Column("Kendall’s τ", "1: always in the right order; 0: chance."),
            *(Column(f"Within {e} tokens") for e in (50, 100, 200)),
            *(Column(f"Below its {q:.0%} quantile", "Should be that share.") for q in (0.5, 0.8, 0.9)),
        ],
    )
    curves, errors, legend = [], [], []
    spoken, spoken_errors = [], []
    for number, (lengths, s) in enumerate(found.items()):
        rank, told, true = (details.together(s.runs, name) for name in ("pit", "predicted_tokens", "output_tokens"))
        known = np.isfinite(told) & np.isfinite(true) & (true > 0)
        error = np.abs(told - true)[known]
        rank = rank[np.isfinite(rank)]
        if not len(error):
            continue
        name = lengths_name(lengths)
        name = name[:1].upper() + name[1:]
        look = {"slot": 1 + number % 6}
        line = {"width": 2, "dash": _DASHES[number // 6 % len(_DASHES)]}
        legend.append(LegendEntry(name, look["slot"], str(line["dash"])))
        covered = [float(np.mean(rank <= q)) for q in _LEVELS] if len(rank) and np.ptp(rank) > 0 else []
        if covered:
            hover = f"{plain(name)}<br>told %{{x:.0%}}, came %{{y:.0%}}<extra></extra>"
            curves.append(
                {"x": list(_LEVELS), "y": [round(c, 4) for c in covered], "mode": "lines", "line": line,
                 "hovertemplate": hover, "meta": look}
            )  # fmt: skip
            spoken.append(f"{name}: {write(float(np.mean(rank <= 0.9)), 'share')} below the 90 % quantile")
        within = [float(np.mean(error <= e)) for e in _ERRORS]
        hover = f"{plain(name)}<br>within %{{x}} tokens: %{{y:.0%}}<extra></extra>"
        errors.append(
            {"x": list(_ERRORS), "y": [round(w, 4) for w in within], "mode": "lines", "line": line,
             "hovertemplate": hover, "meta": look}
        )  # fmt: skip
        spoken_errors.append(f"{name}: {write(float(np.mean(error <= 100)), 'share')} within 100 tokens")
        tau = s.level("prediction_kendall_tau")
        table.rows.append(
            [
                Cell(name),
                Cell(write(float(error.mean())), raw=float(error.mean())),
                Cell(NOTHING) if tau is None else Cell(write(tau.mean), raw=tau.mean),
                *(_share(float(np.mean(error <= e))) for e in (50, 100, 200)),
                *(_share(float(np.mean(rank <= q))) if covered else Cell(NOTHING) for q in (0.5, 0.8, 0.9)),
            ]
        )
    if not errors:
        return None
    panels = []
    if curves:
        curves.insert(
            0,
            {"x": [0, 1], "y": [0, 1], "mode": "lines", "line": {"width": 1, "dash": "dash"}, "hoverinfo": "skip",
             "meta": {"slot": 0}},
        )  # fmt: skip
        layout = {
            "xaxis": {"title": {"text": "quantile that was told"}, "tickformat": ".0%", "range": [0, 1]},
            "yaxis": {"title": {"text": "share of answers below it"}, "tickformat": ".0%", "range": [0, 1]},
            "height": 380,
        }
        alt = f"Calibration: share of answers below each told quantile; the diagonal is perfect. {'; '.join(spoken)}."
        panels.append(Panel("calibration-0", "Calibration: on the dashed line is right", spec(curves, layout), alt))
    layout = {
        "xaxis": {"title": {"text": "error of the told median, in tokens, at most"}, "range": [0, 500]},
        "yaxis": {"title": {"text": "share of answers"}, "tickformat": ".0%", "range": [0, 1.02]},
        "height": 380,
    }
    alt = f"Share of answers whose told median was within so many tokens. {'; '.join(spoken_errors)}."
    panels.append(Panel("calibration-1", "Error: up and to the left is better", spec(errors, layout), alt))
    return Figure(
        "calibration",
        "What was told, against what came",
        f"Over the requests served at {load.title}, all seeds. A scheduler that reserves or pools by quantiles relies "
        "on the left plot, one that orders by length on Kendall’s τ in the table.",
        panels,
        legend,
        table,
    )


def _share(value: float) -> Cell:
    return Cell(write(value, "share"), raw=value)
