"""Plots of how long answers are: histogram, survival with fitted laws, quantiles by group, prompt against answer."""

from __future__ import annotations

import math
from typing import Any, Final

from ecoserve.data.profiling.curves import SEEN
from ecoserve.data.profiling.model import Grouping, Profile
from ecoserve.data.profiling.reporting.words import dash, decimal, grouping_title, law_title, number
from ecoserve.pages import Cell, Column, Figure, LegendEntry, Panel, Table, plain, spec, write

#: An axis of lengths; ticks where a person looks for them.
LOG_TOKENS: Final[dict[str, Any]] = {
    "type": "log",
    "tickvals": [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000, 500000],
    "ticktext": ["1", "2", "5", "10", "20", "50", "100", "200", "500", "1k", "2k", "5k", "10k", "20k", "50k", "100k",
                 "500k"],
    "zeroline": False,
}  # fmt: skip


def axis(title: str, **more: Any) -> dict[str, Any]:
    """An axis of lengths with a title."""
    return {**LOG_TOKENS, "title": {"text": title}, **more}


def histogram(profile: Profile) -> Figure:
    """How many answers are how long, on a log axis: share per doubling of length, so that bins can be compared."""
    curves = profile.curves
    edges = curves.histogram_edges
    total = profile.response.n
    bars = {"ended": curves.histogram_ended, "cut off": curves.histogram_cut}
    traces = []
    for slot, (name, counts) in enumerate(bars.items(), start=1):
        if not any(counts):
            continue
        x, width, height, hover = [], [], [], []
        for low, high, n in zip(edges, edges[1:], counts, strict=False):
            a, b = low + 0.5, high + 0.5
            x.append((a + b) / 2)
            width.append(b - a)
            height.append(100 * n / total / math.log2(b / a))
            hover.append(f"{span(low, high)} tokens<br>{n:,} answers {name}, {write(n / total, 'share')}")
        pattern = {"marker": {"pattern": {"shape": "/"}}} if name == "cut off" else {}
        traces.append(
            {"type": "bar", "x": x, "y": height, "width": width, "text": hover, "textposition": "none",
             "hovertemplate": "%{text}<extra></extra>", "meta": {"slot": slot}, **pattern}
        )  # fmt: skip
    layout = {
        "barmode": "stack",
        "bargap": 0,
        "xaxis": axis("tokens of the answer"),
        "yaxis": {"title": {"text": "answers per doubling (%)"}, "rangemode": "tozero"},
    }
    table = Table(
        "histogram",
        "Answers by length.",
        [Column("Tokens", number=False), Column("Ended"), Column("Cut off"), Column("Share")],
        [
            [Cell(span(low, high)), number(ended), number(cut), number((ended + cut) / total, "share")]
            for low, high, ended, cut in zip(edges, edges[1:], *bars.values(), strict=False)
        ],
    )
    r = profile.response
    alt = f"Histogram of {total:,} answer lengths: median {r.p50}, 90th percentile {r.p90}, longest {r.max} tokens."
    legend = [LegendEntry("ended by itself", 1, "", "square")]
    if any(curves.histogram_cut):
        legend.append(LegendEntry("cut off", 2, "", "hatched"))
    return Figure(
        "histogram",
        "Answers by length",
        "Length on a logarithmic axis. The height is the share of all answers per doubling of length, so that narrow "
        "and wide bins can be compared.",
        [Panel("histogram-0", "", spec(traces, layout), alt)],
        legend,
        table,
        wide=True,
    )


def survival(profile: Profile) -> Figure:
    """The share of answers longer than x, and the laws that come closest."""
    laws = {law.name: law for law in profile.tail.laws}
    traces: list[dict[str, Any]] = []
    legend = []
    for i, curve in enumerate(profile.curves.survival):
        seen = curve.name == SEEN
        name = "as recorded" if seen else law_title(curve.name, laws[curve.name].parameters)
        line = {"width": 3.5} if seen else {"width": 1.8, "dash": dash(i)}
        slot = 0 if seen else i
        # A share of nothing has no place on a log axis.
        y = [None if v is None or v <= 0 else 100 * v for v in curve.y]
        traces.append(
            {"x": curve.x, "y": y, "mode": "lines", "line": line, "meta": {"slot": slot},
             "hovertemplate": f"{plain(name)}<br>%{{y:.3g}} % have more than %{{x:,.0f}} tokens<extra></extra>"}
        )  # fmt: skip
        legend.append(LegendEntry(name, slot, "solid" if seen else dash(i)))
    # Half of the smallest share seen; but an answer that ended last leaves a share of nothing.
    lowest = 0.5 * min([v for v in traces[0]["y"] if v is not None], default=100.0)
    layout = {
        "xaxis": axis("tokens of the answer"),
        "yaxis": {
            "type": "log",
            "title": {"text": "answers that are longer (%)"},
            "range": [math.log10(lowest), 2.1],
            "tickvals": [100, 10, 1, 0.1, 0.01, 0.001],
            "ticktext": ["100 %", "10 %", "1 %", "0.1 %", "0.01 %", "0.001 %"],
        },
    }
    columns = [c.name if c.name == SEEN else laws[c.name].name for c in profile.curves.survival]
    points = sorted({x for c in profile.curves.survival for x in c.x})
    by_curve = [dict(zip(c.x, c.y, strict=True)) for c in profile.curves.survival]
    table = Table(
        "survival",
        "Share of answers that are longer, as recorded and by the fitted laws.",
        [Column("Tokens"), *(Column(name) for name in columns)],
        [[number(int(x)), *(number(values.get(x), "share") for values in by_curve)] for x in points],
    )
    return Figure(
        "survival",
        "The tail, and laws fitted to all lengths",
        "Both axes logarithmic: a straight line would be a power law, a curve that falls ever faster a lighter tail. "
        + profile.tail.verdict,
        [Panel("survival-0", "", spec(traces, layout), f"Survival of answer lengths. {profile.tail.verdict}")],
        legend,
        table,
        wide=True,
    )


