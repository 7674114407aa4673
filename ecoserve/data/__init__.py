"""Traces in, tidy records out: formats, cleaning, token lengths, splits, arrivals.

Importing this package imports neither ``datasets`` nor ``transformers``; they are loaded where they are needed.
"""

from ecoserve.data.formats import save_trace
from ecoserve.data.loading import load_trace
from ecoserve.data.records import LoadReport, Message, Record, Trace

__all__ = ["LoadReport", "Message", "Record", "Trace", "load_trace", "save_trace"]
