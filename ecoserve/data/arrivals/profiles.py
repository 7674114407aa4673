"""How a rate varies: over a day, or as it did in a recorded trace.

A profile is only the shape: periodic, 1 on average, constant on each of its equal pieces.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ecoserve.errors import TraceError

Floats = npt.NDArray[np.float64]

HOURS_A_DAY = 24
#: Pieces of a day: one a minute.
_MINUTES = 1440


@dataclass(frozen=True, slots=True)
class Harmonic:
    """One wave of a day's rate: ``amplitude`` (of the mean rate), ``cycles`` a day, and the hour of a peak."""

    amplitude: float
    peak_hour: float
    cycles: int = 1


@dataclass(frozen=True)
class RateProfile:
    """A rate relative to its mean, as a periodic function of time.

    Args:
        period_s: seconds after which it repeats, > 0.
        relative: the rate in each of the equal pieces of a period, in any unit; kept with mean 1.

    Raises:
        TraceError: if the period is not above 0, or the rates are negative, not numbers, or all 0.
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
        at = (np.arange(_MINUTES) + 0.5) * HOURS_A_DAY / _MINUTES
        return cls(day_s, tuple(np.interp(at, np.arange(HOURS_A_DAY + 1), [*hours, hours[0]]).tolist()))

    @classmethod
    def of_harmonics(cls, harmonics: Sequence[Harmonic], day_s: float) -> RateProfile:
        """A day of ``day_s`` seconds whose rate is 1 plus a sum of cosines.

        Raises:
            TraceError: if the rate would be negative at some time of the day.
        """
        at = (np.arange(_MINUTES) + 0.5) * HOURS_A_DAY / _MINUTES
        rates = np.ones(_MINUTES)
        for wave in harmonics:
            rates += wave.amplitude * np.cos(2 * np.pi * wave.cycles * (at - wave.peak_hour) / HOURS_A_DAY)
        if rates.min() < 0:
            worst = float(at[np.argmin(rates)])
            raise TraceError(f"the waves make the rate negative at {worst:.1f} h", fix="lower the amplitudes")
        return cls(day_s, tuple(rates.tolist()))

    @classmethod
    def of_arrivals(cls, times: npt.ArrayLike, windows: int) -> RateProfile:
        """The rates seen in ``windows`` equal parts of the time from the first to the last of ``times`` (seconds).

        Windows differ by chance, too: what a Poisson process would show of that is taken out of their variance.

        Raises:
            TraceError: if there are fewer than two different times.
        """
        at = np.sort(np.asarray(times, dtype=np.float64))
        if len(at) < 2 or at[0] == at[-1]:
            raise TraceError(f"{len(at)} arrivals at one time have no rate")
        counts, _ = np.histogram(at, bins=windows)
        relative = counts / counts.mean()
        chance, seen = 1.0 / float(counts.mean()), float(relative.var())
        kept = math.sqrt(max(0.0, 1.0 - chance / seen)) if seen > 0 else 0.0
        return cls(float(at[-1] - at[0]), tuple((1.0 + kept * (relative - 1.0)).tolist()))

    def at(self, times: npt.ArrayLike) -> Floats:
        """The rate relative to its mean at each of ``times`` (seconds, any shape)."""
        piece = np.asarray(times, dtype=np.float64) % self.period_s / self.period_s * len(self.relative)
        rates: Floats = np.asarray(self.relative)[np.minimum(piece.astype(np.int64), len(self.relative) - 1)]
        return rates

    def integral(self, times: npt.ArrayLike) -> Floats:
        """The rate relative to its mean, integrated from 0 to each of ``times`` (seconds): seconds."""
        t = np.asarray(times, dtype=np.float64)
        whole, rest = np.divmod(t, self.period_s)
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
