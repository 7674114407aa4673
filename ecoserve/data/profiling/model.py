"""The shape of ``profile.json``: the one definition of every key, its unit and its meaning.

A key is never renamed or given another meaning without a new :data:`SCHEMA_VERSION`; new keys may appear within one.
"""

from __future__ import annotations

from typing import Final, Literal

from ecoserve.schema import Keys, key, maybe, share, tokens

SCHEMA_VERSION: Final = 1


class Lengths(Keys):
    """How long a set of answers (or prompts) is. Quantile q: the least length that a share q does not exceed."""

    n: int = key("Lengths counted.", "count", ge=0)
    mean: float | None = tokens("Mean.", None)
    sd: float | None = tokens("Standard deviation.", None)
    cv: float | None = maybe("Coefficient of variation: sd / mean.", ge=0)
    skew: float | None = maybe("Skewness: third central moment over sd cubed; 0 is symmetric.")
    min: int | None = tokens("Shortest.", None)
    p1: int | None = tokens("1st percentile.", None)
    p5: int | None = tokens("5th percentile.", None)
    p10: int | None = tokens("10th percentile.", None)
    p25: int | None = tokens("25th percentile.", None)
    p50: int | None = tokens("Median.", None)
    p75: int | None = tokens("75th percentile.", None)
    p90: int | None = tokens("90th percentile.", None)
    p95: int | None = tokens("95th percentile.", None)
    p99: int | None = tokens("99th percentile.", None)
    p99_9: int | None = tokens("99.9th percentile.", None)
    max: int | None = tokens("Longest.", None)
    p50_low: int | None = tokens("Median, lower end of its 95 % interval.", None)
    p50_high: int | None = tokens("Median, upper end.", None)
    p90_low: int | None = tokens("90th percentile, lower end of its 95 % interval.", None)
    p90_high: int | None = tokens("90th percentile, upper end.", None)
    censored_share: float = share("Share of answers that were cut off: they wanted to be longer.")
    km_p50: int | None = tokens("Median, corrected for answers cut off (Kaplan-Meier); null if it lies beyond.", None)
    km_p90: int | None = tokens("90th percentile, corrected so.", None)
    km_p95: int | None = tokens("95th percentile, corrected so.", None)
    km_p99: int | None = tokens("99th percentile, corrected so.", None)


class Group(Keys):
    """One group of records."""

    name: str = key("What the records have in common.")
    share: float = share("Share of the records counted in this grouping.")
    lengths: Lengths = key("Their response lengths.")


class Grouping(Keys):
    """The records in groups."""

    by: Literal["turn", "prompt_band", "model", "language", "split"] = key("What they are grouped by.")
    rows: int = key("Records counted: all, or the sample whose language was recognised.", "count", ge=0)
    explains: float | None = maybe(
        "Adjusted R squared of log length by group; 0: it does not help.", "share 0..1", ge=0, le=1
    )
    groups: list[Group] = key("The groups; beyond twelve, the rarest are one called `other`.")


class Law(Keys):
    """A law fitted to all response lengths by maximum likelihood, answers cut off as such."""

    name: str = key("`lognormal`, `weibull`, `pareto` (Lomax), `logt`, `gamma`, `exponential`.")
    parameters: dict[str, float] = key("Its parameters; lengths in tokens.")
    log_likelihood: float = key("Natural logarithm of the likelihood.")
    aic: float = key("Akaike's criterion; smaller is better.")
    bic: float = key("Schwarz's criterion; smaller is better.")
    ks: float = key("Largest distance between the law's and the (Kaplan-Meier) distribution function.", "share 0..1")
    anderson_darling: float = key("Squared distance that counts the tails most, per length.")
    p50: int = tokens("Median of the law.")
    p99: int = tokens("99th percentile of the law.")
    p99_9: int = tokens("99.9th percentile of the law.")


class TailIndex(Keys):
    """A generalised Pareto law of what exceeds a threshold."""

    threshold: int = tokens("The threshold.")
    above: int = key("Answers longer than it.", "count")
    index: float = key("Its shape xi: above 0 a power law, 0 exponential, below 0 lengths end somewhere.")
    low: float | None = maybe("Lower end of its 95 % interval; null where it has no standard error (xi <= -0.5).")
    high: float | None = maybe("Upper end.")
    ks: float = key("Largest distance between that law and what exceeds the threshold.", "share 0..1")


