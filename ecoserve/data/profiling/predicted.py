"""What a predictor tells about a trace's lengths. The predictions are made elsewhere and come as arrays.

Rule: a predictor is only asked about rows that it cannot have learned from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from ecoserve.data.profiling.accuracy import measure
from ecoserve.data.profiling.model import Predicted
from ecoserve.data.profiling.table import TraceTable
from ecoserve.errors import TraceError

#: Quantiles that a predictor is asked for.
QUANTILES: Final = (0.5, 0.9, 0.95)


@dataclass(frozen=True, slots=True)
class Predictions:
    """A predictor's answers for some rows of a table.

    Args:
        name: the checkpoint.
        rows: shape ``[k]``, the rows, k >= 1.
        quantiles: each of :data:`QUANTILES` -> shape ``[k]``, tokens.
        held_out: whether the rows are those that were kept apart when it was trained on this trace (else it was trained
            on something else, and they are any rows).

    Raises:
        TraceError: if shapes do not go together.
    """

    name: str
    rows: npt.NDArray[np.int64]
    quantiles: Mapping[float, npt.NDArray[np.int64]]
    held_out: bool = False

    def __post_init__(self) -> None:
        shapes = {len(self.rows), *(len(told) for told in self.quantiles.values())}
        if set(self.quantiles) != set(QUANTILES) or len(shapes) > 1 or 0 in shapes:
            raise TraceError(f"predictions need the quantiles {QUANTILES} of each of at least one row")


def predicted(table: TraceTable, told: Predictions, seed: int) -> Predicted:
    """How good the predictions are."""
    response = table.response[told.rows].astype(np.float64)
    median = told.quantiles[0.5].astype(np.float64)
    measured = measure(median, response, seed)
    logs, told_logs = np.log(response), np.log(np.maximum(median, 1.0))
    variance = float(((logs - logs.mean()) ** 2).mean())
    return Predicted(
        predictor=told.name,
        rows=len(response),
        rows_are="held out" if told.held_out else "all",
        mae_tokens=measured.mae_tokens,
        mae_constant_tokens=float(np.abs(response - np.median(response)).mean()),
        within_50=measured.within_50,
        within_100=measured.within_100,
        kendall_tau=measured.kendall_tau,
        r2_log=1.0 - float(((logs - told_logs) ** 2).mean()) / variance if variance > 0 else 0.0,
        coverage_50=float((response <= told.quantiles[0.5]).mean()),
        coverage_90=float((response <= told.quantiles[0.9]).mean()),
        coverage_95=float((response <= told.quantiles[0.95]).mean()),
    )
