"""The page of two traces side by side: the verdict first, then distributions, groups, and the same prompts."""

from __future__ import annotations

from importlib.metadata import version
from itertools import pairwise
from typing import Final

from ecoserve.data.profiling.comparison import VERDICTS, Comparison
from ecoserve.data.profiling.reporting.length_figures import GROUPING_TITLES, per_doubling, percents, span
from ecoserve.data.profiling.reporting.page import GLOSSARY, facts, source_name
from ecoserve.data.profiling.statements import percent
from ecoserve.pages import (
    Cell,
    Column,
    Figure,
    Page,
    Section,
    Statement,
    Table,
    Tile,
    Tone,
    plain,
    plots,
    render_page,
    signed,
    write,
    write_range,
)

#: Name, slot and dash of the two traces.
_SIDES: Final = (("A", 1, "solid"), ("B", 2, "dash"))


def histograms(c: Comparison) -> Figure:
    bins = list(pairwise(c.histogram_edges))
    edges = [edge + 0.5 for edge in c.histogram_edges]
    traces = []
    for (name, slot, dash), counts in zip(_SIDES, (c.histogram_a, c.histogram_b), strict=True):
        total = sum(counts)
        heights = per_doubling(c.histogram_edges, counts, total)
        text = [f"{name}: {span(*x)} tokens<br>{write(n / total, 'share')}" for x, n in zip(bins, counts, strict=True)]
        # Steps need the last value twice.
        steps: plots.Trace = {"text": [*text, text[-1]], "hover": "%{text}", "steps": True}
        traces.append(plots.line(edges, [*heights, heights[-1]], slot, name, dash=dash, **steps))
    rows = [[span(*x), a, b] for x, a, b in zip(bins, c.histogram_a, c.histogram_b, strict=True)]
    table = Table("histograms", "Answers by length.", ["Tokens", "A", "B"], rows)
    alt = f"Histograms of lengths: median {c.response_a.p50} in A, {c.response_b.p50} in B."
    x, y = plots.tokens_axis("tokens of the answer"), plots.from_zero("answers per doubling (%)")
    explained = "The height is the share of all answers per doubling of length."
    return Figure("histograms", "Answers by length", explained, [plots.panel(traces, alt, x=x, y=y)], table)


def survival(c: Comparison) -> Figure:
    traces = []
    columns = ["Tokens", Column("Share that is longer", unit="share")]
    table = Table("survival", "Share of answers that are longer.", columns, group_title="Trace")
    for (name, slot, dash), curve in zip(_SIDES, c.survival, strict=True):
        looks: plots.Trace = {"hover": f"{name}: %{{y:.3g}} % have more than %{{x:,.0f}} tokens", "width": 2.6}
        traces.append(plots.line(curve.x, percents(curve.y, positive=True), slot, name, dash=dash, **looks))
        for x, share in zip(curve.x, curve.y, strict=True):
            table.add([int(x), share], curve.name)
    distance = write(c.ks, "share")
    tokens, y = plots.tokens_axis("tokens of the answer"), plots.from_zero("answers that are longer (%)", percent=True)
    plot = plots.panel(traces, f"Survival in A and B; largest distance {distance}.", x=tokens, y=y)
    text = f"The largest distance between the lines is {distance}."
    return Figure("survival", "How many are longer", text, [plot], table)


def quantile_differences(c: Comparison) -> Figure:
    found = c.quantiles
    names = [f"{100 * q.q:g} %" for q in found]
    x = [q.difference for q in found]
    bars = plots.whiskers(x, [q.low for q in found], [q.high for q in found], 2)
    text = [f"{name}: {q.a:,} → {q.b:,}" for name, q in zip(names, found, strict=True)]
    trace = plots.points(x, list(range(len(names))), 2, size=11, error_x=bars, text=text, hover="%{text}")
    rows = [[name, q.difference, q.low, q.high] for name, q in zip(names, found, strict=True)]
    table = Table("differences", "Differences of quantiles.", ["Quantile", "B − A", "From", "To"], rows)
    spoken = "; ".join(f"{name}: {q.difference:+d} tokens" for name, q in zip(names, found, strict=True))
    axes: plots.Trace = {"x": plots.axis("B − A, tokens", zeroline=True), "y": plots.names_axis(names)}
    plot = plots.panel([trace], f"Differences of quantiles. {spoken}.", **axes, height=110 + 30 * len(names))
    explained = "Difference of each quantile, with its 95 % interval. Right of zero B is longer."
    return Figure("differences", "Where B differs", explained, [plot], table)


