"""Arrival processes: Poisson, gamma renewal, a rate that varies over time, bursts, and arrivals like recorded ones.

Each is a renewal process of mean gap 1 (its seed decides that) on a clock that goes as fast as the rate says
(docs/guides/workloads.md). All functions return ``n >= 0`` arrivals: shape ``[n]``, seconds from the start, ascending,
the first one after a first gap; a longer load begins with the shorter one. ``rate`` is in requests a second, > 0.
``cv`` is the coefficient of variation of the gaps on the clock on which the rate is constant: 0 a metronome, 1 Poisson,
above 1 clumps. A number out of range is a :class:`~ecoserve.errors.TraceError`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from ecoserve.errors import TraceError

Floats = npt.NDArray[np.float64]

HOURS_A_DAY: Final = 24
#: Pieces of a day, one a minute, and the hours of their middles.
_MINUTES: Final = 1440
_MIDDLES: Final = (np.arange(_MINUTES) + 0.5) * HOURS_A_DAY / _MINUTES
#: Periods of calm and burst drawn at once.
_CHUNK: Final = 256
#: Gaps in a block on average.
BLOCK: Final = 30
_ARRIVALS_A_WINDOW: Final = 200
_MOST_WINDOWS: Final = 48


@dataclass(frozen=True)
class RateProfile:
    """A rate that repeats after ``period_s`` seconds, constant on each of the period's equal pieces.

    ``relative`` has the rate in each piece, in any unit; it is kept with mean 1.
    """

    period_s: float
    relative: tuple[float, ...]

    def __post_init__(self) -> None:
        if not 0 < self.period_s < math.inf:
            raise TraceError(f"a rate cannot repeat after {self.period_s} s", fix="give a number of seconds above 0")
        rates = np.asarray(self.relative, dtype=np.float64)
        if not rates.size or not np.isfinite(rates).all() or rates.min() < 0 or rates.max() <= 0:
            raise TraceError("the rates of a profile are numbers of at least 0, and not all 0")
        object.__setattr__(self, "relative", tuple((rates / rates.mean()).tolist()))

    @classmethod
    def of_hours(cls, hours: Sequence[float], day_s: float) -> RateProfile:
        """A day of ``day_s`` seconds whose rate at each full hour is given (24 numbers), straight lines between."""
        if len(hours) != HOURS_A_DAY:
            raise TraceError(f"a day has {HOURS_A_DAY} hours, {len(hours)} rates are given")
        return cls(day_s, tuple(np.interp(_MIDDLES, np.arange(HOURS_A_DAY + 1), [*hours, hours[0]]).tolist()))

    @classmethod
    def of_waves(cls, waves: Iterable[tuple[float, float, int]], day_s: float) -> RateProfile:
        """A day of ``day_s`` seconds whose rate is 1 plus waves (amplitude, hour of a peak, cycles a day)."""
        rates = np.ones(_MINUTES)
        for amplitude, peak_hour, cycles in waves:
            rates += amplitude * np.cos(2 * np.pi * cycles * (_MIDDLES - peak_hour) / HOURS_A_DAY)
        if rates.min() < 0:
            worst = float(_MIDDLES[np.argmin(rates)])
            raise TraceError(f"the waves make the rate negative at {worst:.1f} h", fix="lower the amplitudes")
        return cls(day_s, tuple(rates.tolist()))

    @classmethod
    def of_arrivals(cls, times: npt.ArrayLike, windows: int) -> RateProfile:
        """The rates seen in ``windows`` equal parts of the time from the first to the last of ``times`` (seconds).

        Windows differ by chance, too: what a Poisson process would show of that is taken out of their variance.
        """
        at = np.sort(np.asarray(times, dtype=np.float64))
        if len(at) < 2 or at[0] == at[-1]:
            raise TraceError(f"{len(at)} arrivals at one time have no rate")
        counts, _ = np.histogram(at, bins=windows)
        relative = counts / counts.mean()
        chance, seen = 1.0 / float(counts.mean()), float(relative.var())
        kept = math.sqrt(max(0.0, 1.0 - chance / seen)) if seen > 0 else 0.0
        return cls(float(at[-1] - at[0]), tuple((1.0 + kept * (relative - 1.0)).tolist()))

    def integral(self, times: npt.ArrayLike) -> Floats:
        """The rate relative to its mean, integrated from 0 to each of ``times`` (seconds): seconds."""
        whole, rest = np.divmod(np.asarray(times, dtype=np.float64), self.period_s)
        edges, mass = self._pieces()
        return np.asarray(whole * self.period_s + np.interp(rest, edges, mass))

    def invert(self, mass: npt.ArrayLike, start_s: float = 0.0) -> Floats:
        """When the integral from ``start_s`` on reaches each of ``mass`` (seconds): seconds after ``start_s``."""
        edges, cumulated = self._pieces()
        whole, rest = np.divmod(np.asarray(mass, dtype=np.float64) + self.integral(start_s), self.period_s)
        # The piece in which it is reached has a rate above 0; pieces of rate 0 may lie before.
        piece = np.clip(np.searchsorted(cumulated, rest, side="right") - 1, 0, len(self.relative) - 1)
        width = self.period_s / len(self.relative)
        rate = np.asarray(self.relative)[piece]
        inside = np.divide(rest - cumulated[piece], rate, out=np.full(rest.shape, width), where=rate > 0)
        return np.asarray(whole * self.period_s + edges[piece] + np.minimum(inside, width) - start_s)

    def _pieces(self) -> tuple[Floats, Floats]:
        """The pieces' edges and the integral up to each, both shape ``[k + 1]``, seconds."""
        k = len(self.relative)
        edges = np.linspace(0.0, self.period_s, k + 1)
        mass = np.concatenate(([0.0], np.cumsum(self.relative))) * (self.period_s / k)
        mass[-1] = self.period_s
        return edges, mass


