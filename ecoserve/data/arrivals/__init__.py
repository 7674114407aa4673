"""When requests arrive: processes, rates over a day, and arrivals for the records of a trace."""

from ecoserve.data.arrivals.processes import burst_arrivals, gamma_arrivals, poisson_arrivals, varying_arrivals
from ecoserve.data.arrivals.profiles import Harmonic, RateProfile
from ecoserve.data.arrivals.resampling import resampled_arrivals
from ecoserve.data.arrivals.statistics import ArrivalStatistics, index_of_dispersion
from ecoserve.data.arrivals.traces import ThinkTime, rescale_arrivals, with_arrivals

__all__ = [
    "ArrivalStatistics",
    "Harmonic",
    "RateProfile",
    "ThinkTime",
    "burst_arrivals",
    "gamma_arrivals",
    "index_of_dispersion",
    "poisson_arrivals",
    "resampled_arrivals",
    "rescale_arrivals",
    "varying_arrivals",
    "with_arrivals",
]
