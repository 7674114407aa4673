"""Traces in, tidy records out: formats, cleaning, token lengths, splits, arrivals.

Importing this package imports neither ``datasets`` nor ``transformers``; they are loaded where they are needed.
"""

from ecoserve.data.arrivals import poisson_arrivals
from ecoserve.data.formats import save_trace
from ecoserve.data.loading import ReadOptions
from ecoserve.data.records import LoadReport, Message, Record, Trace, fingerprint
from ecoserve.data.splitting import record_groups, split_trace
from ecoserve.data.streaming import TraceStream
from ecoserve.data.synthetic import SYNTHETIC_MODEL, bayes_optimal_mae, synthetic_trace, true_distribution
from ecoserve.data.traces import load_trace, stream_trace

__all__ = [
    "SYNTHETIC_MODEL",
    "LoadReport",
    "Message",
    "ReadOptions",
    "Record",
    "Trace",
    "TraceStream",
    "bayes_optimal_mae",
    "fingerprint",
    "load_trace",
    "poisson_arrivals",
    "record_groups",
    "save_trace",
    "split_trace",
    "stream_trace",
    "synthetic_trace",
    "true_distribution",
]
