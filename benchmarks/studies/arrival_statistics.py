"""What arrivals are like: their rate, how uneven their gaps are, and how they clump on longer scales.

Rule: three numbers that a Poisson process gives 1, 0 and 1: the coefficient of variation of the gaps, the correlation
of neighbouring gaps, and the index of dispersion (variance over mean of the number of arrivals in a window; Cox and
Lewis 1966). The last one for several windows, since a rate that drifts shows only in long ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

#: Windows in which arrivals are counted, seconds.
WINDOWS_S: Final = (1.0, 10.0, 60.0)
#: Fewer windows give no variance worth its name.
_FEWEST: Final = 10


@dataclass(frozen=True, slots=True)
class ArrivalStatistics:
    """Arrivals in a few numbers.

    Attributes:
        n: arrivals.
        duration_s: from the first to the last.
        rate_rps: gaps a second; ``None`` without any duration.
        gap_cv: standard deviation of the gaps over their mean.
        gap_correlation: of each gap with the next one.
        dispersion: window (seconds) -> index of dispersion; only windows that fit in at least 10 times.
    """

    n: int
    duration_s: float
    rate_rps: float | None
    gap_cv: float | None
    gap_correlation: float | None
    dispersion: dict[float, float]

    @classmethod
    def of(cls, times: npt.ArrayLike, windows_s: tuple[float, ...] = WINDOWS_S) -> ArrivalStatistics:
        """The numbers for arrivals at ``times`` (shape ``[n]``, seconds, any order)."""
        at = np.sort(np.asarray(times, dtype=np.float64))
        gaps = np.diff(at)
        duration = float(at[-1] - at[0]) if len(at) else 0.0
        varied = len(gaps) >= 3 and gaps[:-1].std() > 0 and gaps[1:].std() > 0
        found = {w: index_of_dispersion(at, w) for w in windows_s}
        return cls(
            n=len(at),
            duration_s=duration,
            rate_rps=len(gaps) / duration if duration > 0 else None,
            gap_cv=float(gaps.std() / gaps.mean()) if duration > 0 else None,
            gap_correlation=float(np.corrcoef(gaps[:-1], gaps[1:])[0, 1]) if varied else None,
            dispersion={w: value for w, value in found.items() if value is not None},
        )

    def as_dict(self) -> dict[str, Any]:
        """The same for JSON; windows as ``dispersion_10s``."""
        names = ("n", "duration_s", "rate_rps", "gap_cv", "gap_correlation")
        row = {name: getattr(self, name) for name in names}
        return {**row, **{f"dispersion_{window:g}s": value for window, value in self.dispersion.items()}}


def index_of_dispersion(times: npt.ArrayLike, window_s: float) -> float | None:
    """Variance over mean of the arrivals in consecutive whole windows from the first arrival on.

    ``times``: shape ``[n]``, seconds, ascending. ``None`` where fewer than 10 windows fit.
    """
    at = np.asarray(times, dtype=np.float64)
    whole = int((at[-1] - at[0]) / window_s) if len(at) else 0
    if whole < _FEWEST:
        return None
    counts = np.bincount(((at - at[0]) / window_s).astype(np.int64))[:whole]
    return float(counts.var() / counts.mean())