class Tail(Keys):
    """What the longest answers are like."""

    p99_over_p50: float | None = maybe("99th percentile over the median (Kaplan-Meier where answers are cut off).")
    top10_token_share: float = share("Share of all answer tokens that the longest tenth of the answers has.")
    top1_token_share: float = share("Share that the longest hundredth has.")
    laws: list[Law] = key("Laws, best (smallest AIC) first; none where too few lengths or all are equal.")
    ks_by_chance: float | None = maybe("KS distance that chance exceeds one time in 20 at this number of answers.")
    ends_at: int | None = tokens("Where answers are cut off, if they are; what lies beyond is not known.", None)
    indices: list[TailIndex] = key("Tail index above several thresholds; none with fewer than 50 answers above.")
    kind: Literal["ends", "light", "heavy", "mixed", "open", "unknown"] = key(
        "By the index above the 90th percentile (else the 80th): shown to be below 0 (`ends`), below 0.1 (`light`) or "
        "above 0.1 (`heavy`), or neither (`open`); `mixed`: higher thresholds contradict it; `unknown`: no index."
    )
    verdict: str = key("The same in words.")


class NoiseFloor(Keys):
    """How well other answers to the same prompt tell the length of one: what a predictor can hope for."""

    targets: int = key("Answers that were predicted.", "count")
    mae_tokens: float = tokens("Mean error.")
    within_50: float = share("Share predicted to within 50 tokens.")
    within_100: float = share("Share predicted to within 100 tokens.")
    kendall_tau: float = key("Kendall's tau-b: 1 ranks rightly, 0 is chance.")


class SamePrompt(Keys):
    """Several answers of one model to one prompt: how far a prompt decides the length."""

    model: str | None = maybe("The served model; null for all together.")
    prompts: int = key("Prompts with at least two answers by one model.", "count")
    answers: int = key("Answers to them (at most 16 a prompt are looked at).", "count")
    censored_share: float = share("Share of those answers that were cut off: they make prompts look alike.")
    cv_median: float = key("Median over prompts of the coefficient of variation of the answers' lengths.")
    cv_p10: float = key("10th percentile of it.")
    cv_p90: float = key("90th percentile of it.")
    sd_log_within: float = key("Standard deviation of log length within a prompt.")
    icc: float = share("One-way ICC: share of the variance that the prompt explains, a bound for R squared.")
    icc_low: float = share("Lower end of its 95 % interval (bootstrap over prompts).")
    icc_high: float = share("Upper end.")
    icc_log: float = share("The same of log lengths.")
    icc_log_low: float = share("Lower end of its 95 % interval.")
    icc_log_high: float = share("Upper end.")
    constant: NoiseFloor = key("Always the median of all these answers: what knowing nothing gives.")
    one_other: NoiseFloor = key("One other answer to the prompt, taken by chance.")
    mean_of_others: NoiseFloor | None = maybe("Mean of all other answers to the prompt; null with two answers each.")
    floor_mae_low_tokens: float = tokens("Error of each prompt's own median: below any predictor's expected error.")
    floor_mae_high_tokens: float = tokens("A predictor can reach this: the best of the rows above, or the median.")


class ModelPair(Keys):
    """Two models' answers to the same prompts."""

    a: str = key("One model.")
    b: str = key("The other.")
    prompts: int = key("Prompts both have answered.", "count")
    ratio: float = key("Geometric mean of length of b / length of a.")
    ratio_low: float = key("Lower end of its 95 % interval.")
    ratio_high: float = key("Upper end.")
    sd_log_ratio: float = key("Standard deviation of log(length of b / length of a).")
    kendall_tau: float = key("Do both find the same prompts long? Kendall's tau-b.")


class AcrossModels(Keys):
    """The same prompts answered by several models."""

    models: int = key("Models compared (those with most shared prompts, at most ten).", "count")
    prompts: int = key("Prompts that all of them have answered.", "count")
    prompt_share: float | None = share("Share of the variance of log length due to the prompt.", None)
    model_share: float | None = share("Share that is the model's habit, whatever the prompt.", None)
    rest_share: float | None = share("Share that is neither: this model with this prompt, and chance.", None)
    pairs: list[ModelPair] = key("Every two of them.")


class PromptLength(Keys):
    """What the prompt's length alone tells about the answer's."""

    rows: int = key("Records with both lengths.", "count")
    spearman: float = key("Rank correlation.")
    kendall_tau: float = key("Kendall's tau-b.")
    r2_log: float = share("R squared of a straight line through log lengths.")
    r2_log_bands: float = share("R squared (adjusted) of 20 bands of prompt length: any shape of dependence.")
    mae_tokens: float = tokens("Mean error of a band's median, learned on the other half of the records.")
    mae_constant_tokens: float = tokens("Mean error of the overall median, learned so too.")


