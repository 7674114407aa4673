"""Tables of a profile's page."""

from __future__ import annotations

import math

from ecoserve.data.profiling.model import Lengths, NoiseFloor, Profile
from ecoserve.data.profiling.reporting.words import between, decimal, law_title, number
from ecoserve.data.profiling.statements import percent
from ecoserve.pages import NOTHING, Cell, Column, Table

_QUANTILES = ("p1", "p5", "p10", "p25", "p50", "p75", "p90", "p95", "p99", "p99_9")


def lengths_table(profile: Profile) -> Table:
    """Moments and percentiles of answers and prompts."""
    titles = [name.replace("_", ".") for name in _QUANTILES]
    table = Table(
        "lengths",
        "Lengths in tokens. p90: nine in ten are not longer.",
        [
            Column("", number=False), Column("Counted"), Column("Mean"),
            Column("CV", "Coefficient of variation: standard deviation over mean."),
            Column("Min"),
            *(Column(title) for title in titles), Column("Max"), Column("Cut off"),
        ],
    )  # fmt: skip
    for name, lengths in (("Answers", profile.response), ("Prompts", profile.prompt)):
        if lengths is not None:
            table.rows.append(_lengths_row(name, lengths))
    if profile.response.censored_share:
        corrected = {"p50": "km_p50", "p90": "km_p90", "p95": "km_p95", "p99": "km_p99"}
        nothing = [Cell("")] * 4
        middle = [number(getattr(profile.response, corrected[q])) if q in corrected else Cell("") for q in _QUANTILES]
        table.rows.append([Cell("Corrected for those cut off"), *nothing, *middle, Cell(""), Cell("")])
    return table


def _lengths_row(name: str, lengths: Lengths) -> list[Cell]:
    quantiles = [number(getattr(lengths, q)) for q in _QUANTILES]
    return [
        Cell(name), number(lengths.n), number(lengths.mean), number(lengths.cv),
        number(lengths.min), *quantiles, number(lengths.max), number(lengths.censored_share, "share"),
    ]  # fmt: skip


def laws_table(profile: Profile) -> Table | None:
    """The fitted laws and how far they are off."""
    tail = profile.tail
    if not tail.laws:
        return None
    chance = f" Chance alone stays below {tail.ks_by_chance:.2%} 19 times out of 20." if tail.ks_by_chance else ""
    return Table(
        "laws",
        "Laws fitted to all answers by maximum likelihood, best first (smallest AIC). With enough answers every law "
        "is rejected by a test; the question is by how much it is off.",
        [
            Column("Law", number=False),
            Column("KS", f"Largest distance between the law’s and the recorded distribution function.{chance}"),
            Column("Anderson–Darling", "Squared distance that counts the tails most, per answer."),
            Column("AIC, above the best"), Column("Median"), Column("99 %"), Column("99.9 %"),
        ],
        [
            [
                Cell(law_title(law.name, law.parameters)), number(law.ks, "share"), number(law.anderson_darling),
                number(law.aic - tail.laws[0].aic), number(law.p50), number(law.p99), number(law.p99_9),
            ]
            for law in tail.laws
        ],
    )  # fmt: skip


def indices_table(profile: Profile) -> Table | None:
    """Tail index above several thresholds."""
    if not profile.tail.indices:
        return None
    return Table(
        "indices",
        "Tail index above several thresholds: above 0 a power law, 0 exponential, below 0 lengths end somewhere.",
        [Column("Longer than (tokens)", number=False), Column("Answers"), Column("Index"), Column("KS")],
        [
            [
                Cell(f"{i.threshold:,}", raw=i.threshold), number(i.above),
                Cell(decimal(i.index, 3), _interval(i.low, i.high), i.index), number(i.ks, "share"),
            ]
            for i in profile.tail.indices
        ],
    )  # fmt: skip


