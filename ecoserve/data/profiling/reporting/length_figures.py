"""Figures of response lengths: histogram, survival with fitted laws, quantiles by group, prompt against response."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Final

from ecoserve.data.profiling.model import Grouping, Profile
from ecoserve.data.profiling.profile import SEEN
from ecoserve.data.profiling.tails import law_name
from ecoserve.pages import Cell, Column, Figure, Panel, Table, plain, plots, write

GROUPING_TITLES: Final = {
    "turn": "Turn of the conversation",
    "prompt_band": "Prompt length (tokens)",
    "model": "Served model",
    "language": "Language of the prompt",
    "split": "Split",
}
_DASHES: Final = ("solid", "dash", "dot", "longdashdot", "longdash", "dashdot")


def grouping_title(grouping: Grouping) -> str:
    title = GROUPING_TITLES[grouping.by]
    return title if grouping.explains is None else f"{title}: explains {write(grouping.explains, 'share')}"


def law_title(name: str, parameters: dict[str, float]) -> str:
    """A law with its parameters: ``Weibull (scale 341, shape 1.31)``."""
    return f"{law_name(name)} ({', '.join(f'{key} {value:.3g}' for key, value in parameters.items())})"


def dash(number: int) -> str:
    return _DASHES[number % len(_DASHES)]


def span(low: int, high: int) -> str:
    """A bin of lengths: ``17–32``."""
    return f"{high:,}" if high == low + 1 else f"{low + 1:,}–{high:,}"


def per_doubling(edges: Sequence[int], counts: Sequence[int], total: int) -> list[float]:
    """Height of each bin: per cent of all answers per doubling of length, so that bins can be compared."""
    bins = zip(pairwise(edges), counts, strict=True)
    return [100 * n / total / math.log2((high + 0.5) / (low + 0.5)) for (low, high), n in bins]


def percents(shares: Iterable[float | None], *, positive: bool = False) -> list[float | None]:
    """Shares in per cent; with ``positive``, for a logarithmic axis, without zeros."""
    return [None if v is None or (positive and v <= 0) else 100 * v for v in shares]


def histogram(profile: Profile) -> Figure:
    """Share of the answers per doubling of length; answers that were cut off are hatched."""
    curves, r = profile.curves, profile.response
    bins = list(pairwise(curves.histogram_edges))
    middles, widths = [(a + b + 1) / 2 for a, b in bins], [b - a for a, b in bins]
    traces = []
    parts = ((1, "ended", "ended by itself", curves.histogram_ended), (2, "cut off", "cut off", curves.histogram_cut))
    for slot, name, title, counts in parts:
        if any(counts):
            heights = per_doubling(curves.histogram_edges, counts, r.n)
            counted = zip(bins, counts, strict=True)
            text = [f"{span(*x)} tokens<br>{n:,} answers {name}, {write(n / r.n, 'share')}" for x, n in counted]
            looks: plots.Trace = {"width": widths, "text": text, "hover": "%{text}", "hatched": name == "cut off"}
            traces.append(plots.bars(middles, heights, slot, title, **looks))
    table = Table("histogram", "Answers by length.", ["Tokens", "Ended", "Cut off", Column("Share", unit="share")])
    for ends, ended, cut in zip(bins, curves.histogram_ended, curves.histogram_cut, strict=True):
        table.add([span(*ends), ended, cut, (ended + cut) / r.n])
    alt = f"Histogram of {r.n:,} answer lengths: median {r.p50}, 90th percentile {r.p90}, longest {r.max} tokens."
    x, y = plots.tokens_axis("tokens of the answer"), plots.from_zero("answers per doubling (%)")
    plot = plots.panel(traces, alt, x=x, y=y, barmode="stack", bargap=0)
    text_below = (
        "Length on a logarithmic axis. The height is the share of all answers per doubling of length, so that narrow "
        "and wide bins can be compared."
    )
    return Figure("histogram", "Answers by length", text_below, [plot], table)


def survival(profile: Profile) -> Figure:
    laws = {law.name: law for law in profile.tail.laws}
    curves = profile.curves.survival
    traces = []
    for i, curve in enumerate(curves):
        seen = curve.name == SEEN
        name = "as recorded" if seen else law_title(curve.name, laws[curve.name].parameters)
        hover = f"{plain(name)}<br>%{{y:.3g}} % have more than %{{x:,.0f}} tokens"
        looks: plots.Trace = {"dash": "solid" if seen else dash(i), "width": 3.5 if seen else 1.8, "hover": hover}
        traces.append(plots.line(curve.x, percents(curve.y, positive=True), 0 if seen else i, name, **looks))
    # Half of the smallest positive share.
    lowest = 0.5 * min([v for v in traces[0]["y"] if v is not None], default=100.0)
    shares = (100, 10, 1, 0.1, 0.01, 0.001)
    ticks: plots.Trace = {"tickvals": list(shares), "ticktext": [f"{v:g} %" for v in shares]}
    y = plots.axis("answers that are longer (%)", type="log", range=[math.log10(lowest), 2.1], **ticks)
    alt = f"Survival of answer lengths. {profile.tail.verdict}"
    plot = plots.panel(traces, alt, x=plots.tokens_axis("tokens of the answer"), y=y)
    by_curve = [dict(zip(c.x, c.y, strict=True)) for c in curves]
    columns = ["Tokens", *(Column(curve.name, unit="share") for curve in curves)]
    rows = [[int(x), *(values.get(x) for values in by_curve)] for x in sorted(set().union(*by_curve))]
    caption = "Share of answers that are longer, as recorded and by the fitted laws."
    text = "Both axes are logarithmic: a power law is a straight line, a lighter tail falls ever faster. "
    title = "The tail, and laws fitted to all lengths"
    return Figure("survival", title, text + profile.tail.verdict, [plot], Table("survival", caption, columns, rows))


def groups(profile: Profile) -> Figure | None:
    if not profile.groupings:
        return None
    share, cut = Column("Share", unit="share"), Column("Cut off", unit="share")
    median = Column("Median", "Below: its 95 % interval.")
    columns = ["Group", "Answers", share, "10 %", "25 %", median, "75 %", "90 %", "99 %", cut]
    table = Table("groups", "Answer lengths by group, in tokens.", columns, group_title="Grouped by")
    for grouping in profile.groupings:
        for group in grouping.groups:
            x = group.lengths
            middle = Cell(x.p50, beneath=f"{x.p50_low:,} to {x.p50_high:,}")
            row = [group.name, x.n, group.share, x.p10, x.p25, middle, x.p75, x.p90, x.p99, x.censored_share]
            table.add(row, grouping_title(grouping))
    text = (
        "Dot: the median. Thick line: the middle half. Thin line: the 10th to the 90th percentile. A grouping explains "
        "its share of the variance of log length."
    )
    panels = [_group_panel(grouping) for grouping in profile.groupings]
    return Figure("groups", "Quantiles by group", text, panels, table)


def _group_panel(grouping: Grouping) -> Panel:
    traces = []
    for y, group in enumerate(grouping.groups):
        x = group.lengths
        hover = f"{plain(group.name)}, {x.n:,} answers<br>median {x.p50:,}, 10 to 90 %: {x.p10:,} to {x.p90:,}"
        traces += [plots.line([x.p10, x.p90], [y, y], 1, width=2, opacity=0.55)]
        traces += [plots.line([x.p25, x.p75], [y, y], 1, width=7, opacity=0.55)]
        traces += [plots.points([x.p50], [y], 1, "median", size=11, hover=hover)]
    names = [plain(f"{group.name} ({group.share:.0%})") for group in grouping.groups]
    title = grouping_title(grouping)
    alt = f"{title}. {'; '.join(f'{g.name}: median {g.lengths.p50}' for g in grouping.groups)}."
    tokens = plots.tokens_axis("tokens of the answer")
    return plots.panel(traces, alt, title, x=tokens, y=plots.names_axis(names), height=110 + 34 * len(names))


def density(profile: Profile) -> Figure | None:
    curves = profile.curves
    a, b = curves.density_prompt_edges, curves.density_response_edges
    if len(a) < 3 or len(b) < 3:
        return None
    rows = list(zip(*curves.density, strict=True))  # rows of a heat map run along y: the answer's length
    depths = [[math.log10(1 + n) if n else None for n in row] for row in rows]
    texts = [[f"{n:,} records" for n in row] for row in rows]
    hover = "prompt about %{x:.0f}, answer about %{y:.0f}<br>%{text}"
    edges = [e + 0.5 for e in a], [e + 0.5 for e in b]
    trace = plots.heatmap(*edges, depths, 1, text=texts, hover=hover, hoverongaps=False)
    table = Table("density", "Records by prompt and answer length.", ["Prompt", "Answer", "Records"])
    for i, j, n in ((i, j, n) for i, row in enumerate(curves.density) for j, n in enumerate(row) if n):
        table.add([span(a[i], a[i + 1]), span(b[j], b[j + 1]), n])
    text = ""
    if known := profile.prompt_length:
        explained = write(known.r2_log_bands, "share")
        text = f"Rank correlation {write(known.spearman)}; bands of prompt length explain {explained} of the "
        text += "variance of log length. "
    x = plots.tokens_axis("tokens of the prompt, context included", showgrid=False)
    y = plots.tokens_axis("tokens of the answer", showgrid=False)
    plot = plots.panel([trace], f"Density of prompt and answer lengths. {text}", x=x, y=y, height=420)
    text += "The deeper the colour, the more records (logarithmic)."
    return Figure("density", "Prompt length against answer length", text, [plot], table)
