"""The page of one profile: the answer first, then lengths, groups, predictability, waste, time."""

from __future__ import annotations

from importlib.metadata import version
from typing import Final

from ecoserve.data.profiling.model import Profile, Source
from ecoserve.data.profiling.reporting import length_figures, tables, worth_figures
from ecoserve.data.profiling.statements import VERDICTS, percent
from ecoserve.data.profiling.worth import find
from ecoserve.pages import Page, Section, Statement, Tile, Tone, render_page, write

GLOSSARY: Final = (
    ("Token", "What a model reads and writes: about four characters of English."),
    ("Length", "Tokens of one answer (response length), its end mark included where that is known."),
    ("Percentile", "The 90th is the least length that 90 % of the answers do not exceed."),
    ("Cut off", "The answer reached a limit and would have been longer; Kaplan–Meier estimates allow for that."),
    ("KV cache", "Memory in which the engine keeps what it has computed for each running request. It is what "
     "runs out first, and reserving too much of it keeps other requests waiting."),
    ("max_tokens", "The longest answer a request allows; what a server must reserve if it has no prediction."),
    ("Explained", "Share of the variance that goes when the group or the prompt is known; 100 % is all of it."),
    ("Kendall’s τ", "How well lengths are ranked: 1 is the right order, 0 is chance."),
    ("CV", "Coefficient of variation: standard deviation divided by the mean."),
    ("Tail index", "How the longest answers thin out: 0 as an exponential law, above 0 more slowly, as "
     "a power law, below 0 they come to an end."),
    ("95 % interval", "Where the figure would lie 19 times out of 20 with other answers of the same traffic; "
     "records of one conversation count as related."),
)  # fmt: skip

_TONES: Final[dict[str, Tone]] = {"yes": "good", "no": "bad", "perhaps": "quiet", "unknown": "quiet"}

SECTIONS: Final[tuple[Section[Profile], ...]] = (
    Section(
        "lengths",
        "How long answers are",
        "Reservations, queueing and cost depend on these numbers.",
        [tables.lengths_table, length_figures.histogram],
    ),
    Section(
        "tail",
        "The longest answers",
        "They decide the worst case, and how long a machine is busy after the others are done.",
        [tables.laws_table, tables.indices_table, length_figures.survival],
    ),
    Section(
        "groups",
        "Which requests get long answers",
        "Where the groups differ, knowing the group is already a prediction.",
        [length_figures.groups, length_figures.density],
        missing="groups to compare",
    ),
    Section(
        "predictability",
        "How predictable lengths are",
        "One prompt has many lengths. Its other answers bound what any predictor can reach.",
        [
            tables.guesses_table,
            tables.same_prompt_table,
            tables.models_table,
            worth_figures.errors,
            worth_figures.spread,
        ],
        missing="prompts that were answered more than once, or prompts’ lengths",
    ),
    Section(
        "waste",
        "What knowing lengths is worth",
        "Memory that is not over-reserved serves other requests. Serving short answers first reduces the mean wait.",
        [worth_figures.reservations, worth_figures.orders],
    ),
    Section(
        "time",
        "Over the trace",
        "A predictor learns from past traffic. Where lengths drift, it has to be updated.",
        [tables.arrivals_table, worth_figures.drift, worth_figures.rate],
        missing="enough records to look for drift",
    ),
)


