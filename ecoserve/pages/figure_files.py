"""The plots of a report as PNG and SVG and its tables as CSV, for papers and slides.

The Plotly data that the page draws is translated to Matplotlib, which needs no browser and no network. Of a figure with
choices for its y axis each is drawn; of one with choices for its x axis, the first.
"""

from __future__ import annotations

import copy
import html
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, Final

from ecoserve.errors import ConfigError
from ecoserve.files import write_atomically
from ecoserve.pages.page import TEMPLATES, BuiltSection
from ecoserve.pages.plots import Figure, LegendEntry

_DASHES: Final[Mapping[str, Any]] = {
    "solid": "-", "dash": (0, (5, 3)), "dot": (0, (1, 2)), "dashdot": "-.", "longdash": (0, (8, 3)),
    "longdashdot": (0, (8, 2, 2, 2)), "": "none",
}  # fmt: skip
_MARKERS: Final[Mapping[str, str]] = {
    "circle": "o", "circle-open": "o", "diamond": "D", "square": "s", "star": "*", "triangle-up": "^",
    "x": "x", "hatched": "s",
}  # fmt: skip
_STYLE: Final[Any] = {
    "font.size": 9.0, "axes.titlesize": 10.0, "axes.grid": True, "axes.axisbelow": True, "axes.spines.top": False,
    "axes.spines.right": False, "text.parse_math": False, "grid.color": "#d9dfe6", "svg.fonttype": "none",
    "svg.hashsalt": "ecoserve",
}  # fmt: skip
_WIDTH: Final = 4.6
_HEIGHT: Final = 3.3
_DPI: Final = 160


def write_figures(sections: Iterable[BuiltSection], out: Path) -> list[Path]:
    """Write every plot and table of these sections into a folder, which is made; returns the files in the page's order.

    Raises ConfigError if Matplotlib is not installed or the folder cannot be made.
    """
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise ConfigError("drawing files needs Matplotlib", where="--figures", fix="pip install matplotlib") from error
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot be made ({error.strerror})", where=str(out)) from error
    written: list[Path] = []
    with mpl.rc_context(_STYLE):
        for section in sections:
            for table in section.tables:
                written.append(write_atomically(out / f"{table.name}.csv", table.csv().encode()))
            for figure in section.figures:
                written += _draw_all(figure, out)
                written.append(write_atomically(out / f"{figure.id}.csv", figure.table.csv().encode()))
    return written


def _draw_all(figure: Figure, out: Path) -> list[Path]:
    meta = figure.panels[0].spec["layout"].get("meta", {})
    keys = [key for key in figure.choices if key in meta.get("measures", {})]
    shown: list[str | None] = [None] if not keys else list(keys) if meta.get("axis") == "y" else [keys[0]]
    written = []
    for key in shown:
        name = figure.id if key is None or key == shown[0] else f"{figure.id}-{key.replace('_', '-')}"
        canvas = _draw(figure, key)
        for kind in ("png", "svg"):
            sink = io.BytesIO()
            # Without a date, the same results give the same file.
            canvas.savefig(sink, format=kind, dpi=_DPI, metadata={"Date": None} if kind == "svg" else None)
            written.append(write_atomically(out / f"{name}.{kind}", sink.getvalue()))
    return written


def _draw(figure: Figure, key: str | None) -> Any:
    """One Matplotlib figure with all plots of ``figure``; ``key`` is what its axis shows, where there is a choice."""
    from matplotlib.figure import Figure as Canvas

    colors = palette()
    columns = 1 if len(figure.panels) == 1 else 2
    rows = math.ceil(len(figure.panels) / columns)
    tallest = max((panel.spec["layout"].get("height") or 330) for panel in figure.panels)
    height = max(_HEIGHT, min(18.0, tallest / 100))
    canvas = Canvas(figsize=(_WIDTH * (1.8 if columns == 1 else columns), height * rows + 0.9), layout="constrained")
    canvas.suptitle(figure.title)
    axes = canvas.subplots(rows, columns, squeeze=False)
    for ax, panel in zip_longest(axes.flat, figure.panels):
        if panel is None:
            ax.set_axis_off()
            continue
        spec = resolved(panel.spec, key)
        ax.set_title(_text(panel.title))
        for trace in spec["data"]:
            _TRACES[trace.get("type", "scatter")](ax, trace, colors)
        for letter in "xy":
            _axis(ax, letter, spec["layout"].get(f"{letter}axis") or {})
    if figure.legend:
        handles = [_handle(entry, colors) for entry in figure.legend]
        canvas.legend(handles=handles, loc="outside lower center", ncols=3 if len(handles) > 2 else 2, frameon=False)
    return canvas


def palette() -> dict[str, str]:
    """The page's colours in its light theme, by their names in the style sheet."""
    css = (TEMPLATES / "page.css").read_text(encoding="utf-8")
    light = css[: css.index("}")]
    return dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", light))


