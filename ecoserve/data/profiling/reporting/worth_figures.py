"""Plots of what knowing lengths is worth: KV cache by way of reserving, and the wait by order of the queue."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from ecoserve.data.profiling.model import Profile, Reservation
from ecoserve.data.profiling.reporting.words import number
from ecoserve.pages import Cell, Column, Figure, LegendEntry, Panel, Table, plain, spec, write


def reservations(profile: Profile) -> Figure:
    """Used and wasted KV cache, and what each way costs in overflow."""
    ways = profile.waste.reservations
    labels = [plain(way.policy) for way in ways]
    y = list(range(len(ways)))
    parts: tuple[tuple[int, str, list[float], dict[str, Any]], ...] = (
        (1, "used", [100 * (1 - way.waste_share) for way in ways], {}),
        (2, "wasted", [100 * way.waste_share for way in ways], {"marker": {"pattern": {"shape": "/"}}}),
    )
    bars: list[dict[str, Any]] = [
        {"type": "bar", "orientation": "h", "x": values, "y": y, "text": labels, "textposition": "none",
         "hovertemplate": f"%{{text}}<br>%{{x:.0f}} % {name}<extra></extra>", "meta": {"slot": slot}, **more}
        for slot, name, values, more in parts
    ]  # fmt: skip
    named = {"tickvals": y, "ticktext": labels, "range": [len(ways) - 0.4, -0.6], "showgrid": False, "zeroline": False}
    shares = {
        "barmode": "stack", "bargap": 0.35, "height": 110 + 32 * len(ways), "yaxis": named,
        "xaxis": {"title": {"text": "reserved KV cache (%)"}, "range": [0, 100], "ticksuffix": " %"},
    }  # fmt: skip
    trade = {
        "height": 110 + 32 * len(ways),
        "xaxis": {"title": {"text": "answers that outgrow it (%)"}, "ticksuffix": " %", "zeroline": False},
        "yaxis": {"title": {"text": "requests at once, max_tokens = 1"}, "rangemode": "tozero"},
    }
    points, legend = _trade(ways)
    table = Table(
        "reservations",
        "Ways to reserve KV cache for an answer.",
        [
            Column("Reserve", number=False), Column("Mean (tokens)", "Mean reservation for an answer."),
            Column("Outgrown", "Share of answers longer than their reservation."),
            Column("Wasted", "Share of the reserved token-time of the KV cache that is never written."),
            Column("Wasted, answers only", "The same without the prompts."),
            Column("Requests at once", "Against reserving max_tokens, same memory, same records."), Column("Records"),
        ],
        [
            [
                Cell(way.policy), number(way.mean_reserved_tokens), number(way.overflow_share, "share"),
                number(way.waste_share, "share"), number(way.answer_waste_share, "share"), number(way.concurrency),
                number(way.rows),
            ]
            for way in ways
        ],
    )  # fmt: skip
    spoken = "; ".join(f"{w.policy}: {write(w.waste_share, 'share')} wasted" for w in ways)
    gained = "; ".join(
        f"{w.policy}: {write(w.concurrency)} times, {write(w.overflow_share, 'share')} outgrow" for w in ways
    )
    return Figure(
        "reservations",
        "KV cache: what is reserved, what is used",
        "A slot holds prompt and reservation for as many steps as the answer has tokens, and fills token by token: so "
        "even true lengths leave about half of the answer’s part empty. Whatever outgrows its reservation goes on "
        "token by token, and may have to be thrown out. On demand wastes nothing and promises nothing.",
        [
            Panel("reservations-0", "Used and wasted", spec(bars, shares), f"Wasted KV cache. {spoken}."),
            Panel(
                "reservations-1",
                "What it brings and what it risks",
                spec(points, trade),
                f"Requests at once. {gained}.",
            ),
        ],
        [LegendEntry("used", 1, "", "square"), LegendEntry("wasted", 2, "", "hatched"), *legend],
        table,
    )


#: Ways to reserve that are one family at several levels: how they end or begin, legend, slot, dash, symbol.
_FAMILIES: Final = (
    ("per prompt band", "percentile of its prompt band", 4, "dash", "diamond"),
    ("predicted", "predicted quantile", 3, "solid", "circle"),
    ("p", "percentile of the whole trace", 1, "solid", "circle"),
)


def _trade(ways: Sequence[Reservation]) -> tuple[list[dict[str, Any]], list[LegendEntry]]:
    """Concurrency against overflow: a line through each family of ways, a star for what stands alone."""
    families: dict[str, list[Reservation]] = {}
    alone = []
    for way in ways:
        family = next((key for key, *_ in _FAMILIES if key in way.policy.split() or key in way.policy), None)
        if way.policy in ("max_tokens", "longest other answer", "true length"):
            alone.append(way)
        elif way.policy != "on demand" and family is not None:
            families.setdefault(family, []).append(way)
    traces, legend = [], []
    for key, label, slot, dash, symbol in _FAMILIES:
        here = sorted(families.get(key, []), key=lambda way: way.overflow_share)
        if here:
            traces.append(_points(here, slot, "lines+markers", symbol, dash))
            legend.append(LegendEntry(label, slot, dash, symbol))
    for slot, way in enumerate(alone, start=4):
        named = {"max_tokens": 0, "true length": 2}.get(way.policy, slot)
        traces.append(_points([way], named, "markers", "star", "solid"))
        legend.append(LegendEntry(way.policy, named, "", "star"))
    return traces, legend


def _points(ways: Sequence[Reservation], slot: int, mode: str, symbol: str, dash: str) -> dict[str, Any]:
    return {
        "x": [100 * way.overflow_share for way in ways], "y": [way.concurrency for way in ways], "mode": mode,
        "line": {"width": 2, "dash": dash}, "marker": {"size": 15 if symbol == "star" else 9, "symbol": symbol},
        "text": [plain(way.policy) for way in ways], "meta": {"slot": slot}, "cliponaxis": False,
        "hovertemplate": "%{text}<br>%{y:.2f} times as many requests<br>%{x:.1f} % outgrow it<extra></extra>",
    }  # fmt: skip


def orders(profile: Profile) -> Figure:
    """The wait saved by serving the shortest first."""
    found = profile.orderings
    values = [100 * order.wait_saved for order in found]
    trace = {
        "type": "bar", "orientation": "h", "x": values, "y": list(range(len(found))), "meta": {"slot": 3},
        "text": [plain(order.by) for order in found], "textposition": "none",
        "hovertemplate": "%{text}<br>%{x:.0f} % of the wait<extra></extra>",
    }  # fmt: skip
    layout = {
        "height": 110 + 36 * len(found), "bargap": 0.4,
        "yaxis": {"tickvals": list(range(len(found))), "ticktext": [plain(order.by) for order in found],
                  "range": [len(found) - 0.4, -0.6], "showgrid": False, "zeroline": False},
        "xaxis": {"title": {"text": "of the mean wait saved (%)"}, "ticksuffix": " %", "zeroline": True},
    }  # fmt: skip
    table = Table(
        "orders",
        "Share of the mean wait that disappears in a long queue, shortest first by each guess.",
        [Column("Guess", number=False), Column("Wait saved"), Column("Records")],
        [[Cell(order.by), number(order.wait_saved, "share"), number(order.rows)] for order in found],
    )
    spoken = "; ".join(f"{order.by}: {write(order.wait_saved, 'share')}" for order in found)
    return Figure(
        "orders",
        "Waiting: shortest first",
        "In a long queue served one after the other, against the order of arrival. True lengths save the most that any "
        "order can.",
        [Panel("orders-0", "", spec([trace], layout), f"Wait saved. {spoken}.")],
        [],
        table,
        wide=True,
    )