def shared(c: Comparison) -> Figure | None:
    if not c.shared_prompts or not c.shared_points:
        return None
    s = c.shared_prompts[0]
    a, b = ([point[i] for point in c.shared_points] for i in (0, 1))
    ends = [min(*a, *b), max(*a, *b)]
    traces = [
        plots.line(ends, ends, 0, dash="dot", width=1.5),
        plots.points(a, b, 1, size=5, opacity=0.45, hover="A %{x:.0f}, B %{y:.0f} tokens"),
    ]
    text = f"B’s answers to the same prompts are {write(s.ratio)} times as long; Kendall’s τ {s.kendall_tau:.2f}."
    x, y = (plots.tokens_axis(f"tokens in {n} ({plain(m)})") for n, m in (("A", s.model_a), ("B", s.model_b)))
    plot = plots.panel(traces, text, x=x, y=y, height=460)
    caption = f"Lengths of {len(a):,} of the {s.prompts:,} prompts in both, in tokens."
    table = Table("shared-points", caption, ["A", "B"], c.shared_points)
    text += " On the dotted line both are equally long."
    return Figure("shared-points", "Each dot is a prompt", text, [plot], table)


_WORDS: Final = (
    *GLOSSARY[:5],
    ("Kolmogorov–Smirnov distance", "The largest difference of the two cumulative distributions."),
    ("PSI", "Population stability index: how far the shares of A’s ten tenths have moved; by custom above 0.1 is some "
     "shift, above 0.25 much."),
    ("Recalibrate", "Keep the predictor’s order of prompts, and rescale the lengths that it predicts."),
    *GLOSSARY[-1:],
)  # fmt: skip
_TONES: Final[dict[str, Tone]] = {"same": "good", "small": "good", "recalibrate": "", "retrain": "bad"}
_UNIT: Final = "share"


def render_comparison(comparison: Comparison, commands: list[str] | None = None) -> str:
    """The page as text; ``commands`` are the command lines that made the comparison."""
    c = comparison
    page = Page(
        kind="ecoserve profile",
        title=f"{source_name(c.a.source)} (A) against {source_name(c.b.source)} (B)",
        subtitle=[f"{side.records:,} answers, lengths from {side.length_source}" for side in (c.a, c.b)],
        headline=f"{VERDICTS[c.verdict]}.",
        tiles=_tiles(c),
        statements=_statements(c),
        sections=[section.build(c) for section in SECTIONS],
        missing_title="Cannot be compared here",
        glossary=_WORDS,
        facts=[(f"{name}: {key}", value) for name, side in (("A", c.a), ("B", c.b)) for key, value in facts(side)],
        facts_title="Sources and methods",
        commands=commands or [],
        closing="The same numbers for scripts: comparison.json in the same folder.",
        version=version("ecoserve"),
    )
    return render_page(page)


def _tiles(c: Comparison) -> list[Tile]:
    a, b = c.response_a, c.response_b
    chance = f"95 % interval {percent(c.ks_low)} to {percent(c.ks_high)}; chance alone {percent(c.ks_by_chance)}"
    tiles = [
        Tile(f"{a.p50:,} → {b.p50:,}", "median, tokens", f"90th percentile {a.p90:,} → {b.p90:,}"),
        Tile(percent(c.ks), "largest difference of the cumulative shares", chance),
    ]
    for s in c.shared_prompts[:1]:
        ratio = f"95 % interval {write_range(s.ratio_low, s.ratio_high)}"
        within = "" if s.tau_within_a is None else f"between two answers in A: {s.tau_within_a:.2f}"
        tiles.append(Tile(f"{write(s.ratio)}×", f"length of B’s answers to {s.prompts:,} shared prompts", ratio))
        tiles.append(Tile(f"τ {s.kendall_tau:.2f}", "rank agreement of their lengths", within))
    return tiles


