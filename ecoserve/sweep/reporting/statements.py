"""What the first screen says, one function each: headline, tiles and sentences, computed from the runs, or None."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from ecoserve.pages import Statement, Tile, Tone, write, write_change
from ecoserve.sweep.reporting.report_data import ReportData, latency
from ecoserve.sweep.reporting.settings import (
    JCT,
    NORMALIZED,
    PREEMPTIONS,
    RECOMPUTED,
    SLO,
    THROUGHPUT,
    Load,
    Setting,
    inner,
    lengths_name,
)
from ecoserve.sweep.reporting.tables import predictor_name
from ecoserve.sweep.statistics import Comparison
from ecoserve.sweep.summary import PredictorRow

#: This share of the requests must meet their SLO where a setting is said to carry a rate.
_NEARLY_ALL: Final = 0.9


def what_it_buys(report: ReportData) -> Statement | None:
    """Normalized latency, JCT and throughput of the main setting against the baseline."""
    load, ours, base, comparison = report.load, report.ours, report.base, report.comparison
    if not (load and ours and base and comparison):
        return None
    where = "In virtual time" if load.engine == "virtual" else "On the engine"
    text = (
        f"{where}, at {load.title}{_demand(report, load, ' (', ')')}, {_with_lengths(ours)} takes "
        f"{NORMALIZED.write(comparison.ours)} against {NORMALIZED.write(comparison.theirs)} for "
        f"{report.baseline_name}: {_change_words(comparison)}."
    )
    others = _beside(ours, base)
    return Statement("What it buys", text + (f" Also: {', '.join(others)}." if others else ""), tone_of(comparison))


def worth_of_prediction(report: ReportData) -> Statement | None:
    """The main setting against the same policy with true lengths and with none."""
    load, ours, base = report.load, report.ours, report.base
    if not (load and ours and base):
        return None
    perfect, blind = (report.same_policy(load, ours.policy, kind) for kind in ("true", "none"))
    parts = []
    if perfect and perfect is not ours:
        best, mine = perfect.against(base, NORMALIZED), ours.against(base, NORMALIZED)
        if best and mine and best.verdict == "better" and best.difference < 0:
            share = write_change(max(0.0, mine.difference / best.difference), sign=False)
            lengths = {"predicted": "predicted lengths", "noise": "these rough lengths"}
            parts.append(
                f"Perfect lengths would bring {write_change(best.relative or 0.0)}; "
                f"{lengths.get(ours.kind, 'its own estimates')} bring {share} of that gain"
            )
        elif best:
            parts.append(f"Even perfect lengths: {_change_words(best)} against {report.baseline_name}")
    tone: Tone = ""
    gain = ours.against(blind, NORMALIZED) if blind and blind is not ours else None
    if gain:
        tone = tone_of(gain)
        parts.append(f"against {ours.policy} without any prediction, normalized latency: {_change_words(gain)}")
    return Statement("What the prediction is worth", _sentence(parts), tone) if parts else None


def accuracy_needed(report: ReportData) -> Statement | None:
    """The accuracies from which on lengths are shown to help, against the same policy without any."""
    load, ours = report.load, report.ours
    if not (load and ours):
        return None
    blind = report.same_policy(load, ours.policy, "none")
    here = [s for s in report.tuned(report.under(load)) if s.policy == ours.policy and s.kind in ("noise", "predicted")]
    taus = [(tau, s) for s in here if (tau := s.mean("prediction_kendall_tau")) is not None]
    helps, fails = list[str](), list[str]()
    for tau, s in sorted(taus, key=lambda item: item[0]):
        gain = s.against(blind, NORMALIZED) if blind else None
        if gain and gain.relative is not None:
            words = f"{lengths_name(s.lengths)} (τ {write(tau)}): {write_change(gain.relative)}"
            (helps if gain.verdict == "better" else fails).append(words)
    if len(taus) < 2 or not (helps or fails):
        return None
    text = f"At {load.title}, normalized latency against {ours.policy} without any prediction, worst order first: "
    text += "; ".join(helps) if helps else "no accuracy that was run is shown to help"
    text += f". Not shown to help: {'; '.join(fails)}" if fails else ""
    return Statement("How good it must be", text + ".", "good" if helps and not fails else "")


def which_setting(report: ReportData) -> Statement | None:
    """The fastest setting that a user can run, and the loads where another is shown to be faster."""
    load = report.load
    here = sorted(_runnable(report, load), key=latency) if load else []
    if load is None or len(here) < 2:
        return None
    first, second = here[:2]
    comparison = first.against(second, NORMALIZED)
    if comparison is None:
        return None
    ranged = NORMALIZED.write_spread(first.level(NORMALIZED))
    text = f"Lowest normalized latency at {load.title}: {first.name}, {NORMALIZED.write(comparison.ours)}"
    text += f" (seeds: {ranged})" if ranged else ""
    if comparison.verdict == "better":
        text += f", {write_change(comparison.relative or 0.0)} against the next, {second.name}."
    else:
        why = "" if comparison.verdict == "no difference shown" else f" ({comparison.verdict})"
        text += f"; no difference to the next, {second.name}, is shown{why}."
    beaten = []
    others = [x for x in report.loads if x != load and x.engine == load.engine]
    for other in others:
        there = _runnable(report, other)
        same = next((s for s in there if s.choice == first.choice), None)
        best = min(there, key=latency, default=None)
        against = best.against(same, NORMALIZED) if best and same and best is not same else None
        if best and against and against.verdict == "better":
            beaten.append(f"at {other.title}, {best.name} is {_change_words(against)}")
    if beaten:
        text += f" Not everywhere: {'; '.join(beaten)}."
    elif others:
        text += " At no other load that was run is another setting shown to be better than it."
    return Statement("Which setting to run", text)


def _runnable(report: ReportData, load: Load) -> list[Setting]:
    """The settings that a user could run: no oracles, and of controlled errors only those that stand in."""
    ours = report.ours.lengths if report.ours else ""
    here = [s for s in report.under(load) if s.kind not in ("true", "noise") or s.lengths == ours]
    return [s for s in here if s.kind != "true" and s.level(NORMALIZED)]


def capacity(report: ReportData) -> Statement | None:
    """The highest rate that was run at which nearly all requests meet the SLO, for each setting that is shown."""
    lines = [(one, [s for s in report.along(one) if s.level(SLO)]) for one in report.cast]
    if not lines or any(len(line) < 2 for _, line in lines):
        return None
    parts = []
    for one, line in lines:
        kept = [s for s in line if (s.mean(SLO) or 0.0) >= _NEARLY_ALL]
        text = f"{one.name}: " + (f"up to {kept[-1].load.rate_title}" if kept else "at none of the rates")
        here = one.mean(SLO)
        parts.append(text if here is None else f"{text} ({SLO.write(here)} at {one.load.rate_title})")
    head = f"At least {write(_NEARLY_ALL, 'share')} of the requests meet their SLO, of the rates that were run, with "
    return Statement("Which rates meet the SLO", head + "; ".join(parts) + ".")


def predictor_quality(report: ReportData) -> Statement | None:
    """The error of the predictor on unseen requests, against always the median."""
    name, row = shown_predictor(report)
    if row is None or row.mae_tokens is None:
        return None
    error = write(row.mae_tokens, "tokens")
    text = f"{name} is off by {error} on average over {write(row.rows)} requests it had not seen"
    if row.within_50 is not None:
        text += f", and within 50 tokens for {write_change(row.within_50, sign=False)} of them"
    text += f" (Kendall’s τ {write(row.kendall_tau)})" if row.kendall_tau is not None else ""
    constant = report.summary.predictor.get("constant-median")
    tone: Tone = ""
    if constant is not None and constant is not row and constant.mae_tokens:
        change = row.mae_tokens / constant.mae_tokens - 1
        text += f". Always guessing the median is off by {write(constant.mae_tokens, 'tokens')}: {write_change(change)}"
        tone = "good" if change < 0 else "bad"
    return Statement("How good the predictor is", text + ".", tone)


def on_the_engine(report: ReportData) -> Statement | None:
    pieces = []
    tone: Tone = ""
    for load in (x for x in report.loads if x.engine != "virtual" and x != report.load):
        base, ours = report.baseline_of(load), report.stand_in(load)
        comparison = ours.against(base, NORMALIZED) if base and ours else None
        if not base or not ours or not comparison:
            continue
        tone = tone or tone_of(comparison)
        piece = [f"at {load.title}, {_with_lengths(ours)}: normalized latency {_change_words(comparison)}"]
        for metric in (PREEMPTIONS, RECOMPUTED):
            mine, theirs = ours.mean(metric), base.mean(metric)
            if mine is not None and theirs is not None:
                piece.append(f"{inner(metric.title)} {metric.write(theirs)} → {metric.write(mine)}")
        pieces.append(", ".join([*piece, *_beside(ours, base)]))
    return Statement("On a real vLLM engine", _sentence(pieces), tone) if pieces else None


def where_not(report: ReportData) -> Statement | None:
    if report.ours is None:
        return None
    relaxed = report.relaxed
    parts = []
    if relaxed:
        load, comparison = relaxed
        there = f"{load.title}{_demand(report, load, ', ', '')}"
        parts.append(f"where the KV cache is plentiful ({there}): {_change_words(comparison)}")
    for other in report.loads:
        base, same = report.baseline_of(other), report.counterpart(other)
        against = same.against(base, NORMALIZED) if base and same else None
        if against and not (relaxed and other == relaxed[0]) and against.verdict not in ("better", "too few seeds"):
            parts.append(f"at {other.title}: {_change_words(against)}")
    if not parts:
        text = "No load without KV cache pressure was run, so this report cannot say where the gain ends."
        return Statement("Where it does not help", text, "quiet")
    helps = relaxed is not None and relaxed[1].verdict == "better" and len(parts) == 1
    return Statement("Where it helps less" if helps else "Where it does not help", _sentence(parts), "quiet")


def care(report: ReportData) -> Statement | None:
    parts = []
    failed = len(report.summary.failures)
    if failed and report.summary.runs:
        what = "run failed and is" if failed == 1 else "runs failed and are"
        parts.append(f"{failed} {what} missing from every figure")
    if any(len({run.seed for run in s.runs}) < 3 for s in report.settings):
        parts.append("some settings have fewer than three seeds, so their spread says little")
    return Statement("Take care", _sentence(parts), "bad") if parts else None


STATEMENTS: Final = (
    *(what_it_buys, worth_of_prediction, accuracy_needed, which_setting, capacity),
    *(predictor_quality, on_the_engine, where_not, care),
)


def shown_predictor(report: ReportData) -> tuple[str, PredictorRow | None]:
    """Name and quality of the served predictor, else of the best trained one."""
    predictors, served = report.summary.predictor, report.summary.meta.served_predictor
    if served in predictors:
        return predictor_name(served), predictors[served]
    known = [(r.mae_tokens, n) for n, r in predictors.items() if r.mae_tokens is not None and n != "constant-median"]
    name = min(known, key=lambda item: item[0])[1] if known else ""
    return predictor_name(name), predictors.get(name)


def interval(comparison: Comparison) -> str:
    """``95 % interval −74 % to −68 %``."""
    if comparison.low is None or comparison.high is None:
        return "one seed: no interval"
    text = write if comparison.relative is None else write_change
    return f"95 % interval {text(comparison.low)} to {text(comparison.high)}"


def tone_of(comparison: Comparison) -> Tone:
    return "good" if comparison.verdict == "better" else "bad" if comparison.verdict == "worse" else "quiet"


def _beside(ours: Setting, base: Setting) -> list[str]:
    """JCT and throughput, which normalized latency alone would hide."""
    others = []
    for metric in (JCT, THROUGHPUT):
        other = ours.against(base, metric)
        if other and other.relative is not None:
            change = write_change(other.relative) if other.shown else "no difference shown"
            others.append(f"{inner(metric.title)} {metric.write(other.theirs)} → {metric.write(other.ours)} ({change})")
    return others


def _demand(report: ReportData, load: Load, before: str, after: str) -> str:
    peak = report.demand_peak(load)
    return "" if peak is None else f"{before}peak demand {write(peak)} times the KV cache{after}"


def _with_lengths(setting: Setting) -> str:
    known = {"predicted": "predicted lengths", "noise": lengths_name(setting.lengths), "true": "true lengths"}
    return f"{setting.policy} with {known.get(setting.kind, 'no prediction')}"


def _change_words(comparison: Comparison) -> str:
    """A difference in words: ``71 % lower (95 % interval −74 % to −68 %)``."""
    if comparison.relative is None:
        return comparison.verdict
    size = write_change(abs(comparison.relative), sign=False)
    words = f"{size} {'lower' if comparison.relative < 0 else 'higher'}"
    if comparison.verdict == "no difference shown":
        words = "no difference shown"
    return f"{words} ({interval(comparison)})"


def _sentence(parts: Sequence[str]) -> str:
    text = "; ".join(parts)
    return f"{text[:1].upper()}{text[1:]}."


def headline(report: ReportData) -> str:
    ours, comparison, relaxed = report.ours, report.comparison, report.relaxed
    if not ours or not comparison:
        if report.summary.runs:
            return "There is no run of the baseline next to another setting yet, so nothing can be compared."
        if failed := len(report.summary.failures):
            runs = "The only run" if failed == 1 else f"All {failed} runs"
            return f"{runs} failed, so there is nothing to show."
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


TILES: Final = (_gain, _preemptions, _relaxed, _predictor)