def _color(trace: Mapping[str, Any], colors: Mapping[str, str]) -> str:
    return colors[f"slot-{trace['meta']['slot']}"]


def resolved(spec: Mapping[str, Any], key: str | None) -> dict[str, Any]:
    """A plot (plain Plotly data) with one choice made as by the page's script; ``key`` None: the first, if any."""
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


def _axis(ax: Any, letter: str, own: Mapping[str, Any]) -> None:
    """Range, ticks and title of one axis; called when everything is drawn."""
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
        labels = [_text(text) for text in own.get("ticktext") or [f"{v:g}" for v in own["tickvals"]]]
        axis.set_ticks(own["tickvals"], labels)
    if own.get("range") and own.get("type") != "log":
        limits(*own["range"])
    elif own.get("rangemode") == "tozero" and own.get("type") != "category":
        limits(**{"left" if letter == "x" else "bottom": 0})


def _scatter(ax: Any, trace: Mapping[str, Any], colors: Mapping[str, str]) -> None:
    color = _color(trace, colors)
    xs = list(trace.get("x") or [])
    ys = [math.nan if y is None else y for y in trace.get("y") or []]
    if trace["meta"].get("band"):
        ax.fill(xs, ys, color=color, alpha=0.1, linewidth=0)
        return
    for name in ("error_x", "error_y"):
        bars = trace.get(name)
        if bars and xs:
            spread = {f"{name[-1]}err": [bars["arrayminus"], bars["array"]]}
            ax.errorbar(xs, ys, fmt="none", ecolor=color, elinewidth=1.0, capsize=2.5, **spread)
    mode = trace.get("mode", "lines")
    line = trace.get("line") or {}
    if "lines" in mode:
        ax.plot(
            xs, ys, color=color, linestyle=_DASHES[line.get("dash", "solid")], linewidth=line.get("width", 2) * 0.75
        )
    if "markers" in mode:
        marker = trace.get("marker") or {}
        symbols = _each(marker.get("symbol", "circle"), len(xs))
        sizes = _each(marker.get("size", 6), len(xs))
        for x, y, symbol, size in zip(xs, ys, symbols, sizes, strict=True):
            face = "none" if symbol == "circle-open" else color
            edge = {} if symbol == "x" else {"facecolors": face, "edgecolors": color}
            ax.scatter([x], [y], s=(0.7 * size) ** 2, marker=_MARKERS[symbol], zorder=3, **(edge or {"color": color}))


def _bar(ax: Any, trace: Mapping[str, Any], colors: Mapping[str, str]) -> None:
    names = [_text(str(x)) for x in trace["x"]]
    bars = ax.bar(names, trace["y"], bottom=trace.get("base"), color=_color(trace, colors), width=0.65)
    if trace.get("text"):
        ax.bar_label(bars, labels=[_text(text) for text in trace["text"]], padding=2, fontsize=8)
    ax.tick_params(axis="x", labelrotation=30)
    ax.grid(visible=False, axis="x")


def _heatmap(ax: Any, trace: Mapping[str, Any], colors: Mapping[str, str]) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    ends = (
        [colors["good"], colors["page"], colors["bad"]]
        if trace["meta"].get("diverging")
        else [colors["page"], _color(trace, colors)]
    )
    values = [[math.nan if v is None else v for v in row] for row in trace["z"]]
    ax.imshow(
        values,
        cmap=LinearSegmentedColormap.from_list("page", ends),
        vmin=trace["zmin"],
        vmax=trace["zmax"],
        aspect="auto",
    )
    ax.set_xticks(range(len(trace["x"])), [_text(str(x)) for x in trace["x"]])
    ax.set_yticks(range(len(trace["y"])), [_text(str(y)) for y in trace["y"]])
    for i, row in enumerate(trace["text"]):
        for j, text in enumerate(row):
            ax.text(j, i, _text(text), ha="center", va="center", fontsize=8, color=colors["ink"])
    ax.grid(visible=False)


_TRACES: Final = {"scatter": _scatter, "bar": _bar, "heatmap": _heatmap}


def _handle(entry: LegendEntry, colors: Mapping[str, str]) -> Any:
    from matplotlib.lines import Line2D

    color = colors[f"slot-{entry.slot}"]
    marker = _MARKERS.get(entry.symbol, "none")
    face = "none" if entry.symbol == "circle-open" else color
    return Line2D(
        [], [], color=color, linestyle=_DASHES[entry.dash], marker=marker, markerfacecolor=face, markersize=6,
        linewidth=1.6, label=_text(entry.label),
    )  # fmt: skip


def _each(value: Any, count: int) -> Sequence[Any]:
    return value if isinstance(value, list) else [value] * count


def _text(text: str) -> str:
    return html.unescape(re.sub(r"</?b>", "", text).replace("<br>", "\n"))
