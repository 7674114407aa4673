"""Tables of the report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from ecoserve.pages import NOTHING, Cell, Column, Table, Tone
from ecoserve.serving.core.policies import BOUND
from ecoserve.sweep.reporting.report_data import ReportData
from ecoserve.sweep.reporting.settings import MAIN, NORMALIZED, Load, Metric, Setting, lengths_name, write_comparison
from ecoserve.sweep.statistics import Comparison

_PREDICTOR_COLUMNS: Final = {
    "mae_tokens": Column("Mean error", "Mean distance between the predicted median and the true length.", "tokens"),
    "within_50": Column("Within 50 tokens", "Share of answers predicted to within 50 tokens.", "share"),
    "within_100": Column("Within 100 tokens", "Share of answers predicted to within 100 tokens.", "share"),
    "kendall_tau": Column("Kendall's τ", "1: always ranks answers by length rightly; 0: no better than chance."),
    "pinball_loss": Column("Pinball loss", "Error of the whole distribution, not only of its middle.", "tokens"),
    "coverage_80": Column(
        "Below the 80 % quantile", "Should be 80 %: how reliable the stated uncertainty is.", "share"
    ),
    "latency_p50_ms": Column("Time per request", "Median time to predict for one request on this machine.", "ms"),
}
_PREDICTOR_NAMES: Final = {
    "stacked": "Encoder and LightGBM together",
    "encoder": "Encoder (fine-tuned transformer)",
    "lightgbm": "LightGBM (gradient-boosted trees)",
    "constant-median": "Always the median (no model)",
}
#: A table of more rows is folded.
_MOST_ROWS: Final = 40


def predictor_table(report: ReportData) -> Table | None:
    predictors = report.summary.predictor
    ranked = sorted(predictors.items(), key=lambda item: (item[1].mae_tokens is None, item[1].mae_tokens or 0.0))
    if not ranked:
        return None
    shown = {key: c for key, c in _PREDICTOR_COLUMNS.items() if any(getattr(row, key) is not None for _, row in ranked)}
    return Table(
        "predictors",
        "Quality of each predictor on requests that it was not trained on.",
        ["Predictor", *shown.values(), Column("Requests", "Requests it was tested on.")],
        [[Cell(name, predictor_name(name)), *(getattr(row, key) for key in shown), row.rows] for name, row in ranked],
    )


def predictor_name(name: str) -> str:
    return _PREDICTOR_NAMES.get(name, name)


def engine_table(report: ReportData) -> Table | None:
    loads = [load for load in report.loads if load.engine != "virtual"]
    return settings_table("engine", "Scheduling on a real vLLM engine.", report, loads)


def virtual_table(report: ReportData) -> Table | None:
    loads = [load for load in report.loads if load.engine == "virtual"]
    table = settings_table("virtual", "Every setting of the virtual sweep.", report, loads)
    if table is not None:
        table.folded = len(table.rows) > _MOST_ROWS
    return table


def settings_table(name: str, caption: str, report: ReportData, loads: Sequence[Load]) -> Table | None:
    """Levels of every setting under some loads, and the difference to the baseline; None if there are no runs."""
    here = [s for load in loads for s in report.under(load)]
    if not here:
        return None
    metrics = [m for m in MAIN if any(s.level(m) for s in here)]
    note = f"{NORMALIZED.title} against {report.baseline_name}, paired by seed; below, the 95 % interval."
    against = Column("Against the baseline", note)
    far = [Column("Times the bound", f"{NORMALIZED.title} over that of the bound.")] * any(
        s.policy == BOUND for s in here
    )
    table = Table(name, caption, ["Setting", *metric_columns(metrics), against, *far, "Seeds"], group_title="Load")
    for setting in here:
        baseline = report.baseline_of(setting.load)
        if baseline is None or baseline is setting:
            difference = Cell("baseline" if baseline else NOTHING, tone="quiet")
        else:
            difference = comparison_cell(setting.against(baseline, NORMALIZED))
        seeds = len({run.seed for run in setting.runs})
        levels = [level_cell(setting, m) for m in metrics]
        distance = [Cell(report.times_the_bound(setting))] * len(far)
        table.add([setting.name, *levels, difference, *distance, seeds], setting.load.title)
    return table


def search_table(report: ReportData) -> Table | None:
    if not report.summary.searches:
        return None
    highest = Column("Highest rate (requests/s)", "The highest rate tried that meets the bound.")
    missed = Column("Missed from (requests/s)", "The lowest rate tried that misses it.")
    table = Table(
        "searches",
        "The highest arrival rate that meets the bound, by search; the next rate that was tried misses it.",
        ["Setting", highest, missed, "Bound", "State"],
    )
    for row in report.summary.searches:
        name = ", ".join(part for part in (row.policy, lengths_name(row.lengths), row.condition or "") if part)
        bounds = [f"at least {row.at_least:g}"] if row.at_least is not None else []
        bounds += [f"at most {row.at_most:g}"] if row.at_most is not None else []
        table.add([name, row.rate_rps, row.missed_from_rps, f"{row.metric} {' and '.join(bounds)}".strip(), row.state])
    return table


def failures_table(report: ReportData) -> Table | None:
    if not report.summary.failures:
        return None
    return Table(
        "failures",
        "Runs that failed.",
        ["Run", "Policy", "Lengths", "Rate (requests/s)", "Seed", "Error"],
        [
            [f.run, f.policy or NOTHING, f.lengths or NOTHING, f.rate_rps, f.seed, Cell(f.error, tone="bad")]
            for f in report.summary.failures
        ],
    )


def metric_columns(metrics: Sequence[Metric]) -> list[Column]:
    return [Column(m.heading, m.note) for m in metrics]


def level_cell(setting: Setting, metric: Metric) -> Cell:
    level = setting.level(metric)
    if level is None:
        return Cell(None)
    return Cell(level.mean * metric.column_scale, metric.column(level.mean), metric.column_spread(level))


def comparison_cell(comparison: Comparison | None) -> Cell:
    if comparison is None:
        return Cell(None)
    tones: dict[str, Tone] = {"better": "good", "worse": "bad"}
    center, interval = write_comparison(comparison)
    text = comparison.verdict if comparison.verdict == "no difference shown" else f"{center} · {comparison.verdict}"
    raw = comparison.difference if comparison.relative is None else comparison.relative
    return Cell(raw, text, interval, tones.get(comparison.verdict, "quiet"))
