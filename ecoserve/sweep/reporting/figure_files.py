"""The report's plots as PNG and SVG and its tables as CSV, for papers and slides: the same figures, by Matplotlib.

Rule: a figure is described once, as the plain Plotly data that the page draws (:mod:`ecoserve.pages.figures`); here
that description is translated, so the files and the page cannot say different things. Matplotlib needs no
browser and no network, as Plotly's own export does. Of a figure whose y axis may show several things each is drawn; of
one whose x axis may, the first.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, Final

from ecoserve.errors import ConfigError
from ecoserve.files import write_atomically
from ecoserve.pages import TEMPLATES, Figure, LegendEntry, Section
from ecoserve.sweep.reporting.figure_axes import dress, resolved

_DASHES: Final[Mapping[str, Any]] = {
    "solid": "-", "dash": (0, (5, 3)), "dot": (0, (1, 2)), "dashdot": "-.", "longdash": (0, (8, 3)),
    "longdashdot": (0, (8, 2, 2, 2)), "": "none",
}  # fmt: skip
_MARKERS: Final[Mapping[str, str]] = {
    "circle": "o", "circle-open": "o", "ring": "o", "diamond": "D", "square": "s", "star": "*", "triangle-up": "^",
    "x": "x", "hatched": "s",
}  # fmt: skip
_OPEN: Final = frozenset({"circle-open", "ring"})
_STYLE: Final[Any] = {
    "font.size": 9.0, "axes.titlesize": 10.0, "axes.grid": True, "axes.axisbelow": True, "axes.spines.top": False,
    "axes.spines.right": False, "text.parse_math": False, "grid.color": "#d9dfe6", "svg.fonttype": "none",
    "svg.hashsalt": "ecoserve",
}  # fmt: skip
_WIDTH: Final = 4.6
_HEIGHT: Final = 3.3
_DPI: Final = 160


def write_figures(sections: Iterable[Section], out: Path) -> list[Path]:
    """Write every plot and table of these sections into a folder, which is made.

    Returns:
        The files, in the order of the page.

    Raises:
        ConfigError: if Matplotlib is not installed or the folder cannot be made.
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
    keys = [key for key, _ in figure.choices if key in meta.get("measures", {})]
    shown: list[str | None] = [None] if not keys else list(keys) if meta.get("axis") == "y" else [keys[0]]
    written = []
    for key in shown:
        name = figure.id if key is None or key == shown[0] else f"{figure.id}-{key.replace('_', '-')}"
        canvas = _draw(figure, key)
        for kind in ("png", "svg"):
            written.append(_save(canvas, out / f"{name}.{kind}", kind))
    return written


def _save(canvas: Any, path: Path, kind: str) -> Path:
    import io

    sink = io.BytesIO()
    # Without a date, the same results give the same file.
    canvas.savefig(sink, format=kind, dpi=_DPI, metadata={"Date": None} if kind == "svg" else None)
    return write_atomically(path, sink.getvalue())


def _draw(figure: Figure, key: str | None) -> Any:
    """One Matplotlib figure with all plots of ``figure``; ``key`` is what its axis shows, where there is a choice."""
    from matplotlib.figure import Figure as Canvas

    colors = palette()
    columns = 1 if figure.wide or len(figure.panels) == 1 else 2
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
        dress(ax, spec["layout"])
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
            face = "none" if symbol in _OPEN else color
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
    face = "none" if entry.symbol in _OPEN else color
    return Line2D(
        [], [], color=color, linestyle=_DASHES[entry.dash], marker=marker, markerfacecolor=face, markersize=6,
        linewidth=1.6, label=_text(entry.label),
    )  # fmt: skip


def _each(value: Any, count: int) -> Sequence[Any]:
    return value if isinstance(value, list) else [value] * count


def _text(text: str) -> str:
    """What Plotly is given, as plain text."""
    return html.unescape(re.sub(r"</?b>", "", text).replace("<br>", "\n"))
