"""Tables of a profile's page."""

from __future__ import annotations

import math
from typing import Final

from ecoserve.data.profiling.model import NoiseFloor, Profile
from ecoserve.data.profiling.reporting.length_figures import law_title
from ecoserve.data.profiling.statements import percent
from ecoserve.pages import Cell, Column, Table, write, write_range

_SHARE: Final = "share"
_QUANTILES: Final = ("p1", "p5", "p10", "p25", "p50", "p75", "p90", "p95", "p99", "p99_9")


def lengths_table(profile: Profile) -> Table:
    table = Table(
        "lengths",
        "Lengths in tokens. p90: nine in ten are not longer.",
        [
            "", "Counted", "Mean", Column("CV", "Coefficient of variation: standard deviation over mean."), "Min",
            *(name.replace("_", ".") for name in _QUANTILES), "Max", Column("Cut off", unit=_SHARE),
        ],
    )  # fmt: skip
    split = (("Thinking", profile.thinking), ("Answers without it", profile.visible))
    for name, x in (("Answers", profile.response), *split, ("Prompts", profile.prompt)):
        if x is not None:
            quantiles = [getattr(x, q) for q in _QUANTILES]
            table.add([name, x.n, x.mean, x.cv, x.min, *quantiles, x.max, x.censored_share])
    if profile.response.censored_share:
        known = ("p50", "p90", "p95", "p99")
        corrected = [getattr(profile.response, f"km_{q}") if q in known else "" for q in _QUANTILES]
        table.add(["Corrected for those cut off", "", "", "", "", *corrected, "", ""])
    return table


def laws_table(profile: Profile) -> Table | None:
    tail = profile.tail
    if not tail.laws:
        return None
    chance = f" Chance alone stays below {tail.ks_by_chance:.2%} 19 times out of 20." if tail.ks_by_chance else ""
    return Table(
        "laws",
        "Laws fitted to all answers by maximum likelihood, best first (smallest AIC). With enough answers a test "
        "rejects every law; the question is how far it is off.",
        [
            "Law",
            Column("KS", f"Largest distance between the law’s and the recorded distribution function.{chance}", _SHARE),
            Column("Anderson–Darling", "Squared distance that counts the tails most, per answer."),
            "AIC, above the best", "Median", "99 %", "99.9 %",
        ],
        [
            [law_title(law.name, law.parameters), law.ks, law.anderson_darling, law.aic - tail.laws[0].aic, law.p50,
             law.p99, law.p99_9]
            for law in tail.laws
        ],
    )  # fmt: skip


def indices_table(profile: Profile) -> Table | None:
    if not profile.tail.indices:
        return None
    return Table(
        "indices",
        "Tail index above several thresholds: above 0 a power law, 0 exponential, below 0 lengths end somewhere.",
        ["Longer than (tokens)", "Answers", "Index", Column("KS", unit=_SHARE)],
        [[i.threshold, i.above, Cell(i.index, beneath=write_range(i.low, i.high)), i.ks] for i in profile.tail.indices],
    )


def guesses_table(profile: Profile) -> Table | None:
    same, predicted, by_length = profile.same_prompt, profile.predicted, profile.prompt_length
    rows: list[list[float | str | None]] = []
    if same is not None:
        rows.append(_guess("Always the median", same.constant))
        rows.append(_guess("One other answer to the prompt", same.one_other))
        if same.mean_of_others is not None:
            rows.append(_guess("Mean of the other answers", same.mean_of_others))
    if by_length is not None:
        if same is None:
            rows.append(["Always the median", by_length.mae_constant_tokens, None, None, None, by_length.rows])
        rows.append(["The prompt’s length alone", by_length.mae_tokens, None, None, None, by_length.rows])
    if (p := predicted) is not None:
        name = f"Predictor, rows {p.rows_are}"
        rows.append([name, p.mae_tokens, p.within_50, p.within_100, p.kendall_tau, p.rows])
    if not rows:
        return None
    return Table(
        "guesses",
        "Error of each way to predict a length.",
        [
            "Predicted from", "Mean error (tokens)", Column("Within 50", unit=_SHARE),
            Column("Within 100", unit=_SHARE),
            Column("Kendall’s τ", "1 ranks answers by length rightly, 0 is chance."), "Answers",
        ],
        rows,
    )  # fmt: skip