class Predicted(Keys):
    """What a predictor's medians tell about the lengths here."""

    predictor: str = key("The checkpoint.")
    rows: int = key("Records predicted: a seeded sample.", "count")
    rows_are: Literal["held out", "all"] = key("`held out` of the training; `all`: it was trained on another trace.")
    mae_tokens: float = tokens("Mean error of the predicted median.")
    mae_constant_tokens: float = tokens("Mean error of always saying the median of these records.")
    within_50: float = share("Share within 50 tokens.")
    within_100: float = share("Share within 100 tokens.")
    kendall_tau: float = key("Kendall's tau-b.")
    r2_log: float = key("1 - squared error / variance, of logs; below 0: worse than a constant.")
    coverage_50: float = share("Share of answers not longer than the predicted median; should be 0.5.")
    coverage_90: float = share("Share not longer than the predicted 90 % quantile; should be 0.9.")
    coverage_95: float = share("Share not longer than the predicted 95 % quantile; should be 0.95.")


class Window(Keys):
    """One piece of the trace, in the order of time or of the file."""

    n: int = key("Records.", "count")
    begin_s: float | None = maybe("First arrival.", "s")
    end_s: float | None = maybe("Last arrival.", "s")
    p50: int = tokens("Median.")
    p50_low: int = tokens("Lower end of its 95 % interval, records of one conversation counted as related.")
    p50_high: int = tokens("Upper end.")
    p90: int = tokens("90th percentile.")
    p90_low: int = tokens("Lower end of its 95 % interval.")
    p90_high: int = tokens("Upper end.")


class Drift(Keys):
    """Whether lengths change over the trace."""

    order: Literal["arrival", "file"] = key("What the order is: recorded arrivals, or merely the file.")
    windows: list[Window] = key("Equally many records each.")
    trend_tau: float | None = maybe("Mann-Kendall: Kendall's tau of windows' medians and numbers; + is longer.")
    trend_p: float | None = maybe("How often chance alone gives such a trend.", "share 0..1")
    between_windows: float = share("Share of the variance of log length between windows, chance taken off.")
    between_windows_p: float = maybe("How often chance alone gives such differences between windows.", "share 0..1")
    change_tokens: float = key("Mean of the second half minus mean of the first.", "tokens")
    change_low_tokens: float = key("Lower end of its 95 % interval.", "tokens")
    change_high_tokens: float = key("Upper end.", "tokens")
    mix_tokens: float | None = maybe("Of that change: other kinds of requests (prompt length, turn, model).", "tokens")
    within_tokens: float | None = maybe("Of that change: longer answers to the same kind of request.", "tokens")
    kind: Literal["none", "small", "marked"] = key("`none`: nothing beyond chance.")
    verdict: str = key("The same in words.")


class Arrivals(Keys):
    """When requests came, where that was recorded."""

    rows: int = key("Records with an arrival.", "count")
    duration_s: float = key("From the first to the last.", "s")
    rate_rps: float = key("Mean rate.", "requests/s")
    gap_cv: float | None = maybe("Coefficient of variation of the gaps; 1 for a Poisson process, more is burstier.")
    dispersion_1s: float | None = maybe("Variance over mean of the count in a second; 1 for a Poisson process.")
    dispersion_10s: float | None = maybe("The same of 10 seconds.")
    dispersion_60s: float | None = maybe("The same of a minute.")
    busiest_second_rps: float = key("Most in any whole second of the trace's clock.", "requests/s")
    busiest_minute_rps: float | None = maybe("Mean rate of the busiest minute.", "requests/s")
    busiest_hour_rps: float | None = maybe("The same of the busiest hour; null below two hours.", "requests/s")
    output_tokens_per_s: float = key("Answers' tokens over the duration.", "tokens/s")


class Reservation(Keys):
    """One way to reserve KV for an answer before it is known."""

    policy: str = key(
        "`max_tokens`, `on demand`, `true length`, `p90` (`per prompt band`), `predicted p90`, `longest other answer`."
    )
    rows: int = key("Records this is computed on.", "count")
    mean_reserved_tokens: float = tokens("Mean reservation for an answer.")
    overflow_share: float = share("Share of answers that outgrow their reservation.")
    waste_share: float = share(
        "1 - used / reserved token-time of the KV, prompts included. A slot holds prompt + reservation for one step a "
        "token of the answer, and uses prompt + tokens written; an overflowing answer continues token by token."
    )
    answer_waste_share: float = share("The same, prompts left out.")
    concurrency: float = key("Mean number of requests that fit at once, over that with max_tokens.")


