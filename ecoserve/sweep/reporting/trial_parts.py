"""What the report of ``ecoserve try`` says: its sentence, and what was measured beside the runs.

Latency is judged at every rate, throughput at the highest, where arrivals do not bound it; all of them together are
right at 95 % (Bonferroni). Differences are ratios, paired by repeat. Queues make latency vary from run to run by
chance; throughput under overload hardly varies: it finds a step that takes 5 % longer.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from ecoserve.pages import Cell, Column, Statement, Table, Tone, write_change
from ecoserve.serving.core.policies import ORDER, STOCK_POLICIES
from ecoserve.sweep.reporting.report_data import ReportData
from ecoserve.sweep.reporting.settings import (
    JCT,
    THROUGHPUT,
    TPOT,
    TTFT,
    TTFT_P99,
    Metric,
    Setting,
    inner,
    write_comparison,
)
from ecoserve.sweep.reporting.tables import comparison_cell, level_cell
from ecoserve.sweep.statistics import CONFIDENCE, Comparison, paired_ratio

_METRICS: Final = {m.key: m for m in (TPOT, TTFT, JCT, THROUGHPUT)}
_TABLE: Final = (JCT, TTFT_P99, TPOT, THROUGHPUT)
#: Widest interval around no difference that says that there is little.
_WIDE: Final = 0.2
_NAMES: Final = {"vllm": "vLLM’s default", "vllm-priority": "vLLM with the same lengths as priorities"}


def sentence(report: ReportData, baseline: str = "vllm") -> str:
    """What ours buys against ``baseline``, where it does not, and how sure that is; "" if there is no such row."""
    found = _judged(report, baseline)
    if not found:
        return "Nothing was run to the end: nothing can be said." if baseline == "vllm" else ""
    repeats = min(j.comparison.n for j in found)
    name = f"Against {_NAMES[baseline]}, {found[0].ours}"
    if repeats < 2:
        return f"{name}: one repeat was finished, too few to say anything."
    parts = []
    for words, verdict in (("buys", "better"), ("costs", "worse")):
        said = [
            f"{center} {j.where} ({interval})"
            for j in found
            if j.comparison.verdict == verdict
            for center, interval in [write_comparison(j.comparison)]
        ]
        if said:
            parts.append(f"{words} {', '.join(said)}")
    same = [f"{j.where} ({write_comparison(j.comparison)[1]})" for j in found if not j.comparison.shown]
    if same:
        parts.append(f"no difference is shown in {', '.join(same)}")
    wide = any(not c.shown and (c.high or 0) - (c.low or 0) > _WIDE for c in (j.comparison for j in found))
    more = " Wide intervals say little: more --minutes narrow them." if wide else ""
    return f"{name}: {'; '.join(parts)}. All of this at 95 %, over {repeats} paired repeats.{more}"


class _Judged(NamedTuple):
    ours: str
    #: ``JCT at half capacity``
    where: str
    comparison: Comparison


def _judged(report: ReportData, baseline: str) -> list[_Judged]:
    loads = sorted(report.loads, key=lambda x: -(x.rate_rps or 0.0))
    pairs = [(x, JCT) for x in loads] + [(x, THROUGHPUT) for x in loads[:1]]
    confidence = 1 - (1 - CONFIDENCE) / max(1, len(pairs))
    out = []
    for load, metric in pairs:
        here = report.under(load)
        base = next((s for s in here if s.policy == baseline), None)
        ours = next((s for s in here if s.policy == ORDER or s.policy not in STOCK_POLICIES), None)
        comparison = _ratio(ours, base, metric, confidence) if ours and base else None
        if ours and comparison:
            name = load.condition or ""
            where = f"{inner(metric.title)} {'' if name.startswith('at ') else 'at '}{name}"
            out.append(_Judged(ours.name, where, comparison))
    return out


def _ratio(ours: Setting, base: Setting, metric: Metric, confidence: float = CONFIDENCE) -> Comparison | None:
    return paired_ratio(ours.values(metric.key), base.values(metric.key), metric.better or "lower", confidence)


def against_priority(report: ReportData) -> Statement | None:
    """The sentence against vLLM's own scheduler by the same lengths."""
    text = sentence(report, "vllm-priority")
    verdicts = {j.comparison.verdict for j in _judged(report, "vllm-priority")}
    tone: Tone = "bad" if "worse" in verdicts else "good" if "better" in verdicts else "quiet"
    return Statement("Against vLLM by priority", text, tone) if text else None