def render_profile(profile: Profile, commands: list[str] | None = None) -> str:
    """The page as text; ``commands`` are the command lines that made the profile."""
    trace = profile.trace
    r, verdict = profile.response, VERDICTS[profile.worth]
    page = Page(
        kind="ecoserve profile",
        title=f"Response lengths of {source_name(trace.source)}",
        subtitle=[
            f"{trace.records:,} answers",
            *([f"{trace.conversations:,} conversations"] if trace.conversations < trace.records else []),
            *([f"{trace.models} models"] if trace.models > 1 else []),
            f"lengths from {trace.length_source}",
        ],
        headline=f"Half of the answers have {r.p25:,} to {r.p75:,} tokens, one in a hundred more than {r.p99:,}. "
        f"{verdict}.",
        tiles=_tiles(profile),
        statements=_statements(profile),
        sections=[section.build(profile) for section in SECTIONS],
        missing_title="Not in this trace",
        glossary=GLOSSARY,
        facts=[*facts(trace), ("Seed", str(profile.seed))],
        facts_title="Source and methods",
        commands=commands or [],
        closing="The same numbers for scripts: profile.json in the same folder.",
        version=version("ecoserve"),
    )
    return render_page(page)


def source_name(source: str) -> str:
    """A path's last part; a hub id as it is."""
    return source.rpartition("/")[2] if source.startswith(("/", ".")) or source.count("/") > 1 else source


def facts(trace: Source) -> list[tuple[str, str]]:

    def listed(counts: dict[str, int]) -> str:
        return ", ".join(f"{n:,} {what}" for what, n in sorted(counts.items(), key=lambda kv: -kv[1])) or "none"

    return [
        ("Trace", f"{trace.source}, read as {trace.format}"),
        ("Records", f"{trace.rows_in:,} rows in, {trace.records:,} records kept; dropped: {listed(trace.dropped)}"),
        *([("Of those kept", listed(trace.noted))] if trace.noted else []),
        *([("Read so", "; ".join(trace.stated))] if trace.stated else []),
        *([("Warnings", "; ".join(trace.warnings))] if trace.warnings else []),
        ("Answers’ lengths", trace.length_source),
        ("Prompts’ lengths", trace.prompt_length_source),
        ("Design effect", f"{write(trace.design_effect)} (intervals are wider by its square root)"),
        ("SHA-256 of the records", trace.sha256),
    ]


def _statements(profile: Profile) -> list[Statement]:
    long, heavy, predictable, wasted, worth = profile.answer
    return [
        Statement("How long", long),
        Statement("How heavy the tail", heavy),
        Statement("How predictable", predictable),
        Statement("What reserving wastes", wasted),
        Statement("Is prediction worth it", worth, _TONES[profile.worth]),
        *([Statement("Does it change", profile.drift.verdict)] if profile.drift is not None else []),
        *([Statement("Take care", " ".join(profile.notes))] if profile.notes else []),
    ]


def _tiles(profile: Profile) -> list[Tile]:
    r, waste = profile.response, profile.waste
    most = find(waste, "max_tokens")
    middle = f"mean {r.mean or 0:,.0f}; half lie between {r.p25:,} and {r.p75:,}"
    tiles = [
        Tile(f"{r.p50:,} tokens", "median answer", middle),
        Tile(f"{r.p99:,} tokens", "one answer in a hundred is longer", f"90th percentile {r.p90:,}"),
    ]
    if most is not None:
        label = f"of the KV cache unused if {waste.max_tokens:,} tokens are reserved"
        tiles.append(Tile(percent(most.waste_share), label))
    return [*tiles, _predictability(profile)]


def _predictability(profile: Profile) -> Tile:
    same, predicted, across = profile.same_prompt, profile.predicted, profile.across_models
    if same is not None:
        interval = f"95 % interval {percent(same.icc_low)} to {percent(same.icc_high)}"
        return Tile(percent(same.icc), "of the variance is explained by the prompt", interval)
    if predicted is not None:
        answers = f"{predicted.rows:,} answers"
        return Tile(write(predicted.mae_tokens, "tokens"), "mean error of the predictor", answers)
    if across is not None and across.prompt_share is not None:
        return Tile(percent(across.prompt_share), "of the variance is explained by the prompt, whichever model answers")
    if profile.prompt_length is not None:
        explained = percent(profile.prompt_length.r2_log_bands)
        return Tile(explained, "of the variance is explained by the prompt’s length alone")
    return Tile("unknown", "how far a prompt decides the length")