class Waste(Keys):
    """What reserving wastes."""

    max_tokens: int = tokens("Reserved by `max_tokens`: the median of the records' own, the given one, or the cap.")
    max_tokens_from: Literal["trace", "given", "cap", "longest"] = key("Where that comes from.")
    prompts_known: bool = key("Whether prompts' lengths are known; if not they count as nothing.")
    reservations: list[Reservation] = key("The ways to reserve, on all records or the sample that has what they need.")


class Ordering(Keys):
    """One way to order a queue."""

    by: str = key(
        "`true length`, `one other answer`, `mean of the other answers`, `predictor`, `prompt length` (band's median)."
    )
    rows: int = key("Records this is computed on.", "count")
    wait_saved: float = key(
        "Share of the mean wait saved by serving a long queue shortest first by this guess, not in order of arrival."
    )


class Curve(Keys):
    """Points of a line."""

    name: str = key("What it is.")
    x: list[float] = key("Along.")
    y: list[float | None] = key("Up.")


class Curves(Keys):
    """What the plots show."""

    histogram_edges: list[int] = key("Bin k holds the lengths edges[k] + 1 to edges[k + 1].", "tokens")
    histogram_ended: list[int] = key("Answers that ended, per bin.", "count")
    histogram_cut: list[int] = key("Answers cut off, per bin.", "count")
    survival: list[Curve] = key("Share of answers longer than x: as seen (Kaplan-Meier), and by each law.")
    density_prompt_edges: list[int] = key("Bins of prompt length.", "tokens")
    density_response_edges: list[int] = key("Bins of response length.", "tokens")
    density: list[list[int]] = key("Records per prompt bin (rows) and response bin.", "count")
    errors: list[Curve] = key("Share of answers predicted to within x tokens, by each guess.")
    spread_edges: list[float] = key("Bins of the coefficient of variation within a prompt.")
    spread: list[int] = key("Prompts per bin.", "count")
    rate_s: list[float] = key("Beginning of each piece of time.", "s")
    rate_rps: list[float] = key("Mean rate in it.", "requests/s")


class Source(Keys):
    """The trace."""

    source: str = key("Path or hub id.")
    format: str = key("Format it was read as.")
    sha256: str = key("Fingerprint of the records as they came, before a cap found at the end marks the cut-off ones.")
    length_source: str = key("Where response lengths come from.")
    prompt_length_source: str = key("Where prompt lengths come from.")
    rows_in: int = key("Rows read.", "count")
    records: int = key("Records profiled.", "count")
    conversations: int = key("Conversations among them.", "count")
    dropped: dict[str, int] = key("Reason -> exchanges dropped.")
    noted: dict[str, int] = key("Peculiarity -> how often.")
    stated: list[str] = key("How times and blocks of prefix hashes were read.", default=[])
    warnings: list[str] = key(
        "What was guessed, and fields not used that look like a count, a time, a session.", default=[]
    )
    models: int = key("Served models named.", "count")
    design_effect: float = key("Factor on variances, for a conversation's records are alike; 1: none.")


class Profile(Keys):
    """The whole of ``profile.json``."""

    schema_version: Literal[1] = key("Version of this layout.", default=SCHEMA_VERSION)
    answer: list[str] = key("The profile in a few sentences: length, tail, predictability, waste, worth.")
    worth: Literal["yes", "no", "perhaps", "unknown"] = key("Whether predicting lengths pays on this traffic.")
    trace: Source = key("Where the records come from.")
    response: Lengths = key("Response lengths.")
    prompt: Lengths | None = maybe("Prompt lengths.")
    thinking: Lengths | None = maybe("Tokens of thinking, of the responses whose thinking is counted.")
    visible: Lengths | None = maybe("What those responses have beside their thinking; 0: cut off before it ended.")
    groupings: list[Grouping] = key("Response lengths by turn, prompt length, model, language, split: those there are.")
    tail: Tail = key("The longest answers.")
    same_prompt: SamePrompt | None = maybe("Several answers to one prompt; null where no prompt repeats.")
    same_prompt_by_model: list[SamePrompt] = key("The same for each model, where several have repeats.")
    across_models: AcrossModels | None = maybe("The same prompts answered by several models.")
    prompt_length: PromptLength | None = maybe("What prompt length alone tells.")
    predicted: Predicted | None = maybe("What a predictor tells.")
    drift: Drift | None = maybe("Change over the trace; null for fewer than 200 records.")
    arrivals: Arrivals | None = maybe("Arrivals, where they were recorded.")
    waste: Waste = key("What reservations waste.")
    orderings: list[Ordering] = key("What serving the shortest first would save.")
    curves: Curves = key("What the plots show.")
    seed: int = key("Seed of every sample and bootstrap.")
    notes: list[str] = key("Limits of the figures.")
