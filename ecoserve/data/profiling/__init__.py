"""Profiles of response lengths: properties of a user's own traffic, before anything is trained.

:func:`read_table` reads a trace or a stream once into a compact :class:`TraceTable`; :func:`profile_trace` makes a
:class:`Profile` of it, :func:`compare_traces` a :class:`Comparison` of two. Each key is defined in
:mod:`~ecoserve.data.profiling.model`, its method in the module that computes it.
"""

from ecoserve.data.profiling.compare import compare_traces
from ecoserve.data.profiling.comparison_model import Comparison
from ecoserve.data.profiling.guesses import QUANTILES, Predictions
from ecoserve.data.profiling.model import Profile
from ecoserve.data.profiling.profile import profile_trace
from ecoserve.data.profiling.table import Origin, TraceTable, read_table

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