def groups(profile: Profile) -> Figure | None:
    """Quantiles by turn, prompt length, model, language and split."""
    if not profile.groupings:
        return None
    table = Table(
        "groups",
        "Answer lengths by group, in tokens.",
        [
            Column("Group", number=False), Column("Answers"), Column("Share"), Column("10 %"), Column("25 %"),
            Column("Median", "Beneath: its 95 % interval."), Column("75 %"), Column("90 %"), Column("99 %"),
            Column("Cut off"),
        ],
        group_title="Grouped by",
    )  # fmt: skip
    for grouping in profile.groupings:
        for group in grouping.groups:
            x = group.lengths
            table.groups.append(grouping_title(grouping))
            median = Cell(f"{x.p50:,}", f"{x.p50_low:,} to {x.p50_high:,}", x.p50)
            table.rows.append(
                [
                    Cell(group.name), number(x.n), number(group.share, "share"), number(x.p10), number(x.p25), median,
                    number(x.p75), number(x.p90), number(x.p99), number(x.censored_share, "share"),
                ]
            )  # fmt: skip
    return Figure(
        "groups",
        "Quantiles by group",
        "Dot: the median; thick: the middle half; thin: from the 10th to the 90th percentile. How much a grouping "
        "explains is its share of the variance of log length.",
        [_group_panel(i, grouping) for i, grouping in enumerate(profile.groupings)],
        [LegendEntry("median", 1, "solid", "circle")],
        table,
    )


def _group_panel(index: int, grouping: Grouping) -> Panel:
    names, traces = [], []
    for y, group in enumerate(grouping.groups):
        x = group.lengths
        names.append(plain(f"{group.name} ({group.share:.0%})"))
        hover = f"{plain(group.name)}, {x.n:,} answers<br>median {x.p50:,}, 10 to 90 %: {x.p10:,} to {x.p90:,}"
        for ends, width in (((x.p10, x.p90), 2), ((x.p25, x.p75), 7)):
            traces.append(
                {"x": list(ends), "y": [y, y], "mode": "lines", "line": {"width": width}, "opacity": 0.55,
                 "hoverinfo": "skip", "meta": {"slot": 1}}
            )  # fmt: skip
        traces.append(
            {"x": [x.p50], "y": [y], "mode": "markers", "marker": {"size": 11}, "meta": {"slot": 1},
             "hovertemplate": f"{hover}<extra></extra>"}
        )  # fmt: skip
    layout = {
        "height": 110 + 34 * len(names),
        "xaxis": axis("tokens of the answer"),
        "yaxis": {
            "tickvals": list(range(len(names))), "ticktext": names, "range": [len(names) - 0.4, -0.6],
            "showgrid": False, "zeroline": False,
        },
    }  # fmt: skip
    spoken = "; ".join(f"{g.name}: median {g.lengths.p50}" for g in grouping.groups)
    return Panel(
        f"groups-{index}", grouping_title(grouping), spec(traces, layout), f"{grouping_title(grouping)}. {spoken}."
    )


def density(profile: Profile) -> Figure | None:
    """How many records have which prompt and answer length."""
    curves = profile.curves
    a, b = curves.density_prompt_edges, curves.density_response_edges
    if len(a) < 3 or len(b) < 3:
        return None
    # Rows of a heat map run along y: the answer's length.
    z = [[math.log10(1 + row[j]) if row[j] else None for row in curves.density] for j in range(len(b) - 1)]
    text = [[f"{row[j]:,} records" for row in curves.density] for j in range(len(b) - 1)]
    trace = {
        "type": "heatmap", "x": [e + 0.5 for e in a], "y": [e + 0.5 for e in b], "z": z, "text": text,
        "hovertemplate": "prompt about %{x:.0f}, answer about %{y:.0f}<br>%{text}<extra></extra>", "showscale": False,
        "hoverongaps": False, "meta": {"slot": 1},
    }  # fmt: skip
    layout = {
        "height": 420, "xaxis": axis("tokens of the prompt, context included", showgrid=False),
        "yaxis": axis("tokens of the answer", showgrid=False),
    }  # fmt: skip
    table = Table(
        "density",
        "Records by prompt and answer length.",
        [Column("Prompt", number=False), Column("Answer", number=False), Column("Records")],
        [
            [Cell(span(a[i], a[i + 1])), Cell(span(b[j], b[j + 1])), number(n)]
            for i, row in enumerate(curves.density)
            for j, n in enumerate(row)
            if n
        ],
    )
    told = profile.prompt_length
    says = f"Rank correlation {decimal(told.spearman)}; bands of prompt length explain " if told else ""
    says += f"{write(told.r2_log_bands, 'share')} of the variance of log length. " if told else ""
    return Figure(
        "density",
        "Prompt length against answer length",
        f"{says}The deeper the colour, the more records (logarithmic).",
        [Panel("density-0", "", spec([trace], layout), f"Density of prompt and answer lengths. {says}")],
        [],
        table,
        wide=True,
    )


def span(low: int, high: int) -> str:
    """A bin of lengths: ``17–32``."""
    return f"{high:,}" if high == low + 1 else f"{low + 1:,}–{high:,}"
