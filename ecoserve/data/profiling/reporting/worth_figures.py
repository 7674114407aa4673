"""Figures of what knowing lengths is worth: KV cache by way of reserving, and the wait by order of the queue."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from ecoserve.data.profiling.model import Profile, Reservation
from ecoserve.pages import Column, Figure, Table, plain, plots, write


def reservations(profile: Profile) -> Figure:
    """Used and wasted KV cache, and concurrency against overflow."""
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
    for key, label, slot, dash, symbol in _FAMILIES:
        if key in families:
            here = sorted(families[key], key=lambda way: way.overflow_share)
            traces.append(
                plots.line(*_points(here), slot, label, width=2, dash=dash, symbol=symbol, size=9, **_more(here))
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
    """The wait saved by serving the shortest first."""
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
