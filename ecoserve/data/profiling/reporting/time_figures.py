"""Figures over time: lengths in windows of the trace, and the rate of arrivals."""

from __future__ import annotations

from ecoserve.data.profiling.model import Drift, Profile
from ecoserve.pages import Cell, Figure, Table, plots, write


def drift(profile: Profile) -> Figure | None:
    """Median and 90th percentile over the trace."""
    found = profile.drift
    if found is None:
        return None
    x, title = _positions(found)
    traces = []
    for slot, name, key, dash, symbol in (
        (1, "median", "p50", "solid", "circle"),
        (2, "90th percentile", "p90", "dash", "diamond"),
    ):
        middle, low, high = ([getattr(w, key + end) for w in found.windows] for end in ("", "_low", "_high"))
        looks: plots.Trace = {"width": 2.4, "dash": dash, "symbol": symbol, "size": 7}
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


def _positions(found: Drift) -> tuple[list[float], str]:
    """The x of each window and the title of the axis: the middle of its time, else its number."""
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
