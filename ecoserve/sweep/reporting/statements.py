"""The report's sentences, one function each: what a reader should know, computed from the runs, or nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from ecoserve.pages import Statement, Tone, write, write_change
from ecoserve.sweep.reporting.choice import along, cast, counterpart, latency, same_policy, stand_in, tuned
from ecoserve.sweep.reporting.metrics import JCT, NORMALIZED, PREEMPTIONS, RECOMPUTED, SLO, THROUGHPUT, inner
from ecoserve.sweep.reporting.settings import Load, Setting, Settings, demand_peak, lengths_name
from ecoserve.sweep.reporting.tables import predictor_name
from ecoserve.sweep.statistics import Comparison
from ecoserve.sweep.summary import PredictorRow, Summary

#: This share of the requests must meet their SLO where a rate is said to be kept.
_NEARLY_ALL: Final = 0.9


def what_it_buys(settings: Settings, load: Load, ours: Setting, base: Setting, comparison: Comparison) -> Statement:
    where = "In virtual time" if load.engine == "virtual" else "On the engine"
    peak = demand_peak(settings.under(load))
    demand = f" (peak demand {write(peak)} times the KV cache)" if peak is not None else ""
    text = (
        f"{where}, at {load.title}{demand}, {_with_lengths(ours)} takes {NORMALIZED.write(comparison.ours)} against "
        f"{NORMALIZED.write(comparison.theirs)} for {settings.baseline_name}: {_change_words(comparison)}."
    )
    others = _beside(ours, base)
    if others:
        text += f" Beside it: {', '.join(others)}."
    return Statement("What it buys", text, tone_of(comparison))


def _beside(ours: Setting, base: Setting) -> list[str]:
    """What normalized latency alone would hide: JCT and throughput, whichever way they went."""
    others = []
    for metric in (JCT, THROUGHPUT):
        other = ours.against(base, metric)
        if other and other.relative is not None:
            said = write_change(other.relative) if other.shown else "no difference shown"
            others.append(f"{inner(metric.title)} {metric.write(other.theirs)} → {metric.write(other.ours)} ({said})")
    return others


def worth_of_prediction(settings: Settings, load: Load, ours: Setting, base: Setting) -> Statement | None:
    perfect, blind = same_policy(settings, load, ours.policy, "true"), same_policy(settings, load, ours.policy, "none")
    parts = []
    if perfect and perfect is not ours:
        best = perfect.against(base, NORMALIZED)
        mine = ours.against(base, NORMALIZED)
        if best and mine and best.verdict == "better" and best.difference < 0:
            share = mine.difference / best.difference
            parts.append(
                f"Perfect lengths would bring {write_change(best.relative or 0.0)}; "
                f"{_told(ours)} bring {write_change(max(0.0, share), sign=False)} of that gain"
            )
        elif best:
            parts.append(f"Even perfect lengths: {_change_words(best)} against {settings.baseline_name}")
    tone: Tone = ""
    if blind and blind is not ours:
        gain = ours.against(blind, NORMALIZED)
        if gain:
            tone = tone_of(gain)
            parts.append(f"against {ours.policy} without any prediction, normalized latency: {_change_words(gain)}")
    if not parts:
        return None
    return Statement("What the prediction is worth", _sentence(parts), tone)


def which_setting(settings: Settings, load: Load, ours: Setting) -> Statement | None:
    here = _runnable(settings, load, ours)
    if len(here) < 2:
        return None
    first, second = sorted(here, key=latency)[:2]
    comparison = first.against(second, NORMALIZED)
    if comparison is None:
        return None
    level = first.level(NORMALIZED)
    ranged = NORMALIZED.write_spread(level)
    text = f"Lowest normalized latency at {load.title}: {first.name}, {NORMALIZED.write(comparison.ours)}"
    text += f" (seeds: {ranged})" if ranged else ""
    if comparison.verdict == "better":
        text += f", {write_change(comparison.relative or 0.0)} against the next, {second.name}."
    else:
        text += f"; the next, {second.name}, cannot be told apart from it ({comparison.verdict})."
    beaten = []
    for other in settings.loads:
        if other == load or other.engine != load.engine:
            continue
        same = next(
            (
                s
                for s in _runnable(settings, other, ours)
                if (s.policy, s.lengths, s.knobs) == (first.policy, first.lengths, first.knobs)
            ),
            None,
        )
        best = min(_runnable(settings, other, ours), key=latency, default=None)
        against = best.against(same, NORMALIZED) if best and same and best is not same else None
        if best and against and against.verdict == "better":
            beaten.append(f"at {other.title}, {best.name} is {_change_words(against)}")
    if beaten:
        text += f" Not everywhere: {'; '.join(beaten)}."
    elif len([x for x in settings.loads if x.engine == load.engine]) > 1:
        text += " At no other load that was run is another setting shown to be better than it."
    return Statement("Which setting to run", text)


def _runnable(settings: Settings, load: Load, ours: Setting) -> list[Setting]:
    """What a user could run: no oracles, and of lengths with controlled error only those that stand for a predictor."""
    here = [s for s in settings.under(load) if s.kind not in ("true", "noise") or s.lengths == ours.lengths]
    return [s for s in here if s.kind != "true" and s.level(NORMALIZED)]


def accuracy_needed(settings: Settings, load: Load, ours: Setting) -> Statement | None:
    """From which accuracy on lengths are shown to be worth having, against the same policy without any."""
    blind = same_policy(settings, load, ours.policy, "none")
    told = [
        s for s in tuned(settings, settings.under(load)) if s.policy == ours.policy and s.kind in ("noise", "predicted")
    ]
    taus = ((s, s.level("prediction_kendall_tau")) for s in told)
    known = sorted(((level.mean, s) for s, level in taus if level is not None), key=lambda item: item[0])
    if blind is None or len(known) < 2:
        return None
    helps, fails = list[str](), list[str]()
    for tau, s in known:
        gain = s.against(blind, NORMALIZED)
        if gain is None or gain.relative is None:
            continue
        words = f"{lengths_name(s.lengths)} (τ {write(tau)}): {write_change(gain.relative)}"
        (helps if gain.verdict == "better" else fails).append(words)
    if not helps and not fails:
        return None
    text = f"At {load.title}, normalized latency against {ours.policy} without any prediction, worst order first: "
    text += "; ".join(helps) if helps else "no accuracy that was run is shown to help"
    if fails:
        text += f". Not shown to help: {'; '.join(fails)}"
    return Statement("How good it must be", text + ".", "good" if helps and not fails else "")


def capacity(settings: Settings, load: Load) -> Statement | None:
    """The highest rate that was run at which nearly everybody meets the SLO, for each setting that is shown."""
    rows = cast(settings)
    lines = [[s for s in along(settings, one) if s.level(SLO) is not None] for one in rows]
    if any(len(line) < 2 for line in lines) or not lines:
        return None
    parts = []
    for one, line in zip(rows, lines, strict=True):
        kept = [s for s in line if (level := s.level(SLO)) is not None and level.mean >= _NEARLY_ALL]
        here = one.level(SLO)
        upto = f"up to {kept[-1].load.rate_title}" if kept else "at none of the rates"
        parts.append(f"{one.name}: {upto}" + (f" ({SLO.write(here.mean)} at {load.rate_title})" if here else ""))
    head = f"At least {write(_NEARLY_ALL, 'share')} of the requests meet their SLO, of the rates that were run, with "
    return Statement("Who meets the SLO", head + "; ".join(parts) + ".")


def predictor_statement(predictors: dict[str, PredictorRow], served: str | None) -> Statement | None:
    name, row = shown_predictor(predictors, served)
    if row is None or row.mae_tokens is None:
        return None
    text = (
        f"{name} is off by {write(row.mae_tokens, 'tokens')} on average over {write(row.rows)} requests it had not seen"
    )
    if row.within_50 is not None:
        text += f", and within 50 tokens for {write_change(row.within_50, sign=False)} of them"
    if row.kendall_tau is not None:
        text += f" (Kendall’s τ {write(row.kendall_tau)})"
    constant = predictors.get("constant-median")
    tone: Tone = ""
    if constant is not None and constant is not row and constant.mae_tokens:
        change = row.mae_tokens / constant.mae_tokens - 1
        text += f". Always guessing the median is off by {write(constant.mae_tokens, 'tokens')}: {write_change(change)}"
        tone = "good" if change < 0 else "bad"
    return Statement("How good the predictor is", text + ".", tone)


def on_the_engine(settings: Settings, load: Load | None) -> Statement | None:
    real = [x for x in settings.loads if x.engine != "virtual" and x != load]
    pieces = []
    tone: Tone = ""
    for there in real:
        base, ours = settings.baseline_of(there), stand_in(settings, there)
        comparison = ours.against(base, NORMALIZED) if base and ours else None
        if not base or not ours or not comparison:
            continue
        tone = tone or tone_of(comparison)
        piece = f"at {there.title}, {_with_lengths(ours)}: normalized latency {_change_words(comparison)}"
        for metric in (PREEMPTIONS, RECOMPUTED):
            mine, theirs = ours.level(metric), base.level(metric)
            if mine and theirs:
                piece += f", {inner(metric.title)} {metric.write(theirs.mean)} → {metric.write(mine.mean)}"
        piece += "".join(f", {other}" for other in _beside(ours, base))
        pieces.append(piece)
    if not pieces:
        return None
    return Statement("On a real vLLM engine", _sentence(pieces), tone)


def where_not(settings: Settings, relaxed: tuple[Load, Comparison] | None, ours: Setting | None) -> Statement | None:
    if ours is None:
        return None
    parts = []
    if relaxed:
        load, comparison = relaxed
        peak = demand_peak(settings.under(load))
        demand = f", peak demand {write(peak)} times the KV cache" if peak is not None else ""
        parts.append(f"where the KV cache is plentiful ({load.title}{demand}): {_change_words(comparison)}")
    for other in settings.loads:
        base, same = settings.baseline_of(other), counterpart(settings, other, ours)
        there = same.against(base, NORMALIZED) if base and same else None
        if there and (relaxed is None or other != relaxed[0]) and there.verdict not in ("better", "too few seeds"):
            parts.append(f"at {other.title}: {_change_words(there)}")
    if not parts:
        text = "No load without KV cache pressure was run, so this report cannot say where the gain ends."
        return Statement("Where it does not help", text, "quiet")
    helps = relaxed is not None and relaxed[1].verdict == "better" and len(parts) == 1
    return Statement("Where it helps less" if helps else "Where it does not help", _sentence(parts), "quiet")


def care(summary: Summary, settings: Settings) -> Statement | None:
    parts = []
    if summary.failures:
        n = len(summary.failures)
        parts.append(
            f"{n} {'run' if n == 1 else 'runs'} failed and {'is' if n == 1 else 'are'} missing from every figure"
        )
    seeds = [len({run.seed for run in s.runs}) for s in settings.all]
    if seeds and min(seeds) < 3:
        parts.append("some settings have fewer than three seeds, so their spread says little")
    return Statement("Take care", _sentence(parts), "bad") if parts else None


def shown_predictor(predictors: dict[str, PredictorRow], served: str | None) -> tuple[str, PredictorRow | None]:
    """The served predictor, else the best trained one."""
    if served in predictors:
        return predictor_name(served), predictors[served]
    known = [(n, r) for n, r in predictors.items() if r.mae_tokens is not None and n != "constant-median"]
    if not known:
        return "", None
    name, row = min(known, key=lambda item: item[1].mae_tokens or 0.0)
    return predictor_name(name), row


def _told(setting: Setting) -> str:
    return {"predicted": "predicted lengths", "noise": "these rough lengths"}.get(setting.kind, "its own estimates")


def _with_lengths(setting: Setting) -> str:
    known = {"predicted": "predicted lengths", "noise": lengths_name(setting.lengths), "true": "true lengths"}
    return f"{setting.policy} with {known.get(setting.kind, 'no prediction')}"


def _change_words(comparison: Comparison) -> str:
    """A difference in words: ``71 % lower (95 % interval 68 % to 74 %), better``."""
    if comparison.relative is None:
        return comparison.verdict
    lower = comparison.relative < 0
    size = write_change(abs(comparison.relative), sign=False)
    words = f"{size} {'lower' if lower else 'higher'}"
    if comparison.verdict == "no difference shown":
        return f"no difference shown ({interval(comparison)})"
    return f"{words} ({interval(comparison)})"


def interval(comparison: Comparison) -> str:
    if comparison.low is None or comparison.high is None:
        return "one seed: no interval"
    if comparison.relative is None:
        return f"95 % interval {write(comparison.low)} to {write(comparison.high)}"
    return f"95 % interval {write_change(comparison.low)} to {write_change(comparison.high)}"


def tone_of(comparison: Comparison) -> Tone:
    return "good" if comparison.verdict == "better" else "bad" if comparison.verdict == "worse" else "quiet"


def _sentence(parts: Sequence[str]) -> str:
    text = "; ".join(parts)
    return f"{text[:1].upper()}{text[1:]}."
