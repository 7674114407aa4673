"""Laws of lengths: fitting them, how well they fit, their quantiles. SciPy is imported when a law is used."""

from ecoserve.data.laws.fitting import FittedLaw, Histogram, KaplanMeier, fit_law, fit_laws
from ecoserve.data.laws.law import GIVEN_LAWS, LAWS, LONGEST, Law
from ecoserve.data.laws.tails import TailFit, fit_tails

__all__ = [
    "GIVEN_LAWS",
    "LAWS",
    "LONGEST",
    "FittedLaw",
    "Histogram",
    "KaplanMeier",
    "Law",
    "TailFit",
    "fit_law",
    "fit_laws",
    "fit_tails",
]
