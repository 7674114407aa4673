"""Figures of predictability, of what knowing lengths is worth, and of lengths and arrivals over time."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Final

from ecoserve.data.profiling.model import Drift, Profile, Reservation
from ecoserve.data.profiling.reporting.length_figures import dash, percents
from ecoserve.pages import Cell, Column, Figure, Table, plain, plots, write


def errors(profile: Profile) -> Figure | None:
    curves = profile.curves.errors
    if not curves:
        return None
    traces = []
    for i, curve in enumerate(curves):
        hover = f"{plain(curve.name)}<br>%{{y:.0f}} % within %{{x:.0f}} tokens"
        traces.append(plots.line(curve.x, percents(curve.y), i, curve.name, dash=dash(i), width=2.6, hover=hover))
    columns = ["Tokens", *(Column(curve.name, unit="share") for curve in curves)]
    rows = [[int(x), *(curve.y[k] for curve in curves)] for k, x in enumerate(curves[0].x)]
    table = Table("errors", "Share of answers predicted to within x tokens.", columns, rows)
    at_50 = "; ".join(f"{c.name}: {write(_at(c.x, c.y, 50), 'share')} within 50 tokens" for c in curves)
    x = plots.tokens_axis("absolute error of at most (tokens)")
    y = plots.axis("answers (%)", range=[0, 102], percent=True)
    plot = plots.panel(traces, f"Errors of each way to predict. {at_50}.", x=x, y=y)
    text = "Left and up is better. "
    if profile.same_prompt is not None:
        text += "Other answers to the same prompt show about what a predictor that reads the prompt can reach; the "
        text += "rest is chance of sampling."
    return Figure("errors", "How close predictions come", text, [plot], table)


def spread(profile: Profile) -> Figure | None:
    counts, same = profile.curves.spread, profile.same_prompt
    if same is None or not counts:
        return None
    total = sum(counts)
    bins = list(pairwise(profile.curves.spread_edges))
    middles, widths = [(a + b) / 2 for a, b in bins], [b - a for a, b in bins]
    hover = "%{y:.1f} % of prompts at %{x:.2f}"
    trace = plots.bars(middles, [100 * n / total for n in counts], 1, width=widths, hover=hover)
    columns = ["Coefficient of variation", "Prompts", Column("Share", unit="share")]
    rows = [[f"{a:.2f}–{b:.2f}", n, n / total] for (a, b), n in zip(bins, counts, strict=True)]
    table = Table("spread", "Prompts by how much their answers’ lengths differ.", columns, rows)
    text = (
        f"For half of the {same.prompts:,} prompts the answers’ lengths have a standard deviation of at most "
        f"{write(same.cv_median, 'share')} of their mean. The last bar holds everything beyond."
    )
    x = plots.axis("coefficient of variation of the answers to one prompt", zeroline=False)
    plot = plots.panel([trace], text, x=x, y=plots.from_zero("prompts (%)"), bargap=0.04)
    return Figure("spread", "The same prompt, asked again", text, [plot], table)


def _at(x: list[float], y: list[float | None], where: float) -> float:
    """The curve at the last point not beyond ``where``."""
    return next((v for at, v in zip(reversed(x), reversed(y), strict=True) if at <= where and v is not None), 0.0)


def reservations(profile: Profile) -> Figure:
    ways = profile.waste.reservations
    labels = [plain(way.policy) for way in ways]
    rows = list(range(len(ways)))
    used = [100 * (1 - way.waste_share) for way in ways]
    wasted = [100 * way.waste_share for way in ways]
    looks: plots.Trace = {"text": labels, "orientation": "h"}
    parts = [
        plots.bars(used, rows, 1, "used", hover="%{text}<br>%{x:.0f} % used", **looks),
        plots.bars(wasted, rows, 2, "wasted", hover="%{text}<br>%{x:.0f} % wasted", hatched=True, **looks),
    ]
    height = 110 + 32 * len(ways)
    waste = "; ".join(f"{w.policy}: {write(w.waste_share, 'share')} wasted" for w in ways)
    x = plots.axis("reserved KV cache (%)", range=[0, 100], percent=True)
    layout: plots.Trace = {"barmode": "stack", "bargap": 0.35, "height": height}
    alt = f"Wasted KV cache. {waste}."
    left = plots.panel(parts, alt, "Used and wasted", x=x, y=plots.names_axis(labels), **layout)
    gain = "; ".join(
        f"{w.policy}: {write(w.concurrency)} times, {write(w.overflow_share, 'share')} outgrow" for w in ways
    )
    x = plots.axis("answers that outgrow it (%)", percent=True, zeroline=False)
    y = plots.from_zero("requests at once, max_tokens = 1")
    alt = f"Requests at once. {gain}."
    right = plots.panel(_trade(ways), alt, "Concurrency against overflow", x=x, y=y, height=height)
    table = Table(
        "reservations",
        "Ways to reserve KV cache for an answer.",
        [
            "Reserve",
            Column("Mean (tokens)", "Mean reservation for an answer."),
            Column("Outgrown", "Share of answers longer than their reservation.", "share"),
            Column("Wasted", "Share of the reserved token-time of the KV cache that is never written.", "share"),
            Column("Wasted, answers only", "The same without the prompts.", "share"),
            Column("Requests at once", "Against reserving max_tokens, same memory, same records."),
            "Records",
        ],
    )
    for w in ways:
        shares = (w.overflow_share, w.waste_share, w.answer_waste_share)
        table.add([w.policy, w.mean_reserved_tokens, *shares, w.concurrency, w.rows])
    text = (
        "A slot holds prompt and reservation for as many steps as the answer has tokens, and fills token by token: so "
        "even true lengths leave about half of the answer’s part empty. An answer that outgrows its reservation "
        "continues token by token, and may have to be preempted. On demand wastes nothing and guarantees nothing."
    )
    return Figure("reservations", "KV cache: what is reserved, what is used", text, [left, right], table)


#: Ways to reserve that are one family at several levels: what their names contain, legend, slot, dash, symbol.
_FAMILIES: Final = (
    ("per prompt band", "percentile of its prompt band", 4, "dash", "diamond"),
    ("predicted", "predicted quantile", 3, "solid", "circle"),
    ("p", "percentile of the whole trace", 1, "solid", "circle"),
)
_ALONE: Final = {"max_tokens": 0, "longest other answer": 5, "true length": 2}


def _trade(ways: Sequence[Reservation]) -> list[dict[str, Any]]:
    """Concurrency against overflow: a line through each family of ways, a star for those that stand alone."""
    families: dict[str, list[Reservation]] = {}
    for way in ways:
        family = next((key for key, *_ in _FAMILIES if key in way.policy.split() or key in way.policy), None)
        if way.policy != "on demand" and way.policy not in _ALONE and family is not None:
            families.setdefault(family, []).append(way)
    traces = []
    for key, label, slot, dashes, symbol in _FAMILIES:
        if key in families:
            here = sorted(families[key], key=lambda way: way.overflow_share)
            traces.append(
                plots.line(*_points(here), slot, label, width=2, dash=dashes, symbol=symbol, size=9, **_more(here))
            )
    for way in (way for way in ways if way.policy in _ALONE):
        slot = _ALONE[way.policy]
        traces.append(plots.points(*_points([way]), slot, way.policy, symbol="star", size=15, **_more([way])))
    return traces


def _points(ways: Sequence[Reservation]) -> tuple[list[float], list[float]]:
    return [100 * way.overflow_share for way in ways], [way.concurrency for way in ways]


def _more(ways: Sequence[Reservation]) -> dict[str, Any]:
    hover = "%{text}<br>%{y:.2f} times as many requests<br>%{x:.1f} % outgrow it"
    return {"text": [plain(way.policy) for way in ways], "hover": hover, "cliponaxis": False}


def orders(profile: Profile) -> Figure:
    found = profile.orderings
    names = [plain(order.by) for order in found]
    saved = [100 * order.wait_saved for order in found]
    hover = "%{text}<br>%{x:.0f} % of the wait"
    trace = plots.bars(saved, list(range(len(found))), 3, hover=hover, text=names, orientation="h")
    caption = "Share of the mean wait that is saved in a long queue, shortest first by each predicted length."
    columns = ["Predicted by", Column("Wait saved", unit="share"), "Records"]
    table = Table("orders", caption, columns, [[order.by, order.wait_saved, order.rows] for order in found])
    spoken = "; ".join(f"{order.by}: {write(order.wait_saved, 'share')}" for order in found)
    x = plots.axis("of the mean wait saved (%)", percent=True, zeroline=True)
    layout: plots.Trace = {"height": 110 + 36 * len(found), "bargap": 0.4}
    plot = plots.panel([trace], f"Wait saved. {spoken}.", x=x, y=plots.names_axis(names), **layout)
    text = (
        "In a long queue served one after the other, against the order of arrival. True lengths save the most that any "
        "order can."
    )
    return Figure("orders", "Waiting: shortest first", text, [plot], table)


def drift(profile: Profile) -> Figure | None:
    found = profile.drift
    if found is None:
        return None
    x, title = _window_positions(found)
    traces = []
    for slot, name, key, dashes, symbol in (
        (1, "median", "p50", "solid", "circle"),
        (2, "90th percentile", "p90", "dash", "diamond"),
    ):
        middle, low, high = ([getattr(w, key + end) for w in found.windows] for end in ("", "_low", "_high"))
        looks: plots.Trace = {"width": 2.4, "dash": dashes, "symbol": symbol, "size": 7}
        traces.append(plots.band(x, low, high, slot))
        traces.append(plots.line(x, middle, slot, name, hover=f"{name} %{{y:,}} tokens", **looks))
    columns = ["Window", "From (s)", "To (s)", "Answers", "Median", "90 %"]
    table = Table("drift", "Windows of the trace, each with its 95 % intervals.", columns)
    for i, w in enumerate(found.windows, start=1):
        p50 = Cell(w.p50, beneath=f"{w.p50_low:,} to {w.p50_high:,}")
        p90 = Cell(w.p90, beneath=f"{w.p90_low:,} to {w.p90_high:,}")
        table.add([i, w.begin_s, w.end_s, w.n, p50, p90])
    y = plots.from_zero("tokens of the answer")
    plot = plots.panel(traces, found.verdict, x=plots.axis(title, zeroline=False), y=y)
    return Figure("drift", "Do lengths change?", f"{found.verdict} Bands are 95 % intervals.", [plot], table)


def _window_positions(found: Drift) -> tuple[list[float], str]:
    """The x of each window and the title of the axis: the middle of its time, else its number."""
    times = [w.begin_s for w in found.windows if w.begin_s is not None]
    if found.order == "file" or len(times) < len(found.windows):
        return [float(i) for i in range(1, len(found.windows) + 1)], "part of the file"
    begin = times[0]
    scale, unit = time_unit((found.windows[-1].end_s or 0.0) - begin)
    middles = [((w.begin_s or 0.0) + (w.end_s or 0.0)) / 2 - begin for w in found.windows]
    return [m / scale for m in middles], f"{unit} since the first arrival"


def rate(profile: Profile) -> Figure | None:
    found = profile.arrivals
    times, rates = profile.curves.rate_s, profile.curves.rate_rps
    if found is None or len(times) < 2:
        return None
    width = times[1] - times[0]
    scale, unit = time_unit(found.duration_s)
    trace = plots.line([t / scale for t in times], rates, 1, hover="%{y:.2f} requests/s", width=1.8, steps=True)
    rows = list(zip(times, rates, strict=True))
    table = Table("rate", f"Mean rate in intervals of {width:g} s.", ["From (s)", "Requests/s"], rows)
    text = f"{write(found.rate_rps, 'requests/s')} on average, in intervals of {width:g} s."
    if found.gap_cv is not None:
        kind = "burstier than" if found.gap_cv > 1.2 else "steadier than" if found.gap_cv < 0.8 else "like"
        text += f" Gaps have a coefficient of variation of {found.gap_cv:.2f}: {kind} a Poisson process."
    if found.dispersion_60s is not None:
        text += f" From minute to minute the variance of the count is {write(found.dispersion_60s)} times its mean "
        text += "(Poisson: 1)."
    x = plots.axis(f"{unit} since the first arrival", zeroline=False)
    plot = plots.panel([trace], text, x=x, y=plots.from_zero("requests/s"))
    return Figure("rate", "When requests arrive", text, [plot], table)


def time_unit(seconds: float) -> tuple[float, str]:
    """The unit to show a duration in: its seconds, and its name."""
    for scale, unit in ((86400.0, "days"), (3600.0, "hours"), (60.0, "minutes")):
        if seconds >= 3 * scale:
            return scale, unit
    return 1.0, "seconds"
