"""The page of two traces side by side: the verdict first, then distributions, groups, and the same prompts."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any, Final

from ecoserve.data.profiling.comparison_model import Comparison
from ecoserve.data.profiling.comparison_words import VERDICTS
from ecoserve.data.profiling.reporting import comparison_figures as figures
from ecoserve.data.profiling.reporting.page import GLOSSARY, facts, some, source_name
from ecoserve.data.profiling.reporting.words import GROUPING_TITLES, between, number
from ecoserve.data.profiling.statements import percent
from ecoserve.pages import Answer, Cell, Column, Page, Section, Statement, Table, Tile, Tone, render_page, write

_WORDS: Final = (
    *GLOSSARY[:5],
    ("Kolmogorov–Smirnov distance", "The largest difference of the shares of answers up to a length."),
    ("PSI", "Population stability index: how far the shares of A’s ten tenths have moved; by custom above 0.1 is some "
     "shift, above 0.25 much."),
    ("Recalibrate", "Keep the predictor’s order of prompts, and stretch the lengths that it says."),
    *GLOSSARY[-1:],
)  # fmt: skip
_TONES: Final[dict[str, Tone]] = {"same": "good", "small": "good", "recalibrate": "", "retrain": "bad"}


def render_comparison(comparison: Comparison, commands: list[str] | None = None) -> str:
    """The page as text.

    Args:
        comparison: what it shows.
        commands: command lines that made it.
    """
    c = comparison
    page = Page(
        kind="ecoserve profile",
        title=f"{source_name(c.a.source)} (A) against {source_name(c.b.source)} (B)",
        subtitle=[f"{side.records:,} answers, lengths from {side.length_source}" for side in (c.a, c.b)],
        answer=_answer(c),
        sections=_sections(c),
        source_missing="Not to be compared here",
        glossary=_WORDS,
        facts=[(f"{name}: {key}", value) for name, side in (("A", c.a), ("B", c.b)) for key, value in facts(side)],
        facts_title="Sources and methods",
        commands=commands or [],
        closing="The same figures for scripts: comparison.json in the same folder.",
        version=version("ecoserve"),
    )
    return render_page(page)


def _answer(c: Comparison) -> Answer:
    differ, *more, _ = c.answer
    a, b = c.response_a, c.response_b
    tiles = [
        Tile(f"{a.p50:,} → {b.p50:,}", "median, tokens", f"90th percentile {a.p90:,} → {b.p90:,}"),
        Tile(
            percent(c.ks),
            "largest difference of the shares up to a length",
            f"95 % interval {percent(c.ks_low)} to {percent(c.ks_high)}; chance alone {percent(c.ks_by_chance)}",
        ),
    ]
    if c.shared_prompts:
        s = c.shared_prompts[0]
        ratio = f"95 % interval {between(s.ratio_low, s.ratio_high)}"
        tiles.append(Tile(f"{write(s.ratio)}×", f"length of B’s answers to {s.prompts:,} shared prompts", ratio))
        within = "" if s.tau_within_a is None else f"between two answers in A: {s.tau_within_a:.2f}"
        tiles.append(Tile(f"τ {s.kendall_tau:.2f}", "agreement which of them are long", within))
    return Answer(
        headline=f"{VERDICTS[c.verdict]}.",
        tiles=tiles,
        statements=[
            Statement("How far apart", differ),
            *(Statement(heading, text) for heading, text in zip(_headings(c), more, strict=True)),
            Statement("What the verdict rests on", _sentence(c.reasons), _TONES[c.verdict]),
            *([Statement("Take care", " ".join(c.notes))] if c.notes else []),
        ],
    )


def _headings(c: Comparison) -> list[str]:
    """Headings of the sentences between the first and the verdict, as they are there."""
    mixed = ["Other requests, or other answers"] if c.mix_log is not None and c.within_log is not None else []
    return mixed + (["The same prompts"] if c.shared_prompts else [])


def _sections(c: Comparison) -> list[Section]:
    return [
        Section(
            "distributions",
            "How long answers are",
            "A and B on the same axes.",
            (_quantiles(c), _distances(c)),
            (figures.histograms(c), figures.survival(c), figures.quantile_differences(c)),
        ),
        Section(
            "prompts",
            "The same prompts",
            "What another model, another setting or another day makes of the same prompts.",
            some(_shared(c)),
            some(figures.shared(c)),
            missing="prompts that are in both traces",
        ),
        Section(
            "groups",
            "Who is in A, who is in B",
            "Shares and median lengths by group.",
            some(_groups(c)),
            missing="groups to compare",
        ),
    ]


def all_tables(c: Comparison) -> tuple[Table, ...]:
    """The page's tables, for the terminal."""
    return some(_quantiles(c), _distances(c), _shared(c), _groups(c))


