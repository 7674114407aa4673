"""Arrival processes: Poisson, gamma renewal, a rate that varies over time, bursts.

Rule: each process is a renewal process of mean gap 1 (its seed decides that), run on a clock that goes as fast as the
rate says (the time change of an inhomogeneous process; Cinlar 1975). So the same seed at another rate gives the same
requests, only stretched; burstiness within (``cv``) and a varying rate can be had together; and no arrival is drawn to
be thrown away, as thinning would. All are seconds from the start, ascending, the first one after a first gap, and a
longer load begins with the shorter one.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from ecoserve.data.arrivals.profiles import RateProfile
from ecoserve.errors import TraceError

Floats = npt.NDArray[np.float64]

#: Periods of calm and burst drawn at once.
_CHUNK = 256


def poisson_arrivals(n: int, rate: float, seed: int) -> Floats:
    """Arrivals of a Poisson process: shape ``[n]``, seconds, ascending, the first one after a first gap.

    Args:
        n: how many, >= 0.
        rate: requests a second, > 0.
        seed: the same seed gives the same arrivals; another rate stretches them.

    Raises:
        TraceError: if ``n`` or ``rate`` is out of range.
    """
    return gamma_arrivals(n, rate, 1.0, seed)


def gamma_arrivals(n: int, rate: float, cv: float, seed: int) -> Floats:
    """Arrivals whose gaps are independent and gamma-distributed: shape ``[n]``, seconds.

    Args:
        n: how many, >= 0.
        rate: requests a second, > 0.
        cv: coefficient of variation of the gaps: 0 is a metronome, 1 a Poisson process, above 1 comes in clumps.
        seed: the same seed gives the same arrivals; another rate stretches them.

    Raises:
        TraceError: if ``n``, ``rate`` or ``cv`` is out of range.
    """
    _check_rate(rate)
    return unit_arrivals(n, cv, seed) / rate


def varying_arrivals(
    n: int, rate: float, profile: RateProfile, seed: int, *, cv: float = 1.0, start_s: float = 0.0
) -> Floats:
    """Arrivals at a rate that follows ``profile``: shape ``[n]``, seconds.

    Args:
        n: how many, >= 0.
        rate: requests a second on average over a whole period of the profile, > 0.
        profile: how the rate varies.
        seed: the same seed gives the same requests at any rate.
        cv: of the gaps, on the clock on which the rate is constant.
        start_s: where in the profile's period the load begins.

    Raises:
        TraceError: if ``n``, ``rate`` or ``cv`` is out of range.
    """
    return profile.invert(gamma_arrivals(n, rate, cv, seed), start_s)


def burst_arrivals(
    n: int, rate: float, *, factor: float, burst_s: float, calm_s: float, seed: int, cv: float = 1.0
) -> Floats:
    """Arrivals of a two-state Markov-modulated process: shape ``[n]``, seconds.

    Calm and burst take turns, each lasting an exponentially distributed time. When it starts is as likely within a
    burst as any other moment. Calm and burst do not depend on the rate, only on the seed.

    Args:
        n: how many, >= 0.
        rate: requests a second on average over calm and burst, > 0.
        factor: how many times higher the rate is in a burst, >= 1.
        burst_s, calm_s: mean durations of a burst and of what lies between two, seconds, > 0.
        seed: the same seed gives the same bursts and the same requests.
        cv: of the gaps, on the clock on which the rate is constant; 1 gives the Markov-modulated Poisson process.

    Raises:
        TraceError: if a number is out of range.
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
