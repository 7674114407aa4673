"""Arrivals for the records of a trace.

Rule: arrivals are seconds from the start of the load, ascending with the records' order; a trace that was recorded
keeps its own unless a rate is asked for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from ecoserve.data.arrivals.processes import poisson_arrivals
from ecoserve.data.records import Record, Trace
from ecoserve.errors import TraceError


@dataclass(frozen=True, slots=True)
class ThinkTime:
    """How long after one turn of a conversation the next one comes.

    The load is open: it does not wait for the server. The answer to a turn is taken to need ``seconds_per_token`` for
    each of its tokens; then the person reads and thinks, log-normally distributed.

    Args:
        median_s: median time to think, seconds, > 0.
        sigma: standard deviation of its logarithm, >= 0.
        seconds_per_token: how fast an answer comes, seconds a token, >= 0.

    Raises:
        TraceError: if a number is out of range.
    """

    median_s: float
    sigma: float = 1.0
    seconds_per_token: float = 0.03

    def __post_init__(self) -> None:
        if not 0 < self.median_s < math.inf:
            raise TraceError(f"a median think time of {self.median_s} s is not above 0")
        for name in ("sigma", "seconds_per_token"):
            if not 0 <= getattr(self, name) < math.inf:
                raise TraceError(f"{name} {getattr(self, name)} of a think time is not a number of at least 0")

    def pause_s(self, normal: float, response_tokens: int) -> float:
        """Seconds from a turn's arrival to the next one's; ``normal`` is a standard normal draw."""
        return self.seconds_per_token * response_tokens + self.median_s * math.exp(self.sigma * normal)


def with_arrivals(trace: Trace, rate: float | None = None, seed: int = 0, *, think: ThinkTime | None = None) -> Trace:
    """``trace`` with an arrival time for each record.

    Args:
        trace: what is to arrive.
        rate: requests a second, Poisson, in the order of the trace; ``None`` keeps the recorded arrivals: records
            are sorted by them, and the first one comes at 0 s.
        seed: of the Poisson process and of the think times.
        think: conversations arrive as wholes, as many as make ``rate`` requests a second: the first turn with the
            Poisson process, each further one a think time after the one before. Records are sorted by arrival. Without
            it turns are requests like any others, back to back.

    Raises:
        TraceError: if the rate is not above 0, or it is ``None`` and a record has no arrival.
    """
    if rate is None:
        ordered = recorded(trace)
        start = (ordered[0].arrival_s or 0.0) if ordered else 0.0
        return trace.with_records(replace(r, arrival_s=(r.arrival_s or 0.0) - start) for r in ordered)
    if think is None:
        times = poisson_arrivals(len(trace), rate, seed).tolist()
        return trace.with_records(replace(r, arrival_s=t) for r, t in zip(trace.records, times, strict=True))
    talks: dict[str, list[Record]] = {}
    for record in trace.records:
        talks.setdefault(record.conversation, []).append(record)
    starts = poisson_arrivals(len(talks), rate * len(talks) / max(1, len(trace)), seed).tolist()
    rng = np.random.default_rng([seed, 2])
    arriving: list[Record] = []
    for start, talk in zip(starts, talks.values(), strict=True):
        at, before = start, None
        for record in sorted(talk, key=lambda r: (r.turn, r.sample)):
            # Several answers to one turn are asked for at once.
            if before is not None and record.turn != before.turn:
                at += think.pause_s(rng.normal(), before.response_tokens or 0)
            arriving.append(replace(record, arrival_s=at))
            before = record
    return trace.with_records(sorted(arriving, key=lambda r: r.arrival_s or 0.0))


def rescale_arrivals(trace: Trace, rate: float) -> Trace:
    """``trace`` with its recorded arrivals stretched to ``rate`` requests a second on average, the first at 0 s.

    Raises:
        TraceError: if the rate is not above 0, a record has no arrival, or all have the same.
    """
    if not (math.isfinite(rate) and rate > 0):
        raise TraceError(f"a rate of {rate} requests a second is not above 0")
    records = recorded(trace)
    times = [r.arrival_s or 0.0 for r in records]
    if not times or times[0] == times[-1]:
        raise TraceError("arrivals at one time have no rate that could be changed", where=trace.source)
    stretch = (len(times) - 1) / (times[-1] - times[0]) / rate
    moved = [replace(r, arrival_s=(t - times[0]) * stretch) for r, t in zip(records, times, strict=True)]
    return trace.with_records(moved)


def recorded(trace: Trace) -> list[Record]:
    """The records by their recorded arrivals.

    Raises:
        TraceError: if one has none.
    """
    missing = sum(r.arrival_s is None for r in trace.records)
    if missing:
        what = f"{missing:,} of {len(trace):,} records have no recorded arrival"
        raise TraceError(what, where=trace.source, fix="give a rate in requests a second")
    return sorted(trace.records, key=lambda r: r.arrival_s or 0.0)
