"""Arrivals: rate, burstiness, busiest times.

Only recorded arrivals count. Index of dispersion: variance over mean of the counts in windows of equal length from the
first arrival on, without the last, incomplete one.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from ecoserve.data.profiling.model import Arrivals
from ecoserve.data.profiling.table import TraceTable

_FEWEST: Final = 20
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
    if len(times) < _FEWEST or times[-1] <= times[0]:
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