def _guess(name: str, x: NoiseFloor) -> list[float | str | None]:
    return [name, x.mae_tokens, x.within_50, x.within_100, x.kendall_tau, x.targets]


def same_prompt_table(profile: Profile) -> Table | None:
    found = [s for s in (profile.same_prompt, *profile.same_prompt_by_model) if s is not None]
    if not found:
        return None
    return Table(
        "same-prompt",
        "Several answers of one model to one prompt: what the prompt explains. Below: 95 % intervals.",
        [
            "Model", "Prompts", "Answers",
            Column("CV within a prompt", "Median over prompts; below, the 10th to the 90th percentile."),
            Column("Explained", "Share of the variance of lengths that lies between prompts.", _SHARE),
            Column("Explained, log", "The same of log lengths.", _SHARE),
            Column("Smallest error (tokens)", "Expected error of the best prediction from the prompt: between these "
                   "two."),
        ],
        [
            [
                s.model or "all", s.prompts, s.answers, Cell(s.cv_median, beneath=write_range(s.cv_p10, s.cv_p90)),
                Cell(s.icc, beneath=write_range(s.icc_low, s.icc_high, _SHARE)),
                Cell(s.icc_log, beneath=write_range(s.icc_log_low, s.icc_log_high, _SHARE)),
                Cell(s.floor_mae_high_tokens, write_range(s.floor_mae_low_tokens, s.floor_mae_high_tokens)),
            ]
            for s in found
        ],
    )  # fmt: skip


def models_table(profile: Profile) -> Table | None:
    """Each model against the others on the prompts they share; every pair is in ``profile.json``."""
    across = profile.across_models
    if across is None:
        return None
    shares = ""
    if across.prompt_share is not None and across.model_share is not None and across.rest_share is not None:
        shares = (
            f" Over {across.prompts:,} prompts that all of them answered, {percent(across.prompt_share)} of the "
            f"variance of log length is the prompt’s, {percent(across.model_share)} the model’s habit, "
            f"{percent(across.rest_share)} the rest."
        )
    # Of each model: prompts, log of its length over the other's, tau.
    seen: dict[str, list[tuple[int, float, float]]] = {}
    for pair in across.pairs:
        seen.setdefault(pair.a, []).append((pair.prompts, -math.log(pair.ratio), pair.kendall_tau))
        seen.setdefault(pair.b, []).append((pair.prompts, math.log(pair.ratio), pair.kendall_tau))
    rows: list[tuple[float, str, int, float]] = []
    for model, against in seen.items():
        prompts, logs, taus = zip(*against, strict=True)
        rows.append((math.exp(sum(logs) / len(logs)), model, max(prompts), sum(taus) / len(taus)))
    return Table(
        "models",
        f"The same prompts answered by {across.models} models.{shares}",
        [
            "Model",
            "Prompts shared",
            Column("Relative length", "Length over that of the other models: geometric mean over prompts and models."),
            Column("τ with the others", "Kendall’s τ: are the same prompts long for both? 1: same order, 0: chance."),
        ],
        [[model, prompts, ratio, tau] for ratio, model, prompts, tau in sorted(rows, key=lambda row: -row[0])],
    )


def arrivals_table(profile: Profile) -> Table | None:
    found = profile.arrivals
    if found is None:
        return None
    rows = [
        ("Requests with a recorded arrival", found.rows, ""),
        ("Duration", found.duration_s, "s"),
        ("Mean rate", found.rate_rps, "requests/s"),
        ("Busiest second", found.busiest_second_rps, "requests/s"),
        ("Busiest minute", found.busiest_minute_rps, "requests/s"),
        ("Busiest hour", found.busiest_hour_rps, "requests/s"),
        ("Coefficient of variation of the gaps (Poisson: 1)", found.gap_cv, ""),
        ("Variance over mean of the count in 1 s (Poisson: 1)", found.dispersion_1s, ""),
        ("Variance over mean of the count in 10 s", found.dispersion_10s, ""),
        ("Variance over mean of the count in 60 s", found.dispersion_60s, ""),
        ("Answers’ tokens", found.output_tokens_per_s, "tokens/s"),
    ]
    shown = [[name, Cell(value, write(value, unit))] for name, value, unit in rows if value is not None]
    return Table("arrivals", "Arrivals.", ["", "Value"], shown)
