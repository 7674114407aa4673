"""The page of one profile: the answer first, then lengths, groups, predictability, waste, time."""

from __future__ import annotations

from importlib.metadata import version
from typing import Final, TypeVar

from ecoserve.data.profiling.model import Profile, Source
from ecoserve.data.profiling.reporting import length_figures, spread_figures, tables, time_figures, worth_figures
from ecoserve.data.profiling.reservation import find
from ecoserve.data.profiling.statements import VERDICTS, percent
from ecoserve.pages import Answer, Page, Section, Statement, Tile, Tone, render_page, write

T = TypeVar("T")

#: Words a newcomer meets on the page.
GLOSSARY: Final = (
    ("Token", "What a model reads and writes: about four characters of English."),
    ("Length", "Tokens of one answer (response length), its end mark included where that is known."),
    ("Percentile", "The 90th is the least length that 90 % of the answers do not exceed."),
    ("Cut off", "The answer reached a limit and would have been longer; Kaplan–Meier estimates allow for that."),
    ("KV cache", "Memory in which the engine keeps what it has computed for each running request. It is what "
     "runs out first, and reserving too much of it keeps others waiting."),
    ("max_tokens", "The longest answer a request allows; what a server must reserve if it knows nothing better."),
    ("Explained", "Share of the variance that goes when the group or the prompt is known; 100 % is all of it."),
    ("Kendall’s τ", "How well lengths are ranked: 1 is the right order, 0 is chance."),
    ("CV", "Coefficient of variation: standard deviation divided by the mean."),
    ("Tail index", "How the longest answers thin out: 0 as an exponential law, above 0 more slowly, as "
     "a power law, below 0 they come to an end."),
    ("95 % interval", "Where the figure would lie 19 times out of 20 with other answers of the same traffic; "
     "records of one conversation count as related."),
)  # fmt: skip

_TONES: Final[dict[str, Tone]] = {"yes": "good", "no": "bad", "perhaps": "quiet", "unknown": "quiet"}


def render_profile(profile: Profile, commands: list[str] | None = None) -> str:
    """The page as text.

    Args:
        profile: what it shows.
        commands: command lines that made it.
    """
    trace = profile.trace
    page = Page(
        kind="ecoserve profile",
        title=f"Response lengths of {source_name(trace.source)}",
        subtitle=subtitle(trace),
        answer=_answer(profile),
        sections=_sections(profile),
        source_missing="Not in this trace",
        glossary=GLOSSARY,
        facts=[*facts(trace), ("Seed", str(profile.seed))],
        facts_title="Source and methods",
        commands=commands or [],
        closing="The same figures for scripts: profile.json in the same folder.",
        version=version("ecoserve"),
    )
    return render_page(page)


def source_name(source: str) -> str:
    """A path's last part; a hub id as it is."""
    return source.rpartition("/")[2] if source.startswith(("/", ".")) or source.count("/") > 1 else source


def subtitle(trace: Source) -> list[str]:
    """The line beneath the title."""
    return [
        f"{trace.records:,} answers",
        *([f"{trace.conversations:,} conversations"] if trace.conversations < trace.records else []),
        *([f"{trace.models} models"] if trace.models > 1 else []),
        f"lengths from {trace.length_source}",
    ]


def facts(trace: Source) -> list[tuple[str, str]]:
    """Where the records come from, name and value."""

    def listed(counts: dict[str, int]) -> str:
        return ", ".join(f"{n:,} {what}" for what, n in sorted(counts.items(), key=lambda kv: -kv[1])) or "none"

    return [
        ("Trace", f"{trace.source}, read as {trace.format}"),
        ("Records", f"{trace.rows_in:,} rows in, {trace.records:,} records kept; dropped: {listed(trace.dropped)}"),
        *([("Of those kept", listed(trace.noted))] if trace.noted else []),
        ("Answers’ lengths", trace.length_source),
        ("Prompts’ lengths", trace.prompt_length_source),
        ("Design effect", f"{write(trace.design_effect)} (intervals are wider by its square root)"),
        ("SHA-256 of the records", trace.sha256),
    ]


