"""Figures of response lengths: histogram, survival with fitted laws, quantiles by group, prompt against response."""

from __future__ import annotations

import math
from itertools import pairwise

from ecoserve.data.profiling.curves import SEEN
from ecoserve.data.profiling.model import Grouping, Profile
from ecoserve.data.profiling.reporting.words import dash, grouping_title, law_title, per_doubling, percents, span
from ecoserve.pages import Cell, Column, Figure, Panel, Table, plain, plots, write


def histogram(profile: Profile) -> Figure:
    """Share of the answers per doubling of length; answers that were cut off are hatched."""
    curves, r = profile.curves, profile.response
    bins = list(pairwise(curves.histogram_edges))
    traces = []
    parts = ((1, "ended", "ended by itself", curves.histogram_ended), (2, "cut off", "cut off", curves.histogram_cut))
    for slot, name, title, counts in parts:
        if not any(counts):
            continue
        texts = [
            f"{span(low, high)} tokens<br>{n:,} answers {name}, {write(n / r.n, 'share')}"
            for (low, high), n in zip(bins, counts, strict=True)
        ]
        traces.append(
            plots.bars(
                [(low + high + 1) / 2 for low, high in bins],
                per_doubling(curves.histogram_edges, counts, r.n),
                slot,
                title,
                width=[high - low for low, high in bins],
                text=texts,
                hover="%{text}",
                hatched=name == "cut off",
            )
        )
    counted = zip(bins, curves.histogram_ended, curves.histogram_cut, strict=True)
    table = Table(
        "histogram",
        "Answers by length.",
        ["Tokens", "Ended", "Cut off", Column("Share", unit="share")],
        [[span(*ends), ended, cut, (ended + cut) / r.n] for ends, ended, cut in counted],
    )
    alt = f"Histogram of {r.n:,} answer lengths: median {r.p50}, 90th percentile {r.p90}, longest {r.max} tokens."
    return Figure(
        "histogram",
        "Answers by length",
        "Length on a logarithmic axis. The height is the share of all answers per doubling of length, so that narrow "
        "and wide bins can be compared.",
        [
            plots.panel(
                traces,
                alt,
                x=plots.tokens_axis("tokens of the answer"),
                y=plots.axis("answers per doubling (%)", rangemode="tozero"),
                barmode="stack",
                bargap=0,
            )
        ],
        table,
    )


def survival(profile: Profile) -> Figure:
    """Share of the answers longer than x, and the laws that fit best."""
    laws = {law.name: law for law in profile.tail.laws}
    traces = []
    for i, curve in enumerate(profile.curves.survival):
        seen = curve.name == SEEN
        name = "as recorded" if seen else law_title(curve.name, laws[curve.name].parameters)
        traces.append(
            plots.line(
                curve.x,
                percents(curve.y, positive=True),
                0 if seen else i,
                name,
                dash="solid" if seen else dash(i),
                width=3.5 if seen else 1.8,
                hover=f"{plain(name)}<br>%{{y:.3g}} % have more than %{{x:,.0f}} tokens",
            )
        )
    # Half of the smallest positive share.
    lowest = 0.5 * min([v for v in traces[0]["y"] if v is not None], default=100.0)
    shares = (100, 10, 1, 0.1, 0.01, 0.001)
    ticks = {"tickvals": list(shares), "ticktext": [f"{v:g} %" for v in shares]}
    by_curve = [dict(zip(c.x, c.y, strict=True)) for c in profile.curves.survival]
    table = Table(
        "survival",
        "Share of answers that are longer, as recorded and by the fitted laws.",
        ["Tokens", *(Column(curve.name, unit="share") for curve in profile.curves.survival)],
        [[int(x), *(values.get(x) for values in by_curve)] for x in sorted(set().union(*by_curve))],
    )
    return Figure(
        "survival",
        "The tail, and laws fitted to all lengths",
        "Both axes are logarithmic: a power law is a straight line, a lighter tail falls ever faster. "
        + profile.tail.verdict,
        [
            plots.panel(
                traces,
                f"Survival of answer lengths. {profile.tail.verdict}",
                x=plots.tokens_axis("tokens of the answer"),
                y=plots.axis("answers that are longer (%)", type="log", range=[math.log10(lowest), 2.1], **ticks),
            )
        ],
        table,
    )