def what_ran(report: ReportData) -> Statement | None:
    """Level, model runner, scheduler mode, and how far it came."""
    trial, meta = report.summary.trial, report.summary.meta
    if trial is None:
        return None
    ended = {
        "done": "",
        "time": " Time was up before all repeats: give more --minutes.",
        "interrupted": " It was interrupted.",
    }[trial.ended]
    ran = f"model runner {meta.model_runner}; scheduling {meta.scheduler_mode}"
    repeats = f"{trial.repeats} repeats of every row at every rate, in an order drawn from seed {trial.order_seed}."
    text = f"Level {trial.level} ({trial.level_reason}); {ran}. {repeats}{ended}"
    return Statement("What ran", text, "quiet" if trial.ended == "done" else "bad")


def rows_table(report: ReportData) -> Table | None:
    """Every row at every rate, and its difference from vLLM's default in latency and throughput."""
    if not report.settings:
        return None
    columns = [c for m in _TABLE for c in (Column(m.heading, m.note), Column(f"{m.title} against the default"))]
    caption = "Means over repeats, the smaller line is their range; differences are paired, with their 95 % intervals."
    table = Table("rows", caption, ["Setting", *columns, "Preemptions", "Repeats"], group_title="Load")
    for load in sorted(report.loads, key=lambda x: x.rate_rps or 0.0):
        base = report.baseline_of(load)
        for s in report.under(load):
            cells: list[Cell] = []
            for metric in _TABLE:
                against = Cell("baseline", tone="quiet")
                if base is not None and base is not s:
                    against = comparison_cell(_ratio(s, base, metric))
                cells += [level_cell(s, metric), against]
            table.add([s.name, *cells, s.mean("preemptions"), len(s.runs)], load.title)
    return table


def steps_table(report: ReportData) -> Table | None:
    trial = report.summary.trial
    if trial is None or not trial.steps:
        return None
    columns = [Column("Mean context", unit="tokens"), "Measured (ms)", "Modelled (ms)", "Error of the model"]
    rows = [
        [f"{s.batch} decodes", s.context_tokens, s.measured_ms, s.modelled_ms, _error(s.measured_ms, s.modelled_ms)]
        for s in trial.steps
    ]
    return Table("steps", "A step of decodes alone, by batch and context.", ["Batch", *columns], rows)


def modelled_table(report: ReportData) -> Table | None:
    trial = report.summary.trial
    if trial is None or not trial.modelled:
        return None
    rows = []
    for f in trial.modelled:
        m = _METRICS[f.metric]
        cells = [Cell(v * m.column_scale, m.column(v)) for v in (f.measured, f.modelled)]
        rows.append([f.policy, m.heading, *cells, _error(f.measured, f.modelled)])
    caption = "The first repeat at capacity, and the same load in virtual time on the modelled GPU."
    return Table("modelled", caption, ["Policy", "Metric", "Measured", "Modelled", "Error of the model"], rows)


def _error(measured: float, modelled: float) -> Cell:
    return Cell(modelled / measured - 1, write_change(modelled / measured - 1))


def predictor_times_table(report: ReportData) -> Table | None:
    trial = report.summary.trial
    if trial is None or not trial.predictor_times:
        return None
    columns = ["Predictor", "Device", Column("One prompt (ms)"), Column("Prompts per second", "In batches.")]
    rows = [[t.name, t.device, t.one_prompt_ms, t.prompts_per_s] for t in trial.predictor_times]
    return Table("predictor-times", "Time of predictions on this machine; no run waits for it.", columns, rows)
