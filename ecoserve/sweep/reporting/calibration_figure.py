"""Calibration and error of the lengths that the schedulers used, on the requests that were served."""

from __future__ import annotations

from typing import Final

import numpy as np

from ecoserve.pages import Column, Figure, Table, plain, plots, write
from ecoserve.sweep.reporting.report_data import ReportData
from ecoserve.sweep.reporting.settings import Setting, lengths_name

_LEVELS: Final = tuple(round(0.05 * i, 2) for i in range(21))
_ERRORS: Final = (0, 5, 10, 20, 30, 50, 75, 100, 150, 200, 300, 400, 500, 750, 1000)
_WITHIN: Final = (50, 100, 200)
_BELOW: Final = (0.5, 0.8, 0.9)
_DASHES: Final = ("solid", "dash", "dot", "dashdot")


def calibration_figure(report: ReportData) -> Figure | None:
    """Predicted against true lengths, one line per kind of lengths; None where all lengths were true or unused."""
    details, load = report.details, report.load
    found: dict[str, Setting] = {}
    for s in report.under(load) if load else []:
        if not s.blind and s.kind in ("noise", "predicted") and any(details.requests(run) for run in s.runs):
            found.setdefault(s.lengths, s)
    if load is None or not found:
        return None
    table = Table(
        "calibration",
        "Predicted against true lengths, by kind of lengths; all seeds together.",
        [
            "Lengths",
            Column("Mean error (tokens)", "Mean distance between the predicted median and the true length."),
            Column("Kendall’s τ", "1: always in the right order; 0: chance."),
            *(Column(f"Within {e} tokens", unit="share") for e in _WITHIN),
            *(Column(f"Below its {q:.0%} quantile", "Should be that share.", "share") for q in _BELOW),
        ],
    )
    curves = [plots.line([0, 1], [0, 1], 0, dash="dash", width=1)]
    errors: list[plots.Trace] = []
    spoken, spoken_errors = [], []
    for number, (lengths, s) in enumerate(found.items()):
        rank, predicted, true = (details.together(s.runs, key) for key in ("pit", "predicted_tokens", "output_tokens"))
        error = np.abs(predicted - true)[np.isfinite(predicted) & np.isfinite(true) & (true > 0)]
        rank = rank[np.isfinite(rank)]
        if not len(error):
            continue
        name = lengths_name(lengths)
        name = name[:1].upper() + name[1:]
        slot, dash = 1 + number % 6, _DASHES[number // 6 % len(_DASHES)]
        calibrated = bool(len(rank)) and float(np.ptp(rank)) > 0
        if calibrated:
            hover = f"{plain(name)}<br>predicted %{{x:.0%}}, true %{{y:.0%}}"
            covered = [round(_share(rank, q), 4) for q in _LEVELS]
            curves.append(plots.line(_LEVELS, covered, slot, name, hover=hover, dash=dash, width=2))
            spoken.append(f"{name}: {write(_share(rank, 0.9), 'share')} below the 90 % quantile")
        hover = f"{plain(name)}<br>within %{{x}} tokens: %{{y:.0%}}"
        within = [round(_share(error, e), 4) for e in _ERRORS]
        errors.append(plots.line(_ERRORS, within, slot, name, hover=hover, dash=dash, width=2))
        spoken_errors.append(f"{name}: {write(_share(error, 100), 'share')} within 100 tokens")
        below = [_share(rank, q) if calibrated else None for q in _BELOW]
        tau = s.mean("prediction_kendall_tau")
        table.add([name, float(error.mean()), tau, *(_share(error, e) for e in _WITHIN), *below])
    if not errors:
        return None
    alt = f"Calibration: share of answers below each predicted quantile; the diagonal is perfect. {'; '.join(spoken)}."
    x = plots.axis("predicted quantile", share=True, range=[0, 1])
    y = plots.axis("share of answers below it", share=True, range=[0, 1])
    calibration = plots.panel(curves, alt, "Calibration: the dashed line is perfect", x=x, y=y, height=380)
    alt = f"Share of answers by error of the predicted median. {'; '.join(spoken_errors)}."
    x = plots.axis("error of the predicted median, in tokens, at most", range=[0, 500])
    y = plots.axis("share of answers", share=True, range=[0, 1.02])
    error_plot = plots.panel(errors, alt, "Error: up and to the left is better", x=x, y=y, height=380)
    return Figure(
        "calibration",
        "Predicted against true lengths",
        f"Over the requests served at {load.title}, all seeds. A scheduler that reserves or pools by quantiles relies "
        "on the left plot, one that orders by length on Kendall’s τ in the table.",
        [calibration, error_plot] if spoken else [error_plot],
        table,
    )


def _share(values: np.ndarray[tuple[int], np.dtype[np.float64]], limit: float) -> float:
    return float(np.mean(values <= limit))