def _statements(c: Comparison) -> list[Statement]:
    first, *middle, _ = c.answer
    # Headings of the sentences between the first and the verdict, as far as they are there.
    headings = ["Other requests, or other answers"] if c.mix_log is not None and c.within_log is not None else []
    headings += ["The same prompts"] if c.shared_prompts else []
    reasons = "; ".join(c.reasons)
    return [
        Statement("How far apart", first),
        *(Statement(heading, text) for heading, text in zip(headings, middle, strict=True)),
        Statement("Reasons for the verdict", f"{reasons[:1].upper()}{reasons[1:]}.", _TONES[c.verdict]),
        *([Statement("Take care", " ".join(c.notes))] if c.notes else []),
    ]


def quantiles_table(c: Comparison) -> Table:
    return Table(
        "quantiles",
        "Quantiles in tokens. Below the difference: its 95 % interval (bootstrap).",
        ["Quantile", "A", "B", "B − A", "B / A"],
        [
            [
                Cell(q.q, f"{100 * q.q:g} %"), q.a, q.b,
                Cell(q.difference, signed(q.difference), f"{signed(round(q.low))} to {signed(round(q.high))}"), q.ratio,
            ]
            for q in c.quantiles
        ],
    )  # fmt: skip


def distances_table(c: Comparison) -> Table:
    rows = [
        ("Kolmogorov–Smirnov distance", Cell(c.ks, percent(c.ks), write_range(c.ks_low, c.ks_high, _UNIT))),
        ("… that equal traffic exceeds one time in 20", _share(c.ks_by_chance)),
        ("Population stability index", c.psi),
        ("Wasserstein distance of log lengths", c.wasserstein_log),
        ("Rescaled: factor", c.scale),
        ("Rescaled: power", c.power),
        ("Distance left after rescaling", _share(c.aligned_ks)),
        ("B’s prompts outside the middle 99 % of A’s lengths", _share(c.new_prompt_lengths)),
        ("B’s prompts in languages that A hardly has", _share(c.new_languages)),
    ]
    return Table("distances", "Distances between A and B.", ["", "Value"], rows)


def _share(value: float | None) -> Cell:
    return Cell(value, write(value, _UNIT))


def shared_table(c: Comparison) -> Table | None:
    if not c.shared_prompts:
        return None
    return Table(
        "shared",
        "The same prompts answered in A and in B.",
        [
            "Model in A", "Model in B", "Prompts", Column("B / A", "Geometric mean; below, its 95 % interval."),
            Column("Spread", "Standard deviation of the log of that quotient."),
            Column("Distance (tokens)", "Mean distance between the two lengths."),
            Column("τ", "Kendall’s τ: are the same prompts long in both?"),
            Column("τ within A", "The same between two answers in A: what chance leaves."),
        ],
        [
            [s.model_a, s.model_b, s.prompts, Cell(s.ratio, beneath=write_range(s.ratio_low, s.ratio_high)),
             s.sd_log_ratio, s.mae_tokens, s.kendall_tau, s.tau_within_a]
            for s in c.shared_prompts
        ],
    )  # fmt: skip


def groups_table(c: Comparison) -> Table | None:
    if not c.groups:
        return None
    shares = (Column(f"Share of {name}", unit=_UNIT) for name in "AB")
    columns = ["Group", *shares, "Median in A", "Median in B"]
    table = Table("groups", "Groups of A and B.", columns, group_title="Grouped by")
    for g in c.groups:
        table.add([g.name, g.share_a, g.share_b, g.p50_a, g.p50_b], GROUPING_TITLES[g.by])
    return table


TABLES: Final = (quantiles_table, distances_table, shared_table, groups_table)
SECTIONS: Final[tuple[Section[Comparison], ...]] = (
    Section(
        "distributions",
        "How long answers are",
        "A and B on the same axes.",
        [quantiles_table, distances_table, histograms, survival, quantile_differences],
    ),
    Section(
        "prompts",
        "The same prompts",
        "How another model, another setting or another day answers the same prompts.",
        [shared_table, shared],
        missing="prompts that are in both traces",
    ),
    Section(
        "groups",
        "Groups of requests in A and in B",
        "Shares and median lengths by group.",
        [groups_table],
        missing="groups to compare",
    ),
)
