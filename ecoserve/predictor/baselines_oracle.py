"""What another answer to the very same prompt tells: an upper bound, not a predictor.

Rule: nobody who serves a request has another answer to it. Where a trace has several answers to each prompt, the length
of one of them says about another's what no model of the prompt can hope to pass by much, because the rest is the
sampler's dice. The distribution of an answer's length given one other is learned from training rows: how their answers
are spread whose other answer was of about that length. A Gaussian over bins says what "about" is; its width is chosen
on held-out rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from ecoserve.data import Record
from ecoserve.errors import TraceError
from ecoserve.lengths import LengthDistribution
from ecoserve.predictor.bins import Bins
from ecoserve.predictor.calibration import cross_entropy
from ecoserve.predictor.examples import Examples

#: Standard deviations of the kernel that are tried, in bins.
WIDTHS: Final = (0.5, 1.0, 1.5, 2.0, 3.0, 5.0)
#: The prior's weight, in training rows.
_PRIOR: Final = 1.0


class OtherSample:
    """An answer's length from that of the last other sample of its prompt."""

    def __init__(self, bins: Bins, table: npt.NDArray[np.float64], width: float) -> None:
        """``table``: shape ``[K, K]``, row j is the distribution given that the other answer lies in bin j."""
        self.bins = bins
        self.table = table
        self.width = width

    @classmethod
    def fit(cls, fit: Examples, held: Examples, bins: Bins) -> OtherSample:
        """Learn from ``fit``; ``held`` chooses the kernel's width.

        Raises:
            TraceError: if not all rows have another sample.
        """
        if not (len(fit) and len(held) and all(fit.samples) and all(held.samples)):
            raise TraceError("not every row has another answer to the same prompt", fix="name them with --sample-field")
        k = len(bins)
        counts = np.zeros((k, k))
        np.add.at(counts, (_last(bins, fit), bins.index(fit.lengths)), 1.0)
        prior = bins.shares(fit.lengths)
        other, own = _last(bins, held), np.eye(k)[bins.index(held.lengths)]
        tables = [_smoothed(counts, prior, width) for width in WIDTHS]
        best = int(np.argmin([cross_entropy(np.log(table[other]), own) for table in tables]))
        return cls(bins, tables[best], WIDTHS[best])

    def given(self, records: Sequence[Record]) -> list[LengthDistribution]:
        """One distribution per record, from its last other sample.

        Raises:
            TraceError: if a record has none.
        """
        if not all(r.sample_tokens for r in records):
            raise TraceError("not every row has another answer to the same prompt", fix="name them with --sample-field")
        rows = self.bins.index([r.sample_tokens[-1] for r in records])
        return [LengthDistribution.from_weights(self.bins.edges, self.table[j], self.bins.closed_by) for j in rows]


def _last(bins: Bins, examples: Examples) -> npt.NDArray[np.int64]:
    return bins.index([samples[-1] for samples in examples.samples])


def _smoothed(counts: npt.NDArray[np.float64], prior: npt.NDArray[np.float64], width: float) -> npt.NDArray[np.float64]:
    """Distributions given each bin of the other answer: a kernel over that bin, and half as wide over the own one."""
    at = np.arange(len(counts))
    away = np.subtract.outer(at, at)
    given, own = np.exp(-0.5 * (away / width) ** 2), np.exp(-0.5 * (away / (0.5 * width)) ** 2)
    own /= own.sum(axis=1, keepdims=True)
    table = given @ counts @ own + _PRIOR * prior
    return np.asarray(table / table.sum(axis=1, keepdims=True), dtype=np.float64)