def _quantiles(c: Comparison) -> Table:
    return Table(
        "quantiles",
        "Quantiles in tokens. Beneath the difference: its 95 % interval (bootstrap).",
        [Column("Quantile", number=False), Column("A"), Column("B"), Column("B − A"), Column("B / A")],
        [
            [
                Cell(f"{100 * q.q:g} %", raw=q.q), number(q.a), number(q.b),
                Cell(_signed(q.difference), f"{_signed(q.low)} to {_signed(q.high)}", q.difference), number(q.ratio),
            ]
            for q in c.quantiles
        ],
    )  # fmt: skip


def _distances(c: Comparison) -> Table:
    rows: list[tuple[str, Cell]] = [
        ("Kolmogorov–Smirnov distance", Cell(percent(c.ks), between(c.ks_low, c.ks_high, "share"), c.ks)),
        ("… that equal traffic exceeds one time in 20", number(c.ks_by_chance, "share")),
        ("Population stability index", number(c.psi)),
        ("Wasserstein distance of log lengths", number(c.wasserstein_log)),
        ("Stretched: scale", number(c.scale)),
        ("Stretched: power", number(c.power)),
        ("Distance left after stretching", number(c.aligned_ks, "share")),
        ("B’s prompts outside the middle 99 % of A’s lengths", number(c.new_prompt_lengths, "share")),
        ("B’s prompts in languages that A hardly has", number(c.new_languages, "share")),
    ]
    return Table(
        "distances",
        "Distances between A and B.",
        [Column("", number=False), Column("Value")],
        [[Cell(name), value] for name, value in rows],
    )


def _shared(c: Comparison) -> Table | None:
    if not c.shared_prompts:
        return None
    return Table(
        "shared",
        "The same prompts answered in A and in B.",
        [
            Column("Model in A", number=False), Column("Model in B", number=False), Column("Prompts"),
            Column("B / A", "Geometric mean; beneath, its 95 % interval."),
            Column("Spread", "Standard deviation of the log of that quotient."),
            Column("Apart (tokens)", "Mean distance between the two."),
            Column("τ", "Kendall’s τ: are the same prompts long in both?"),
            Column("τ within A", "The same between two answers in A: what chance leaves."),
        ],
        [
            [
                Cell(s.model_a), Cell(s.model_b), number(s.prompts),
                Cell(number(s.ratio).text, between(s.ratio_low, s.ratio_high), s.ratio), number(s.sd_log_ratio),
                number(s.mae_tokens), number(s.kendall_tau), number(s.tau_within_a),
            ]
            for s in c.shared_prompts
        ],
    )  # fmt: skip


def _groups(c: Comparison) -> Table | None:
    if not c.groups:
        return None
    return Table(
        "groups",
        "Groups of A and B.",
        [
            Column("Group", number=False), Column("Share of A"), Column("Share of B"), Column("Median in A"),
            Column("Median in B"),
        ],
        [
            [Cell(g.name), number(g.share_a, "share"), number(g.share_b, "share"), number(g.p50_a), number(g.p50_b)]
            for g in c.groups
        ],
        [GROUPING_TITLES[g.by] for g in c.groups],
        "Grouped by",
    )  # fmt: skip


def _sentence(parts: list[str]) -> str:
    text = "; ".join(parts)
    return f"{text[:1].upper()}{text[1:]}."


def _signed(value: Any) -> str:
    return f"{value:+,.0f}".replace("-", "−") if value else "0"
