"""Arrival processes: Poisson, gamma renewal, a rate that varies over time, bursts, and arrivals like recorded ones.

Each process is a renewal process of mean gap 1 (its seed decides that), run on a clock that goes as fast as the rate
says (the time change of an inhomogeneous process; Cinlar 1975). So the same seed at another rate gives the same
requests, only stretched; burstiness within (``cv``) and a varying rate can be had together.

All functions return ``n >= 0`` arrivals: shape ``[n]``, seconds from the start, ascending, the first one after a first
gap; a longer load begins with the shorter one. ``rate`` is in requests a second, > 0. ``cv`` is the coefficient of
variation of the gaps on the clock on which the rate is constant: 0 a metronome, 1 Poisson, above 1 clumps. A number out
of range is a :class:`~ecoserve.errors.TraceError`.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import numpy.typing as npt

from ecoserve.data.arrivals.profiles import RateProfile
from ecoserve.errors import TraceError

Floats = npt.NDArray[np.float64]

#: Periods of calm and burst drawn at once.
_CHUNK: Final = 256
#: Gaps in a block on average.
BLOCK: Final = 30
_ARRIVALS_A_WINDOW: Final = 200
_MOST_WINDOWS: Final = 48


def poisson_arrivals(n: int, rate: float, seed: int) -> Floats:
    """Arrivals of a Poisson process."""
    return gamma_arrivals(n, rate, 1.0, seed)


def gamma_arrivals(n: int, rate: float, cv: float, seed: int) -> Floats:
    """Arrivals whose gaps are independent and gamma-distributed."""
    _check_rate(rate)
    return unit_arrivals(n, cv, seed) / rate


def varying_arrivals(
    n: int, rate: float, profile: RateProfile, seed: int, *, cv: float = 1.0, start_s: float = 0.0
) -> Floats:
    """Arrivals at a rate that follows ``profile`` and is ``rate`` on average over its period.

    ``start_s``: where in the period the load begins.
    """
    return profile.invert(gamma_arrivals(n, rate, cv, seed), start_s)


def burst_arrivals(
    n: int, rate: float, *, factor: float, burst_s: float, calm_s: float, seed: int, cv: float = 1.0
) -> Floats:
    """Arrivals of a two-state Markov-modulated process; ``cv`` 1 gives the Markov-modulated Poisson process.

    Calm and burst take turns, each lasting an exponentially distributed time. They depend on the seed, not on the rate.
    A start within a burst is as likely as the share of time in bursts.

    Args:
        n, rate, seed, cv: as above; the rate is the mean over calm and burst.
        factor: how many times higher the rate is in a burst, >= 1.
        burst_s, calm_s: mean durations of a burst and of the time between two, seconds, > 0.
    """
    for name, value in (("burst_s", burst_s), ("calm_s", calm_s)):
        if not 0 < value < math.inf:
            raise TraceError(f"{name} {value} is not a duration above 0 s")
    if not 1 <= factor < math.inf:
        raise TraceError(f"a burst of {factor} times the calm rate is none", fix="give a factor of 1 or more")
    mass = gamma_arrivals(n, rate, cv, seed)  # seconds on a clock on which the rate is constant
    if not n:
        return mass
    calm = (calm_s + burst_s) / (calm_s + factor * burst_s)  # its speed, so that the mean over both states is 1
    speeds = (calm, calm * factor)
    rng = np.random.default_rng([seed, 1])
    bursting = bool(rng.random() < burst_s / (burst_s + calm_s))
    clock, operational = [np.zeros(1)], [np.zeros(1)]
    while operational[-1][-1] <= mass[-1]:
        states = (np.arange(_CHUNK) + bursting) % 2
        durations = rng.exponential(size=_CHUNK) * np.where(states == 1, burst_s, calm_s)
        clock.append(clock[-1][-1] + np.cumsum(durations))
        operational.append(operational[-1][-1] + np.cumsum(durations * np.where(states == 1, speeds[1], speeds[0])))
    return np.interp(mass, np.concatenate(operational), np.concatenate(clock))


def unit_arrivals(n: int, cv: float, seed: int) -> Floats:
    """Arrivals of mean gap 1, shape ``[n]``; the gaps are gamma-distributed with coefficient of variation ``cv``."""
    if n < 0:
        raise TraceError(f"{n} arrivals cannot be made")
    if not 0 <= cv <= 100:
        raise TraceError(f"gaps cannot have a coefficient of variation of {cv}", fix="give 0 to 100; 1 is Poisson")
    if cv == 0:
        return np.arange(1, n + 1, dtype=np.float64)
    rng = np.random.default_rng(seed)
    gaps = rng.exponential(size=n) if cv == 1 else rng.gamma(1.0 / cv**2, cv**2, size=n)
    return np.cumsum(gaps)


def _check_rate(rate: float) -> None:
    if not (math.isfinite(rate) and rate > 0):
        raise TraceError(f"a rate of {rate} requests a second is not above 0")


def resampled_arrivals(
    n: int, times: npt.ArrayLike, seed: int, *, windows: int | None = None, share: float = 1.0
) -> Floats:
    """Arrivals like those at ``times``: their rate over time, and on that their own gaps, drawn again.

    On the clock on which the recorded rate is constant, blocks of consecutive gaps are drawn (the stationary bootstrap
    of Politis and Romano 1994), so that the gaps and the correlation of neighbours stay. No law of gaps is fitted:
    those of production traces have both milliseconds and minutes, which one law misses (docs/workloads.md).

    Args:
        n: how many; more than were recorded go on with the recorded rate from its beginning.
        times: recorded arrivals, shape ``[m]``, seconds, at least three different ones.
        seed: the same seed gives the same arrivals.
        windows: parts of the recorded time that have a rate each; default: 200 arrivals a part, up to 48.
        share: this many arrivals for each recorded one, > 0.
    """
    at = np.sort(np.asarray(times, dtype=np.float64))
    if len(np.unique(at)) < 3:
        raise TraceError(f"{len(at)} arrivals at fewer than three times are no pattern to follow")
    at = at - at[0]
    parts = windows or int(np.clip(len(at) // _ARRIVALS_A_WINDOW, 1, _MOST_WINDOWS))
    profile = RateProfile.of_arrivals(at, parts)
    gaps = np.diff(profile.integral(at))
    return profile.invert(np.cumsum(gaps[_blocks(n, len(gaps), seed)]) / share)


def _blocks(n: int, m: int, seed: int) -> npt.NDArray[np.int64]:
    """``n`` indices below ``m`` (shape ``[n]``): stretches of consecutive ones, each beginning anywhere."""
    draws = np.random.default_rng(seed).random((n, 2))
    begins = draws[:, 0] < 1.0 / BLOCK
    begins[:1] = True
    first = np.flatnonzero(begins)
    lengths = np.diff(np.append(first, n))
    starts = (draws[first, 1] * m).astype(np.int64)
    indices: npt.NDArray[np.int64] = (np.repeat(starts - first, lengths) + np.arange(n)) % m
    return indices