def groups(profile: Profile) -> Figure | None:
    """Quantiles by turn, prompt length, model, language and split."""
    if not profile.groupings:
        return None
    share = Column("Share", unit="share")
    median = Column("Median", "Below: its 95 % interval.")
    table = Table(
        "groups",
        "Answer lengths by group, in tokens.",
        ["Group", "Answers", share, "10 %", "25 %", median, "75 %", "90 %", "99 %", Column("Cut off", unit="share")],
        group_title="Grouped by",
    )
    for grouping in profile.groupings:
        for group in grouping.groups:
            x = group.lengths
            middle = Cell(x.p50, beneath=f"{x.p50_low:,} to {x.p50_high:,}")
            row = [group.name, x.n, group.share, x.p10, x.p25, middle, x.p75, x.p90, x.p99, x.censored_share]
            table.add(row, grouping_title(grouping))
    return Figure(
        "groups",
        "Quantiles by group",
        "Dot: the median. Thick line: the middle half. Thin line: the 10th to the 90th percentile. A grouping explains "
        "its share of the variance of log length.",
        [_group_panel(grouping) for grouping in profile.groupings],
        table,
    )


def _group_panel(grouping: Grouping) -> Panel:
    traces = []
    for y, group in enumerate(grouping.groups):
        x = group.lengths
        hover = f"{plain(group.name)}, {x.n:,} answers<br>median {x.p50:,}, 10 to 90 %: {x.p10:,} to {x.p90:,}"
        traces += [plots.line([x.p10, x.p90], [y, y], 1, width=2, opacity=0.55)]
        traces += [plots.line([x.p25, x.p75], [y, y], 1, width=7, opacity=0.55)]
        traces += [plots.points([x.p50], [y], 1, "median", size=11, hover=hover)]
    names = [plain(f"{group.name} ({group.share:.0%})") for group in grouping.groups]
    height = 110 + 34 * len(names)
    spoken = "; ".join(f"{g.name}: median {g.lengths.p50}" for g in grouping.groups)
    title = grouping_title(grouping)
    return plots.panel(
        traces,
        f"{title}. {spoken}.",
        title,
        x=plots.tokens_axis("tokens of the answer"),
        y=plots.names_axis(names),
        height=height,
    )


def density(profile: Profile) -> Figure | None:
    """Number of records by prompt and answer length."""
    curves = profile.curves
    a, b = curves.density_prompt_edges, curves.density_response_edges
    if len(a) < 3 or len(b) < 3:
        return None
    columns = list(zip(*curves.density, strict=True))  # rows of a heat map run along y: the answer's length
    trace = {
        "type": "heatmap",
        "x": [e + 0.5 for e in a],
        "y": [e + 0.5 for e in b],
        "z": [[math.log10(1 + n) if n else None for n in column] for column in columns],
        "text": [[f"{n:,} records" for n in column] for column in columns],
        "hovertemplate": "prompt about %{x:.0f}, answer about %{y:.0f}<br>%{text}<extra></extra>",
        "showscale": False,
        "hoverongaps": False,
        "meta": {"slot": 1},
    }
    cells = ((i, j, n) for i, row in enumerate(curves.density) for j, n in enumerate(row) if n)
    table = Table(
        "density",
        "Records by prompt and answer length.",
        ["Prompt", "Answer", "Records"],
        [[span(a[i], a[i + 1]), span(b[j], b[j + 1]), n] for i, j, n in cells],
    )
    text = ""
    if known := profile.prompt_length:
        explained = write(known.r2_log_bands, "share")
        text = f"Rank correlation {write(known.spearman)}; bands of prompt length explain {explained} of the "
        text += "variance of log length. "
    return Figure(
        "density",
        "Prompt length against answer length",
        f"{text}The deeper the colour, the more records (logarithmic).",
        [
            plots.panel(
                [trace],
                f"Density of prompt and answer lengths. {text}",
                x=plots.tokens_axis("tokens of the prompt, context included", showgrid=False),
                y=plots.tokens_axis("tokens of the answer", showgrid=False),
                height=420,
            )
        ],
        table,
    )
