"""The headline and the tiles of the first screen, computed from the runs; they say no more than is shown."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from ecoserve.pages import Tile, Tone, write, write_change
from ecoserve.sweep.reporting.metrics import PREEMPTIONS
from ecoserve.sweep.reporting.report_data import ReportData
from ecoserve.sweep.reporting.settings import lengths_name
from ecoserve.sweep.reporting.statements import interval, shown_predictor, tone_of


def headline(report: ReportData) -> str:
    """The answer in one sentence."""
    ours, comparison, relaxed = report.ours, report.comparison, report.relaxed
    if not ours or not comparison:
        if report.summary.runs:
            return "There is no run of the baseline next to another setting yet, so nothing can be compared."
        return "Nothing has been run in this folder yet."
    lengths = {
        "predicted": "With predicted lengths",
        "noise": f"With {lengths_name(ours.lengths)}",
        "true": "With true lengths (an oracle: no predictor was run)",
        "none": "Without any prediction",
    }[ours.kind]
    head = f"{lengths}, where the KV cache is short," if relaxed else f"{lengths},"
    policy, base = ours.policy, report.baseline_name
    size = write_change(abs(comparison.relative or 0.0), sign=False)
    side = "lower" if (comparison.relative or 0.0) < 0 else "higher"
    line = {
        "better": f"{head} {policy} cuts normalized latency by {size} against {base}",
        "worse": f"{head} {policy} has {size} higher normalized latency than {base}",
        "no difference shown": f"{head} no difference in normalized latency is shown between {policy} and {base}",
        "too few seeds": f"{head} {policy} had {size} {side} normalized latency than {base} in the one seed that "
        "was run: a direction, not a result",
    }[comparison.verdict]
    if relaxed and relaxed[1].verdict != "too few seeds":
        size = write_change(abs(relaxed[1].relative or 0.0), sign=False)
        words = {"better": f"it is {size} lower", "worse": f"it is {size} higher"}
        line += f"; where it is plentiful, {words.get(relaxed[1].verdict, 'no gain is shown')}"
    return line + "."


def _gain(report: ReportData) -> Tile | None:
    load, comparison = report.load, report.comparison
    if not load or not comparison:
        return None
    label = f"normalized latency against {report.baseline_name}"
    beneath = f"{load.title}; {interval(comparison)}"
    return Tile(write_change(comparison.relative or 0.0), label, beneath, tone_of(comparison))


def _preemptions(report: ReportData) -> Tile | None:
    if not report.ours or not report.base or not report.comparison:
        return None
    mine, theirs = report.ours.mean(PREEMPTIONS), report.base.mean(PREEMPTIONS)
    if mine is None or theirs is None or mine == theirs == 0:
        return None
    label = f"preemptions per run, {report.baseline_name} → {report.ours.policy}"
    tone: Tone = "good" if mine < theirs else "bad" if mine > theirs else "quiet"
    return Tile(f"{write(theirs)} → {write(mine)}", label, report.ours.load.title, tone)


def _relaxed(report: ReportData) -> Tile | None:
    if report.relaxed is None:
        return None
    load, comparison = report.relaxed
    value = write_change(comparison.relative or 0.0) if comparison.shown else "no difference"
    beneath = f"{load.title}; {interval(comparison)}"
    return Tile(value, "normalized latency where the KV cache is plentiful", beneath, tone_of(comparison))


def _predictor(report: ReportData) -> Tile | None:
    name, row = shown_predictor(report)
    if row is None or row.mae_tokens is None:
        return None
    constant = report.summary.predictor.get("constant-median")
    if constant is not None and constant is not row and constant.mae_tokens is not None:
        name += f"; always guessing the median: {write(constant.mae_tokens)}"
    return Tile(write(row.mae_tokens, "tokens"), "mean error of the predictor", name)


#: The tiles in the order of the page.
TILES: Final[tuple[Callable[[ReportData], Tile | None], ...]] = (_gain, _preemptions, _relaxed, _predictor)
