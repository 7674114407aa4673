"""The first screen of the report: the answer in plain sentences, computed from the runs, saying no more than they show.

"Better" and "worse" follow :mod:`ecoserve.sweep.statistics`; where a difference is not shown, the sentence says so.
"""

from __future__ import annotations

from typing import TypeVar

from ecoserve.pages import Answer, Tile, write, write_change
from ecoserve.sweep.reporting.choice import main_load, relaxed_load, stand_in
from ecoserve.sweep.reporting.metrics import NORMALIZED, PREEMPTIONS
from ecoserve.sweep.reporting.settings import Load, Setting, Settings, lengths_name
from ecoserve.sweep.reporting.statements import (
    accuracy_needed,
    capacity,
    care,
    interval,
    on_the_engine,
    predictor_statement,
    shown_predictor,
    tone_of,
    what_it_buys,
    where_not,
    which_setting,
    worth_of_prediction,
)
from ecoserve.sweep.statistics import Comparison
from ecoserve.sweep.summary import PredictorRow, Summary

_Item = TypeVar("_Item")


def answer(summary: Summary, settings: Settings) -> Answer:
    """Work out the first screen."""
    load = main_load(settings)
    ours = stand_in(settings, load) if load else None
    base = settings.baseline_of(load) if load else None
    comparison = ours.against(base, NORMALIZED) if ours and base else None
    relaxed = relaxed_load(settings, load, ours)
    result = Answer(_headline(summary, settings, ours, comparison, relaxed))
    if ours and base and comparison:
        result.tiles.append(_gain_tile(settings, ours, comparison))
        _add(result.tiles, _preemption_tile(settings, ours, base))
    _add(result.tiles, _relaxed_tile(relaxed))
    _add(result.tiles, _predictor_tile(summary.predictor, summary.meta.served_predictor))
    if ours and base and comparison and load:
        result.statements.append(what_it_buys(settings, load, ours, base, comparison))
        _add(result.statements, worth_of_prediction(settings, load, ours, base))
        _add(result.statements, accuracy_needed(settings, load, ours))
        _add(result.statements, which_setting(settings, load, ours))
        _add(result.statements, capacity(settings, load))
    _add(result.statements, predictor_statement(summary.predictor, summary.meta.served_predictor))
    _add(result.statements, on_the_engine(settings, load))
    _add(result.statements, where_not(settings, relaxed, ours))
    _add(result.statements, care(summary, settings))
    return result


def _headline(
    summary: Summary,
    settings: Settings,
    ours: Setting | None,
    comparison: Comparison | None,
    relaxed: tuple[Load, Comparison] | None,
) -> str:
    if not ours or not comparison:
        if summary.runs:
            return "There is no run of the baseline next to another setting yet, so nothing can be compared."
        return "Nothing has been run in this folder yet."
    told = {
        "predicted": "With predicted lengths",
        "noise": f"With {lengths_name(ours.lengths)}",
        "true": "With true lengths (an oracle: no predictor was run)",
        "none": "Without any prediction",
    }[ours.kind]
    who, base = ours.policy, settings.baseline_name
    size = write_change(abs(comparison.relative or 0.0), sign=False)
    side = "lower" if (comparison.relative or 0.0) < 0 else "higher"
    where = "where the KV cache is short, " if relaxed else ""
    line = {
        "better": f"{told}, {where}{who} cuts normalized latency by {size} against {base}",
        "worse": f"{told}, {where}{who} has {size} higher normalized latency than {base}",
        "no difference shown": f"{told}, {where}no difference in normalized latency is shown between {who} and {base}",
        "too few seeds": f"{told}, {where}{who} had {size} {side} normalized latency than {base} in the one seed that "
        "was run: a direction, not a result",
    }[comparison.verdict]
    if relaxed and relaxed[1].verdict != "too few seeds":
        there = relaxed[1]
        size = write_change(abs(there.relative or 0.0), sign=False)
        line += "; where it is plentiful, "
        line += {"better": f"it is {size} lower", "worse": f"it is {size} higher"}.get(
            there.verdict, "no gain is shown"
        )
    return line + "."


def _gain_tile(settings: Settings, ours: Setting, comparison: Comparison) -> Tile:
    return Tile(
        write_change(comparison.relative or 0.0),
        f"normalized latency against {settings.baseline_name}",
        f"{ours.load.title}; {interval(comparison)}",
        tone_of(comparison),
    )


def _preemption_tile(settings: Settings, ours: Setting, base: Setting) -> Tile | None:
    mine, theirs = ours.level(PREEMPTIONS), base.level(PREEMPTIONS)
    if not mine or not theirs or mine.mean == theirs.mean == 0:
        return None
    return Tile(
        f"{write(theirs.mean)} → {write(mine.mean)}",
        f"preemptions per run, {settings.baseline_name} → {ours.policy}",
        ours.load.title,
        "good" if mine.mean < theirs.mean else "bad" if mine.mean > theirs.mean else "quiet",
    )


def _relaxed_tile(relaxed: tuple[Load, Comparison] | None) -> Tile | None:
    if relaxed is None:
        return None
    load, comparison = relaxed
    value = write_change(comparison.relative or 0.0) if comparison.shown else "no difference"
    return Tile(
        value,
        "normalized latency where the KV cache is plentiful",
        f"{load.title}; {interval(comparison)}",
        tone_of(comparison),
    )


def _predictor_tile(predictors: dict[str, PredictorRow], served: str | None) -> Tile | None:
    name, row = shown_predictor(predictors, served)
    if row is None or row.mae_tokens is None:
        return None
    constant = predictors.get("constant-median")
    beneath = name
    if constant is not None and constant is not row and constant.mae_tokens is not None:
        beneath += f"; always guessing the median: {write(constant.mae_tokens)}"
    return Tile(write(row.mae_tokens, "tokens"), "mean error of the predictor", beneath)


def _add(items: list[_Item], item: _Item | None) -> None:
    if item is not None:
        items.append(item)
