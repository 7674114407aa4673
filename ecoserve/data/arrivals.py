"""When requests arrive.

Rule: arrivals are seconds from the start of the load, ascending with the records' order; a trace that was recorded
keeps its own unless a rate is asked for.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from ecoserve.data.records import Trace
from ecoserve.errors import TraceError


def poisson_arrivals(n: int, rate: float, seed: int) -> npt.NDArray[np.float64]:
    """Arrivals of a Poisson process: shape ``[n]``, seconds, ascending, the first one after a first gap.

    Args:
        n: how many, >= 0.
        rate: requests a second, > 0.
        seed: the same seed gives the same arrivals; another rate stretches them.

    Raises:
        TraceError: if ``n`` or ``rate`` is out of range.
    """
    if n < 0:
        raise TraceError(f"{n} arrivals cannot be made")
    if not (math.isfinite(rate) and rate > 0):
        raise TraceError(f"a rate of {rate} requests a second is not above 0")
    return np.cumsum(np.random.default_rng(seed).exponential(size=n)) / rate


def with_arrivals(trace: Trace, rate: float | None = None, seed: int = 0) -> Trace:
    """``trace`` with an arrival time for each record.

    Args:
        trace: what is to arrive.
        rate: requests a second, Poisson, in the order of the trace; ``None`` keeps the recorded arrivals: records
            are sorted by them, and the first one comes at 0 s.
        seed: of the Poisson process.

    Raises:
        TraceError: if the rate is not above 0, or it is ``None`` and a record has no arrival.
    """
    if rate is not None:
        times = poisson_arrivals(len(trace), rate, seed).tolist()
        return trace.with_records(replace(r, arrival_s=t) for r, t in zip(trace.records, times, strict=True))
    missing = sum(r.arrival_s is None for r in trace.records)
    if missing:
        what = f"{missing:,} of {len(trace):,} records have no recorded arrival"
        raise TraceError(what, where=trace.source, fix="give a rate in requests a second")
    ordered = sorted(trace.records, key=lambda r: r.arrival_s or 0.0)
    start = (ordered[0].arrival_s or 0.0) if ordered else 0.0
    return trace.with_records(replace(r, arrival_s=(r.arrival_s or 0.0) - start) for r in ordered)
