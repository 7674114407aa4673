"""Training examples, and the split of a trace into rows to learn from, to choose on, and to evaluate on.

Features come from the request alone (:mod:`ecoserve.predictor.text`). The response's length and the lengths of other
responses sampled for the same prompt are targets, never features.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ecoserve.data import Record, Trace, split_trace
from ecoserve.errors import TraceError
from ecoserve.predictor.bins import Bins, soft_targets
from ecoserve.predictor.text import RequestView, parameters_that_vary, read_record

#: Rows that training and adaptation need at least.
MIN_ROWS = 50


@dataclass(frozen=True, slots=True)
class Examples:
    """``n`` requests and the lengths of their responses in tokens."""

    views: tuple[RequestView, ...]
    lengths: tuple[int, ...]
    #: lengths of other responses to each prompt, may be empty
    samples: tuple[tuple[int, ...], ...]
    #: whether each response was cut off
    censored: tuple[bool, ...]
    #: names of the request parameters that the views have read
    parameters: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.views)

    @classmethod
    def of(cls, records: Iterable[Record], parameters: Collection[str] = ()) -> Examples:
        """The examples in ``records``, reading these ``parameters``; records without text or length are left out."""
        rows: list[tuple[RequestView, int, tuple[int, ...], bool]] = []
        for record in records:
            view = read_record(record, parameters)
            if view is not None and record.response_tokens is not None and record.response_tokens >= 1:
                rows.append((view, record.response_tokens, record.sample_tokens, record.censored))
        if not rows:
            return cls((), (), (), (), tuple(parameters))
        views, lengths, samples, censored = zip(*rows, strict=True)
        return cls(views, lengths, samples, censored, tuple(parameters))

    @property
    def answers(self) -> list[tuple[int, ...]]:
        """Lengths of all responses to each row, its own first."""
        return [(own, *others) for own, others in zip(self.lengths, self.samples, strict=True)]

    def all_lengths(self) -> npt.NDArray[np.int64]:
        """Own lengths and those of other samples, flat."""
        return np.asarray([*self.lengths, *(s for more in self.samples for s in more)], dtype=np.int64)

    def targets(self, bins: Bins, smoothing: float = 0.0) -> npt.NDArray[np.float32]:
        """Each row's distribution over the bins, shape ``[n, K]`` (:func:`~ecoserve.predictor.bins.soft_targets`)."""
        return soft_targets(bins, self.lengths, self.samples, self.censored, smoothing=smoothing)


@dataclass(frozen=True, slots=True)
class Parts:
    """Rows to learn from, rows to choose and calibrate on, and the records of ``dev``, which training never sees."""

    fit: Examples
    held: Examples
    fit_records: tuple[Record, ...]
    held_records: tuple[Record, ...]
    dev_records: tuple[Record, ...]


def usable(records: Iterable[Record]) -> list[Record]:
    """Those of ``records`` that have both a text and a length."""
    return [r for r in records if r.response_tokens is not None and read_record(r) is not None]


def require_texts(trace: Trace) -> None:
    if not any(read_record(r) is not None for r in trace.records):
        what = "has lengths only, and a predictor learns from the texts of prompts"
        raise TraceError(what, where=trace.source, fix="give a trace with prompts")


def at_most(rows: list[Record], most: int | None, seed: int) -> list[Record]:
    """All rows, or ``most`` of them chosen at random, in their order."""
    if most is None or len(rows) <= most:
        return rows
    chosen = np.random.default_rng(seed).choice(len(rows), size=most, replace=False)
    return [rows[i] for i in sorted(chosen)]


def training_parts(trace: Trace, *, seed: int, max_rows: int | None = None, held_out: float = 0.1) -> Parts:
    """Split a trace for training; too few rows with a text and a length that ended by themselves are a TraceError.

    ``train`` and ``dev`` are those of the trace, or of :func:`~ecoserve.data.split_trace`; the held-out rows are a part
    of ``train``, split the same way (conversations and near-duplicate prompts stay on one side).
    """
    require_texts(trace)
    parts = split_trace(trace, seed=seed)
    rows = at_most(usable(parts["train"].records), max_rows, seed)
    if len(rows) < MIN_ROWS:
        raise TraceError(
            f"{len(rows)} training rows with a text and a length, need at least {MIN_ROWS}",
            where=trace.source,
            fix="check --length-field, or give more rows",
        )
    ended = sum(not r.censored for r in rows)
    if ended < MIN_ROWS:
        raise TraceError(
            f"only {ended} of {len(rows)} training answers ended by themselves, need at least {MIN_ROWS}",
            where=trace.source,
            fix="collect answers with a larger max_tokens: the length of those cut off is not known",
        )
    fit, held = _hold_out(trace, rows, held_out, seed)
    parameters = parameters_that_vary(fit)
    return Parts(Examples.of(fit, parameters), Examples.of(held, parameters), fit, held, parts["dev"].records)


def _hold_out(
    trace: Trace, rows: list[Record], share: float, seed: int
) -> tuple[tuple[Record, ...], tuple[Record, ...]]:
    """Cut ``rows`` in two: by groups, or by single rows where one group is nearly everything."""
    try:
        # Without the trace's own split, which would put all of them on one side.
        inner = split_trace(trace.with_records(replace(r, split=None) for r in rows), dev=share, seed=seed)
        fit, held = inner["train"].records, inner["dev"].records
    except TraceError:
        fit, held = tuple(rows), ()
    if not 0.5 * share <= len(held) / len(rows) <= 2.0 * share:
        order = np.random.default_rng(seed).permutation(len(rows))
        count = max(1, round(share * len(rows)))
        held = tuple(rows[i] for i in sorted(order[:count]))
        fit = tuple(rows[i] for i in sorted(order[count:]))
    return fit, held
