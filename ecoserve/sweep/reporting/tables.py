"""Tables of the report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from ecoserve.pages import NOTHING, Cell, Column, Table, Tone, write
from ecoserve.sweep.reporting.metrics import MAIN, NORMALIZED, Metric, write_comparison
from ecoserve.sweep.reporting.settings import Load, Setting, Settings, lengths_name
from ecoserve.sweep.statistics import Comparison
from ecoserve.sweep.summary import PredictorRow, SearchRow

#: Keys of a predictor: title, unit, and the sentence that explains it.
PREDICTOR_COLUMNS: Final = (
    ("mae_tokens", "Mean error", "tokens", "Mean distance between the predicted median and the true length."),
    ("within_50", "Within 50 tokens", "share", "Share of answers predicted to within 50 tokens."),
    ("within_100", "Within 100 tokens", "share", "Share of answers predicted to within 100 tokens."),
    ("kendall_tau", "Kendall's τ", "", "1: always ranks answers by length rightly; 0: no better than chance."),
    ("pinball_loss", "Pinball loss", "tokens", "Error of the whole distribution, not only of its middle."),
    ("coverage_80", "Below the 80 % quantile", "share", "Should be 80 %: how far stated uncertainty can be trusted."),
    ("latency_p50_ms", "Time per request", "ms", "Median time to predict for one request on this machine."),
)


def predictor_table(predictors: dict[str, PredictorRow]) -> Table | None:
    """Quality of the predictors, best first; None if there are none."""
    if not predictors:
        return None
    ranked = sorted(predictors.items(), key=lambda item: (item[1].mae_tokens is None, item[1].mae_tokens or 0.0))
    shown = [c for c in PREDICTOR_COLUMNS if any(getattr(row, c[0]) is not None for _, row in ranked)]
    table = Table(
        "predictors",
        "How well each predictor knows an answer's length before it is written, on requests it was not trained on.",
        [Column("Predictor", number=False)]
        + [Column(title, note) for _, title, _, note in shown]
        + [Column("Requests", "Requests it was tested on.")],
    )
    for name, row in ranked:
        cells = [Cell(predictor_name(name), raw=name)]
        for key, _, unit, _ in shown:
            value = getattr(row, key)
            cells.append(Cell(NOTHING if value is None else write(value, unit), raw=value))
        table.rows.append([*cells, Cell(write(row.rows), raw=row.rows)])
    return table


def predictor_name(name: str) -> str:
    """A predictor's name for people."""
    return {
        "stacked": "Encoder and LightGBM together",
        "encoder": "Encoder (fine-tuned transformer)",
        "lightgbm": "LightGBM (gradient-boosted trees)",
        "constant-median": "Always the median (no model)",
    }.get(name, name)


def settings_table(name: str, caption: str, settings: Settings, loads: Sequence[Load]) -> Table | None:
    """Levels of every setting under some loads, and the difference to the baseline; None if there are no runs."""
    here = [s for load in loads for s in settings.under(load)]
    if not here:
        return None
    metrics = [m for m in MAIN if any(s.level(m) for s in here)]
    table = Table(
        name,
        caption,
        [
            Column("Setting", number=False),
            *(Column(m.heading, m.note) for m in metrics),
            Column(
                "Against the baseline",
                f"{NORMALIZED.title} against {settings.baseline_name}, paired by seed; beneath, the 95 % interval.",
            ),
            Column("Seeds"),
        ],
        group_title="Load",
    )
    for setting in here:
        baseline = settings.baseline_of(setting.load)
        cells = [Cell(setting.name)]
        table.groups.append(setting.load.title)
        cells += [level_cell(setting, metric) for metric in metrics]
        if baseline is None or baseline is setting:
            cells.append(Cell("baseline" if baseline else NOTHING, tone="quiet"))
        else:
            cells.append(comparison_cell(setting.against(baseline, NORMALIZED)))
        seeds = len({run.seed for run in setting.runs})
        table.rows.append([*cells, Cell(str(seeds), raw=seeds)])
    return table


def search_table(searches: Sequence[SearchRow]) -> Table | None:
    """What the searches for the highest rate came to; None if there were none."""
    if not searches:
        return None
    table = Table(
        "searches",
        "The highest arrival rate that meets the bound, by search; the next rate that was tried misses it.",
        [
            Column("Setting", number=False),
            Column("Highest rate (requests/s)", "The highest rate tried that meets the bound."),
            Column("Missed from (requests/s)", "The lowest rate tried that misses it."),
            Column("Bound", number=False),
            Column("State", number=False),
        ],
    )
    for row in searches:
        name = ", ".join(part for part in (row.policy, lengths_name(row.lengths), row.condition or "") if part)
        bounds = [f"at least {row.at_least:g}" if row.at_least is not None else ""]
        bounds += [f"at most {row.at_most:g}" if row.at_most is not None else ""]
        rates = [Cell(NOTHING) if v is None else Cell(write(v), raw=v) for v in (row.rate_rps, row.missed_from_rps)]
        bound = f"{row.metric} {' and '.join(b for b in bounds if b)}".strip()
        table.rows.append([Cell(name), *rates, Cell(bound), Cell(row.state)])
    return table


def level_cell(setting: Setting, metric: Metric) -> Cell:
    """A mean, with the range over seeds beneath."""
    level = setting.level(metric)
    if level is None:
        return Cell(NOTHING)
    return Cell(metric.column(level.mean), metric.column_spread(level), level.mean * metric.column_scale)


def comparison_cell(comparison: Comparison | None) -> Cell:
    """A paired difference and what may be said about it."""
    if comparison is None:
        return Cell(NOTHING)
    tone: Tone = {"better": "good", "worse": "bad"}.get(comparison.verdict, "quiet")  # type: ignore[assignment]
    raw = comparison.difference if comparison.relative is None else comparison.relative
    center, interval = write_comparison(comparison)
    text = comparison.verdict if comparison.verdict == "no difference shown" else f"{center} · {comparison.verdict}"
    return Cell(text, interval, raw, tone)
