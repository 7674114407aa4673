"""Changes of lengths over the trace, and arrivals; docs/guides/profiling.md names the tests.

Windows hold equally many records, by arrival where it was recorded, else in the order of the file. Intervals and tests
count as many records as would be independent (design effect). The change from the first half to the second is split
into mix and within (Kitagawa 1955) over prompt band x first or later turn x model.
"""

from __future__ import annotations

import itertools
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from ecoserve.data.profiling.model import Arrivals, Drift, Window
from ecoserve.data.profiling.summaries import Z95, count, design_effect, explained, intervals, prompt_bands, quantile
from ecoserve.data.profiling.table import TraceTable
from ecoserve.pages.tables import write_change

WINDOWS: Final = 20
_FEWEST: Final = 200
#: Fewer records than this make no window.
_PER_WINDOW: Final = 50
#: Change of the mean, or spread of the windows' medians, from which drift is called marked.
MARKED: Final = 0.2
SMALL: Final = 0.05

Ints = npt.NDArray[np.int64]


def drift(table: TraceTable, conversations: Ints) -> Drift | None:
    """Drift over a table; ``None`` for fewer than 200 records. ``conversations``: number of each record's, ``[n]``."""
    n = len(table)
    if n < _FEWEST:
        return None
    order, by = in_order(table)
    response = table.response[order]
    times = table.arrival[order] if by == "arrival" else np.full(n, np.nan)
    effect = design_effect(response, conversations[order])
    bounds = np.linspace(0, n, min(WINDOWS, n // _PER_WINDOW) + 1).astype(int)
    windows = [_window(response[a:b], times[a:b], effect) for a, b in itertools.pairwise(bounds.tolist())]
    number = np.repeat(np.arange(len(windows)), np.diff(bounds))
    tau, p = _mann_kendall([w.p50 for w in windows])
    between_p = _kruskal(response, number, effect)
    half = n // 2
    first, second = response[:half], response[half:]
    change = float(second.mean() - first.mean())
    error = Z95 * (effect * (first.var() / len(first) + second.var() / len(second))) ** 0.5
    kinds = cells(table)[order]
    mix, within = mix_and_within(kinds[:half], first, kinds[half:], second)
    medians = [w.p50 for w in windows]
    relative = change / max(1.0, float(first.mean()))
    spread = (float(np.quantile(medians, 0.9)) - float(np.quantile(medians, 0.1))) / max(1.0, float(np.median(medians)))
    shown = abs(change) > error and abs(relative) >= SMALL
    uneven = between_p < 0.01 and spread >= SMALL
    kind: Literal["none", "small", "marked"] = "none"
    if shown or uneven:
        kind = "marked" if (shown and abs(relative) >= MARKED) or (uneven and spread >= MARKED) else "small"
    return Drift(
        order=by,
        windows=windows,
        trend_tau=tau,
        trend_p=p,
        between_windows=explained(np.log(np.maximum(response, 1)), number) or 0.0,
        between_windows_p=between_p,
        change_tokens=change,
        change_low_tokens=change - error,
        change_high_tokens=change + error,
        mix_tokens=mix,
        within_tokens=within,
        kind=kind,
        verdict=_verdict(kind, by, relative, change, shown, mix, medians),
    )


def in_order(table: TraceTable) -> tuple[Ints, Literal["arrival", "file"]]:
    """The rows in order, and which order that is: of arrivals if at least 95 % of the records have one."""
    known = np.isfinite(table.arrival)
    if known.mean() < 0.95:
        return np.arange(len(table)), "file"
    # A record without an arrival follows the ones before it in the file.
    filled = np.maximum.accumulate(np.where(known, table.arrival, -np.inf)) if not known.all() else table.arrival
    return np.argsort(np.where(known, table.arrival, filled), kind="stable"), "arrival"


def cells(table: TraceTable) -> Ints:
    """The kind of each record, shape ``[n]``: its prompt band, first or later turn, and model."""
    bands = np.zeros(len(table), dtype=np.int64)
    known = table.prompt >= 0
    if known.any():
        bands[known] = 1 + prompt_bands(table.prompt[known], 1)[0]
    return (bands * 2 + (table.turn > 0)) * len(table.models) + table.model


def mix_and_within(
    cells_a: Ints, values_a: npt.NDArray[Any], cells_b: Ints, values_b: npt.NDArray[Any]
) -> tuple[float | None, float | None]:
    """The parts of mean(b) - mean(a): another mix of cells, and change within them; ``None`` without a common cell."""
    k = int(max(cells_a.max(initial=0), cells_b.max(initial=0))) + 1
    n_a, n_b = np.bincount(cells_a, minlength=k), np.bincount(cells_b, minlength=k)
    both = (n_a > 0) & (n_b > 0)
    if not both.any():
        return None, None
    mean_a = np.bincount(cells_a, weights=values_a, minlength=k)[both] / n_a[both]
    mean_b = np.bincount(cells_b, weights=values_b, minlength=k)[both] / n_b[both]
    share_a, share_b = n_a[both] / len(cells_a), n_b[both] / len(cells_b)
    within = float(((share_a + share_b) / 2) @ (mean_b - mean_a))
    return float(values_b.mean() - values_a.mean()) - within, within


def _window(response: npt.NDArray[Any], times: npt.NDArray[np.float64], effect: float) -> Window:
    counts = count(response)
    known = times[np.isfinite(times)]
    return Window(
        n=len(response),
        begin_s=float(known[0]) if len(known) else None,
        end_s=float(known[-1]) if len(known) else None,
        p50=quantile(counts, 0.5),
        p90=quantile(counts, 0.9),
        **intervals(counts, effect),
    )


def _mann_kendall(medians: list[int]) -> tuple[float | None, float | None]:
    from scipy.stats import kendalltau

    if len(medians) < 4 or len(set(medians)) == 1:
        return None, None
    found = kendalltau(np.arange(len(medians)), medians)
    return float(found.statistic), float(found.pvalue)


def _kruskal(response: npt.NDArray[Any], number: Ints, effect: float) -> float:
    """p value of Kruskal-Wallis, its statistic divided by the design effect."""
    from scipy.stats import chi2, kruskal

    if np.ptp(response) == 0:
        return 1.0
    statistic = kruskal(*(response[number == w] for w in range(int(number.max()) + 1))).statistic
    return float(chi2.sf(statistic / effect, int(number.max())))


def _verdict(
    kind: str, by: str, relative: float, change: float, shown: bool, mix: float | None, medians: list[int]
) -> str:
    order = "over time" if by == "arrival" else "over the file (no arrivals were recorded, so this need not be time)"
    span = f"medians of {len(medians)} windows lie between {min(medians):,} and {max(medians):,}"
    if kind == "none":
        return f"No drift {order} beyond chance: {span}."
    text = "no trend, but windows differ by more than chance"
    if shown:
        more = "longer" if change > 0 else "shorter"
        text = f"the second half’s mean is {abs(change):,.0f} tokens ({write_change(relative)}) {more} than the first’s"
    if shown and mix is not None and change:
        part = mix / change
        reasons = f"{write_change(min(1.0, part), sign=False)} of it by other kinds of requests"
        if part > 0.7:
            reasons = "by other kinds of requests"
        elif part < 0.3:
            reasons = "with the same kinds of requests answered differently"
        text += f", {reasons}"
    return f"{'Marked' if kind == 'marked' else 'Small'} drift {order}: {text}; {span}."


_FEWEST_ARRIVALS: Final = 20
#: Windows that a variance needs.
_FEWEST_WINDOWS: Final = 10
#: Intervals in the plot of the rate, at most.
_PIECES: Final = 240

#: Arrivals processed at once.
_BLOCK: Final = 1 << 20

Floats = npt.NDArray[np.float64]


def arrivals(table: TraceTable) -> tuple[Arrivals | None, list[float], list[float]]:
    """The arrivals (``None`` for fewer than 20, or all at once), and the rate over time: seconds, rates."""
    known = np.isfinite(table.arrival)
    times = table.arrival[known]
    times.sort()
    if len(times) < _FEWEST_ARRIVALS or times[-1] <= times[0]:
        return None, [], []
    times -= times[0]
    duration = float(times[-1])
    gaps = np.diff(times)
    found = Arrivals(
        rows=len(times),
        duration_s=duration,
        rate_rps=(len(times) - 1) / duration,
        gap_cv=float(gaps.std() / gaps.mean()),
        dispersion_1s=dispersion(times, 1.0),
        dispersion_10s=dispersion(times, 10.0),
        dispersion_60s=dispersion(times, 60.0),
        busiest_second_rps=float(_counts(times, 1.0)[1].max()),
        busiest_minute_rps=busiest(times, 60.0),
        busiest_hour_rps=busiest(times, 3600.0) if duration >= 7200.0 else None,
        output_tokens_per_s=float(table.response[known].sum(dtype=np.int64)) / duration,
    )
    width = piece(duration)
    rates = np.bincount((times // width).astype(np.int64)) / width
    return found, [k * width for k in range(len(rates))], [float(rate) for rate in rates]


def dispersion(times: Floats, width: float) -> float | None:
    """Variance over mean of the counts in whole windows of ``width`` seconds; ``None`` for fewer than ten."""
    whole = int(times[-1] // width)
    if whole < _FEWEST_WINDOWS:
        return None
    number, counted = _counts(times, width)
    counted = counted[number < whole]
    mean = float(counted.sum()) / whole
    return (float((counted.astype(np.float64) ** 2).sum()) - whole * mean**2) / (whole - 1) / mean


def busiest(times: Floats, width: float) -> float | None:
    """Highest mean rate in any ``width`` seconds, wherever they begin; ``None`` for a shorter trace."""
    if times[-1] < width:
        return None
    most = 0
    for start in range(0, len(times), _BLOCK):
        begins = times[start : start + _BLOCK]
        ends = np.searchsorted(times, begins + width, side="left")
        most = max(most, int((ends - np.arange(start, start + len(begins))).max()))
    return most / width


def piece(duration: float) -> float:
    """A round length of time (seconds) of which ``duration`` has at most 240."""
    for width in (0.1, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 21600, 43200, 86400, 604800):
        if duration / width <= _PIECES:
            return float(width)
    return duration / _PIECES


def _counts(times: Floats, width: float) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The windows of ``width`` seconds with arrivals (``times`` ascending), and their counts."""
    number = (times // width).astype(np.int64)
    begins = np.concatenate(([0], np.flatnonzero(number[1:] != number[:-1]) + 1))
    return number[begins], np.diff(begins, append=len(number))
