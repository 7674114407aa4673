"""Plotly's axes for Matplotlib: ranges, ticks and titles, and which of several choices an axis shows."""

from __future__ import annotations

import copy
import html
import re
from collections.abc import Mapping
from typing import Any


def resolved(spec: Mapping[str, Any], key: str | None) -> dict[str, Any]:
    """A plot with one choice made for it, as the page's script makes it.

    Args:
        spec: the Plotly figure as plain data.
        key: the choice; None: the first, if there are any.
    """
    made: dict[str, Any] = copy.deepcopy(dict(spec))
    meta = made["layout"].get("meta", {})
    measures = meta.get("measures") or {}
    if not measures:
        return made
    chosen = key if key in measures else next(iter(measures))
    axis = f"{meta.get('axis', 'x')}axis"
    own = measures[chosen]
    made["layout"][axis] = {
        **made["layout"].get(axis, {}),
        "title": {"text": own["title"]},
        "tickformat": own.get("tickformat", ""),
        **({"range": own["range"]} if "range" in own else {}),
    }
    for trace in made["data"]:
        trace.update(trace["meta"].get("by", {}).get(chosen, {}))
        if "range" in own:
            ends = {"low": own["range"][0], "high": own["range"][1]}
            trace["x"] = [ends.get(x, x) if isinstance(x, str) else x for x in trace.get("x", [])]
    return made


def dress(ax: Any, layout: Mapping[str, Any]) -> None:
    """Give a Matplotlib axes what the layout says of its two axes; call it when everything is drawn."""
    for letter in "xy":
        _axis(ax, letter, layout.get(f"{letter}axis") or {})


def _axis(ax: Any, letter: str, own: Mapping[str, Any]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, PercentFormatter

    axis = getattr(ax, f"{letter}axis")
    limits = getattr(ax, f"set_{letter}lim")
    getattr(ax, f"set_{letter}label")((own.get("title") or {}).get("text", ""))
    if own.get("type") == "log":
        getattr(ax, f"set_{letter}scale")("log")
        axis.set_major_locator(LogLocator(subs=(1.0, 1.5, 2.0, 3.0, 5.0, 7.0)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(FuncFormatter(lambda value, _: ""))
    if own.get("tickformat") == ".0%":
        axis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    elif own.get("ticksuffix"):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}{own['ticksuffix']}"))
    if own.get("tickvals"):
        labels = [_label(text) for text in own.get("ticktext") or [f"{v:g}" for v in own["tickvals"]]]
        axis.set_ticks(own["tickvals"], labels)
    if own.get("range") and own.get("type") != "log":
        limits(*own["range"])
    elif own.get("rangemode") == "tozero" and own.get("type") != "category":
        limits(**{"left" if letter == "x" else "bottom": 0})


def _label(text: str) -> str:
    return html.unescape(re.sub(r"</?b>", "", str(text)))
