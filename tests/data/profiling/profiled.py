"""Traces made of columns, for tests that know what a profile must find in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np

from ecoserve.data import LoadReport, Record, Trace
from ecoserve.data.profiling import TraceTable, read_table


def trace_of(lengths: Sequence[int] | np.ndarray, **columns: Any) -> Trace:
    """A trace of answers with these lengths (tokens), each a conversation of its own unless it is said otherwise.

    Args:
        lengths: shape ``[n]``.
        columns: fields of :class:`~ecoserve.data.Record`, each a sequence of n values, or one value for all.
    """
    assert set(columns) <= {f.name for f in fields(Record)}
    whole = [int(v) for v in lengths]
    rows: list[dict[str, Any]] = [{"conversation": f"c{i}", "response_tokens": n} for i, n in enumerate(whole)]
    for name, values in columns.items():
        listed = isinstance(values, list | np.ndarray)
        assert not listed or len(values) == len(rows)
        for i, row in enumerate(rows):
            value = values[i] if listed else values
            row[name] = value.item() if isinstance(value, np.generic) else value
    records = tuple(Record(**row) for row in rows)
    return Trace(records, "made.jsonl", "records", "0" * 64, "trace", LoadReport(len(rows), len(rows)))


def table_of(lengths: Sequence[int] | np.ndarray, **columns: Any) -> TraceTable:
    """The same as a table."""
    return read_table(trace_of(lengths, **columns), language_sample=int("prompt" in columns) * 20_000)


def skewed(n: int, median: float = 200.0, sigma: float = 0.6, seed: int = 0) -> np.ndarray:
    """Log-normal lengths, shape ``[n]``."""
    drawn = np.random.default_rng(seed).lognormal(np.log(median), sigma, n)
    return np.maximum(1, np.round(drawn)).astype(np.int64)
