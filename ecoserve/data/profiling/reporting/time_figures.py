"""Plots over time: lengths in windows of the trace, and the rate of arrivals."""

from __future__ import annotations

from typing import Any

from ecoserve.data.profiling.model import Drift, Profile
from ecoserve.data.profiling.reporting.words import number
from ecoserve.pages import Cell, Column, Figure, LegendEntry, Panel, Table, spec, write


def drift(profile: Profile) -> Figure | None:
    """Median and 90th percentile over the trace."""
    found = profile.drift
    if found is None:
        return None
    x, title = _positions(found)
    traces: list[dict[str, Any]] = []
    for slot, name, low, middle, high in (
        (1, "median", "p50_low", "p50", "p50_high"),
        (2, "90th percentile", "p90_low", "p90", "p90_high"),
    ):
        lows, highs = ([getattr(w, key) for w in found.windows] for key in (low, high))
        traces.append(
            {"x": [*x, *reversed(x)], "y": [*highs, *reversed(lows)], "mode": "none", "fill": "toself",
             "hoverinfo": "skip", "meta": {"slot": slot, "band": 1}}
        )  # fmt: skip
        traces.append(
            {"x": x, "y": [getattr(w, middle) for w in found.windows], "mode": "lines+markers",
             "line": {"width": 2.4, "dash": "solid" if slot == 1 else "dash"},
             "marker": {"size": 7, "symbol": "circle" if slot == 1 else "diamond"}, "meta": {"slot": slot},
             "hovertemplate": f"{name} %{{y:,}} tokens<extra></extra>"}
        )  # fmt: skip
    layout = {
        "xaxis": {"title": {"text": title}, "zeroline": False},
        "yaxis": {"title": {"text": "tokens of the answer"}, "rangemode": "tozero"},
    }
    table = Table(
        "drift",
        "Windows of the trace, each with its 95 % intervals.",
        [Column("Window"), Column("From (s)"), Column("To (s)"), Column("Answers"), Column("Median"), Column("90 %")],
        [
            [
                Cell(str(i)), number(w.begin_s), number(w.end_s), number(w.n),
                Cell(f"{w.p50:,}", f"{w.p50_low:,} to {w.p50_high:,}", w.p50),
                Cell(f"{w.p90:,}", f"{w.p90_low:,} to {w.p90_high:,}", w.p90),
            ]
            for i, w in enumerate(found.windows, start=1)
        ],
    )  # fmt: skip
    return Figure(
        "drift",
        "Do lengths change?",
        f"{found.verdict} Bands are 95 % intervals.",
        [Panel("drift-0", "", spec(traces, layout), found.verdict)],
        [LegendEntry("median", 1, "solid", "circle"), LegendEntry("90th percentile", 2, "dash", "diamond")],
        table,
        wide=True,
    )


def _positions(found: Drift) -> tuple[list[float], str]:
    """Where the windows stand: the middle of their time, else their number."""
    times = [w.begin_s for w in found.windows if w.begin_s is not None]
    if found.order == "file" or len(times) < len(found.windows):
        return [float(i) for i in range(1, len(found.windows) + 1)], "part of the file"
    begin = times[0]
    scale, unit = time_unit((found.windows[-1].end_s or 0.0) - begin)
    middles = [((w.begin_s or 0.0) + (w.end_s or 0.0)) / 2 - begin for w in found.windows]
    return [m / scale for m in middles], f"{unit} since the first arrival"


def rate(profile: Profile) -> Figure | None:
    """Requests per second over time."""
    found = profile.arrivals
    times, rates = profile.curves.rate_s, profile.curves.rate_rps
    if found is None or len(times) < 2:
        return None
    width = times[1] - times[0]
    scale, unit = time_unit(found.duration_s)
    trace = {
        "x": [t / scale for t in times], "y": rates, "mode": "lines", "line": {"width": 1.8, "shape": "hv"},
        "meta": {"slot": 1}, "hovertemplate": "%{y:.2f} requests/s<extra></extra>",
    }  # fmt: skip
    layout = {
        "xaxis": {"title": {"text": f"{unit} since the first arrival"}, "zeroline": False},
        "yaxis": {"title": {"text": "requests/s"}, "rangemode": "tozero"},
    }
    table = Table(
        "rate",
        f"Mean rate in pieces of {width:g} s.",
        [Column("From (s)"), Column("Requests/s")],
        [[number(t), number(r)] for t, r in zip(times, rates, strict=True)],
    )
    text = f"{write(found.rate_rps, 'requests/s')} on average, in pieces of {width:g} s."
    if found.gap_cv is not None:
        kind = (
            "like a Poisson process" if 0.8 <= found.gap_cv <= 1.2 else "burstier" if found.gap_cv > 1 else "steadier"
        )
        than = "" if kind.startswith("like") else " than a Poisson process"
        text += f" Gaps have a coefficient of variation of {found.gap_cv:.2f}: {kind}{than}."
    if found.dispersion_60s is not None:
        text += (
            f" From minute to minute the count’s variance is {write(found.dispersion_60s)} times its mean (Poisson: 1)."
        )
    return Figure(
        "rate", "When requests come", text, [Panel("rate-0", "", spec([trace], layout), text)], [], table, wide=True
    )


def time_unit(seconds: float) -> tuple[float, str]:
    """Seconds of the unit that a duration is told in, and its name."""
    for scale, unit in ((86400.0, "days"), (3600.0, "hours"), (60.0, "minutes")):
        if seconds >= 3 * scale:
            return scale, unit
    return 1.0, "seconds"