def _interval(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"{decimal(low, 3)} to {decimal(high, 3)}"


def guesses_table(profile: Profile) -> Table | None:
    """How good each way to guess is."""
    same, told, by_length = profile.same_prompt, profile.predicted, profile.prompt_length
    rows: list[list[Cell]] = []
    if same is not None:
        rows.append(_guess("Always the median", same.constant))
        rows.append(_guess("One other answer to the prompt", same.one_other))
        if same.mean_of_others is not None:
            rows.append(_guess("Mean of the other answers", same.mean_of_others))
    if by_length is not None:
        unknown, by_length_rows = [Cell(NOTHING)] * 3, number(by_length.rows)
        if same is None:
            rows.append([Cell("Always the median"), number(by_length.mae_constant_tokens), *unknown, by_length_rows])
        rows.append([Cell("The prompt’s length alone"), number(by_length.mae_tokens), *unknown, by_length_rows])
    if told is not None:
        rows.append(
            [
                Cell(f"Predictor, rows {told.rows_are}"), number(told.mae_tokens), number(told.within_50, "share"),
                number(told.within_100, "share"), number(told.kendall_tau), number(told.rows),
            ]
        )  # fmt: skip
    if not rows:
        return None
    return Table(
        "guesses",
        "How near each guess comes to the true length.",
        [
            Column("Guess", number=False), Column("Mean error (tokens)"), Column("Within 50"), Column("Within 100"),
            Column("Kendall’s τ", "1 ranks answers by length rightly, 0 is chance."), Column("Answers"),
        ],
        rows,
    )  # fmt: skip


def _guess(name: str, measured: NoiseFloor) -> list[Cell]:
    return [
        Cell(name), number(measured.mae_tokens), number(measured.within_50, "share"),
        number(measured.within_100, "share"), number(measured.kendall_tau), number(measured.targets),
    ]  # fmt: skip


def same_prompt_table(profile: Profile) -> Table | None:
    """What the prompt explains, over all models and for each."""
    found = [s for s in (profile.same_prompt, *profile.same_prompt_by_model) if s is not None]
    if not found:
        return None
    return Table(
        "same-prompt",
        "Several answers of one model to one prompt: what the prompt explains. Beneath: 95 % intervals.",
        [
            Column("Model", number=False), Column("Prompts"), Column("Answers"),
            Column("CV within a prompt", "Median over prompts; beneath, the 10th to the 90th percentile."),
            Column("Explained", "Share of the variance of lengths that lies between prompts."),
            Column("Explained, log", "The same of log lengths."),
            Column("Smallest error (tokens)", "Expected error of the best guess from the prompt: between these two."),
        ],
        [
            [
                Cell(s.model or "all"), number(s.prompts), number(s.answers),
                Cell(number(s.cv_median).text, between(s.cv_p10, s.cv_p90), s.cv_median),
                Cell(number(s.icc, "share").text, between(s.icc_low, s.icc_high, "share"), s.icc),
                Cell(number(s.icc_log, "share").text, between(s.icc_log_low, s.icc_log_high, "share"), s.icc_log),
                Cell(between(s.floor_mae_low_tokens, s.floor_mae_high_tokens), raw=s.floor_mae_high_tokens),
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
    rows = []
    for model, against in seen.items():
        prompts, logs, taus = zip(*against, strict=True)
        ratio = math.exp(sum(logs) / len(logs))
        rows.append([Cell(model), number(max(prompts)), number(ratio), number(sum(taus) / len(taus))])
    return Table(
        "models",
        f"The same prompts answered by {across.models} models.{shares}",
        [
            Column("Model", number=False), Column("Prompts shared"),
            Column("Times the others’", "Geometric mean over prompts and other models."),
            Column("τ with the others", "Kendall’s τ: are the same prompts long for both? 1: same order, 0: chance."),
        ],
        sorted(rows, key=lambda row: -float(row[2].raw or 0.0)),
    )  # fmt: skip


def arrivals_table(profile: Profile) -> Table | None:
    """The figures of the arrivals."""
    found = profile.arrivals
    if found is None:
        return None
    rows = [
        ("Requests with a recorded arrival", number(found.rows)),
        ("Duration", number(found.duration_s, "s")),
        ("Mean rate", number(found.rate_rps, "requests/s")),
        ("Busiest second", number(found.busiest_second_rps, "requests/s")),
        ("Busiest minute", number(found.busiest_minute_rps, "requests/s")),
        ("Busiest hour", number(found.busiest_hour_rps, "requests/s")),
        ("Coefficient of variation of the gaps (Poisson: 1)", number(found.gap_cv)),
        ("Variance over mean of the count in 1 s (Poisson: 1)", number(found.dispersion_1s)),
        ("Variance over mean of the count in 10 s", number(found.dispersion_10s)),
        ("Variance over mean of the count in 60 s", number(found.dispersion_60s)),
        ("Answers’ tokens", number(found.output_tokens_per_s, "tokens/s")),
    ]
    return Table(
        "arrivals",
        "Arrivals.",
        [Column("", number=False), Column("Value")],
        [[Cell(name), value] for name, value in rows if value.text != NOTHING],
    )
