"""Profiles of response lengths: what a user learns about their own traffic before training anything.

:func:`read_table` reads a trace or a stream once into a compact :class:`TraceTable`; :func:`profile_trace` makes a
:class:`Profile` of it, :func:`compare_traces` a :class:`Comparison` of two. What each figure means is said in the
module that computes it, what each key means in :mod:`~ecoserve.data.profiling.model`.
"""

from ecoserve.data.profiling.compare import compare_traces
from ecoserve.data.profiling.comparison_model import Comparison
from ecoserve.data.profiling.model import Profile
from ecoserve.data.profiling.predicted import QUANTILES, Predictions
from ecoserve.data.profiling.profile import profile_trace
from ecoserve.data.profiling.table import Origin, RecordStream, TraceTable, read_table

__all__ = [
    "QUANTILES",
    "Comparison",
    "Origin",
    "Predictions",
    "Profile",
    "RecordStream",
    "TraceTable",
    "compare_traces",
    "profile_trace",
    "read_table",
]
