"""Changes of lengths over the trace, and whether the requests or the answers to them changed.

The trace is cut into windows of equally many records, by arrival where it was recorded, else in the order of the file
(which need not be an order in time). Records of one conversation resemble each other, so intervals and tests count as
many records as would be independent (design effect). Trend: Mann-Kendall on the windows' medians. Differences between
windows: Kruskal-Wallis. The change from the first half to the second is split into mix and within (Kitagawa 1955) over
prompt band x first or later turn x model.
"""

from __future__ import annotations

import itertools
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from ecoserve.data.profiling.groupings import explained, prompt_bands
from ecoserve.data.profiling.model import Drift, Window
from ecoserve.data.profiling.summaries import Z95, count, design_effect, interval, quantile
from ecoserve.data.profiling.table import TraceTable
from ecoserve.pages.numbers import write_change

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
    """The parts of mean(b) - mean(a): another mix of cells, and change within them (they add up).

    Cells of one side only count as mix. ``None`` if the sides have no cell in common.
    """
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
    low50, high50 = interval(counts, 0.5, effect)
    low90, high90 = interval(counts, 0.9, effect)
    known = times[np.isfinite(times)]
    return Window(
        n=len(response),
        begin_s=float(known[0]) if len(known) else None,
        end_s=float(known[-1]) if len(known) else None,
        p50=quantile(counts, 0.5),
        p50_low=low50,
        p50_high=high50,
        p90=quantile(counts, 0.9),
        p90_low=low90,
        p90_high=high90,
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
