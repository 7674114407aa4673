"""When requests arrive: processes, rates over a day, and arrivals like recorded ones."""

from ecoserve.data.arrivals.processes import (
    burst_arrivals,
    gamma_arrivals,
    poisson_arrivals,
    resampled_arrivals,
    varying_arrivals,
)
from ecoserve.data.arrivals.profiles import Harmonic, RateProfile

__all__ = [
    "Harmonic",
    "RateProfile",
    "burst_arrivals",
    "gamma_arrivals",
    "poisson_arrivals",
    "resampled_arrivals",
    "varying_arrivals",
]