def _answer(profile: Profile) -> Answer:
    long, heavy, predictable, wasted, worth = profile.answer
    r = profile.response
    tiles = [
        Tile(
            f"{r.p50:,} tokens", "median answer", f"mean {r.mean or 0:,.0f}; half lie between {r.p25:,} and {r.p75:,}"
        ),
        Tile(f"{r.p99:,} tokens", "one answer in a hundred is longer", f"90th percentile {r.p90:,}"),
    ]
    most = find(profile.waste, "max_tokens")
    if most is not None:
        tiles.append(
            Tile(
                percent(most.waste_share), f"of the KV cache unused if {profile.waste.max_tokens:,} tokens are reserved"
            )
        )
    tiles.append(_predictability(profile))
    return Answer(
        headline=headline(profile),
        tiles=tiles,
        statements=[
            Statement("How long", long),
            Statement("How heavy the tail", heavy),
            Statement("How predictable", predictable),
            Statement("What reserving wastes", wasted),
            Statement("Is prediction worth it", worth, _TONES[profile.worth]),
            *([Statement("Does it change", profile.drift.verdict)] if profile.drift is not None else []),
            *([Statement("Take care", " ".join(profile.notes))] if profile.notes else []),
        ],
    )


def headline(profile: Profile) -> str:
    """The profile in one sentence."""
    r, verdict = profile.response, VERDICTS[profile.worth]
    return f"Half of the answers have {r.p25:,} to {r.p75:,} tokens, one in a hundred more than {r.p99:,}. {verdict}."


def _predictability(profile: Profile) -> Tile:
    same, told, by_length = profile.same_prompt, profile.predicted, profile.prompt_length
    if same is not None:
        return Tile(
            percent(same.icc),
            "of the variance is the prompt’s",
            f"95 % interval {percent(same.icc_low)} to {percent(same.icc_high)}",
        )
    if told is not None:
        return Tile(write(told.mae_tokens, "tokens"), "mean error of the predictor", f"{told.rows:,} answers")
    across = profile.across_models
    if across is not None and across.prompt_share is not None:
        return Tile(percent(across.prompt_share), "of the variance is the prompt’s, whichever model answers")
    if by_length is not None:
        return Tile(percent(by_length.r2_log_bands), "of the variance is told by the prompt’s length alone")
    return Tile("unknown", "how far a prompt decides the length")


def _sections(profile: Profile) -> list[Section]:
    return [
        Section(
            "lengths",
            "How long answers are",
            "Everything that is reserved, queued and billed hangs on these numbers.",
            (tables.lengths_table(profile),),
            (length_figures.histogram(profile),),
        ),
        Section(
            "tail",
            "The longest answers",
            "They decide the worst case, and how long a machine is busy after the others are done.",
            some(tables.laws_table(profile), tables.indices_table(profile)),
            (length_figures.survival(profile),),
        ),
        Section(
            "groups",
            "Who gets long answers",
            "Where the groups differ, knowing the group is already a prediction.",
            figures=some(length_figures.groups(profile), length_figures.density(profile)),
            missing="groups to compare",
        ),
        Section(
            "predictability",
            "How predictable lengths are",
            "One prompt has many lengths. What other answers to it tell bounds what any predictor can.",
            some(tables.guesses_table(profile), tables.same_prompt_table(profile), tables.models_table(profile)),
            some(spread_figures.errors(profile), spread_figures.spread(profile)),
            missing="prompts that were answered more than once, or prompts’ lengths",
        ),
        Section(
            "waste",
            "What knowing lengths is worth",
            "Memory that is not reserved in vain serves others; short answers that go first wait less.",
            figures=(worth_figures.reservations(profile), worth_figures.orders(profile)),
        ),
        Section(
            "time",
            "Over the trace",
            "A predictor learns from yesterday. Where lengths drift, it has to be followed up.",
            some(tables.arrivals_table(profile)),
            some(time_figures.drift(profile), time_figures.rate(profile)),
            missing="enough records to look for drift",
        ),
    ]


def some(*items: T | None) -> tuple[T, ...]:
    """Those that are there."""
    return tuple(item for item in items if item is not None)
