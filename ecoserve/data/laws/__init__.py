"""Laws of response and prompt lengths: sampling from them, fitting them, and saying how well they fit.

SciPy is imported when a law is used, not with this package.
"""

from ecoserve.data.laws.empirical import Histogram, KaplanMeier
from ecoserve.data.laws.fitting import QUANTILES, FittedLaw, QuantileFit, fit_counts, fit_law, fit_laws
from ecoserve.data.laws.law import GIVEN_LAWS, LAWS, LONGEST, Law
from ecoserve.data.laws.tails import TailFit, fit_tail_counts, fit_tails

__all__ = [
    "GIVEN_LAWS",
    "LAWS",
    "LONGEST",
    "QUANTILES",
    "FittedLaw",
    "Histogram",
    "KaplanMeier",
    "Law",
    "QuantileFit",
    "TailFit",
    "fit_counts",
    "fit_law",
    "fit_laws",
    "fit_tail_counts",
    "fit_tails",
]
