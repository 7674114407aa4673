"""Profiles of response lengths: properties of a user's own traffic, before anything is trained."""

from ecoserve.data.profiling.compare import compare_traces
from ecoserve.data.profiling.comparison import Comparison
from ecoserve.data.profiling.model import Profile
from ecoserve.data.profiling.profile import profile_trace
from ecoserve.data.profiling.table import Origin, TraceTable, read_table
from ecoserve.data.profiling.worth import QUANTILES, Predictions

__all__ = [
    "QUANTILES",
    "Comparison",
    "Origin",
    "Predictions",
    "Profile",
    "TraceTable",
    "compare_traces",
    "profile_trace",
    "read_table",
]