def poisson_arrivals(n: int, rate: float, seed: int) -> Floats:
    return gamma_arrivals(n, rate, 1.0, seed)


def gamma_arrivals(n: int, rate: float, cv: float, seed: int) -> Floats:
    """Arrivals whose gaps are independent and gamma-distributed."""
    if not (math.isfinite(rate) and rate > 0):
        raise TraceError(f"a rate of {rate} requests a second is not above 0")
    if n < 0:
        raise TraceError(f"{n} arrivals cannot be made")
    if not 0 <= cv <= 100:
        raise TraceError(f"gaps cannot have a coefficient of variation of {cv}", fix="give 0 to 100; 1 is Poisson")
    if cv == 0:
        return np.arange(1, n + 1, dtype=np.float64) / rate
    rng = np.random.default_rng(seed)
    gaps = rng.exponential(size=n) if cv == 1 else rng.gamma(1.0 / cv**2, cv**2, size=n)
    return np.cumsum(gaps) / rate


def varying_arrivals(
    n: int, rate: float, profile: RateProfile, seed: int, *, cv: float = 1.0, start_s: float = 0.0
) -> Floats:
    """Arrivals at a rate that follows ``profile``, from ``start_s`` of its period on, and is ``rate`` on average."""
    return profile.invert(gamma_arrivals(n, rate, cv, seed), start_s)


def burst_arrivals(
    n: int, rate: float, *, factor: float, burst_s: float, calm_s: float, seed: int, cv: float = 1.0
) -> Floats:
    """Arrivals of a two-state Markov-modulated process; ``cv`` 1 gives the Markov-modulated Poisson process.

    Calm and burst take turns, each lasting an exponentially distributed time (means ``calm_s`` and ``burst_s``, > 0).
    They depend on the seed, not on the rate, which is the mean over both and in a burst ``factor`` >= 1 times higher.
    A start within a burst is as likely as the share of time in bursts.
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
    rng = np.random.default_rng([seed, 1])
    bursting = bool(rng.random() < burst_s / (burst_s + calm_s))
    in_burst = (np.arange(_CHUNK) + bursting) % 2 == 1
    clock, operational = [np.zeros(1)], [np.zeros(1)]
    while operational[-1][-1] <= mass[-1]:
        durations = rng.exponential(size=_CHUNK) * np.where(in_burst, burst_s, calm_s)
        clock.append(clock[-1][-1] + np.cumsum(durations))
        operational.append(operational[-1][-1] + np.cumsum(durations * np.where(in_burst, calm * factor, calm)))
    return np.interp(mass, np.concatenate(operational), np.concatenate(clock))


def resampled_arrivals(
    n: int, times: npt.ArrayLike, seed: int, *, windows: int | None = None, share: float = 1.0
) -> Floats:
    """Arrivals like those at ``times``: their rate over time, and on that their own gaps, drawn again.

    On the clock on which the recorded rate is constant, blocks of consecutive gaps are drawn (the stationary bootstrap
    of Politis and Romano 1994), so that the gaps and the correlation of neighbours stay. No law of gaps is fitted:
    those of production traces have both milliseconds and minutes, which one law misses (docs/guides/workloads.md).

    Args:
        n: how many; more than were recorded go on with the recorded rate from its beginning.
        times: recorded arrivals, shape ``[m]``, seconds, at least three different ones.
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
