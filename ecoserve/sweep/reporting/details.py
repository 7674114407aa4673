"""The rows behind the runs of a folder: requests and KV use over time, read when a plot asks for them.

A summary alone has none, nor has a folder of an older version; plots that need them are then left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ecoserve.serving.runs import KVPoint
from ecoserve.sweep.results import ResultFolder
from ecoserve.sweep.summary import RunRow

Values = npt.NDArray[np.float64]
_COLUMNS: Final = (
    "arrival_s", "prompt_tokens", "output_tokens", "finish_s", "predicted_tokens", "pit", "deadline_s",
    "ttft_s", "e2el_s", "normalized_latency_s",
)  # fmt: skip


class Details:
    """Rows behind the runs of ``folder``; without a folder there are none."""

    def __init__(self, folder: ResultFolder | None = None) -> None:
        self._folder = folder
        self._settings = {} if folder is None else {run.key: run.settings for run in folder.expected}
        self._requests: dict[str, dict[str, Values]] = {}

    def requests(self, run: RunRow) -> dict[str, Values] | None:
        """The accepted requests of a run, column by column, NaN where there is no value; None if there are none.

        Raises:
            InputError: if their file is damaged.
        """
        if self._folder is None or not (self._folder.path / "requests" / f"{run.run}.parquet").is_file():
            return None
        if run.run not in self._requests:
            table = self._folder.requests(run.run)
            kept = np.array([s != "rejected" for s in table["status"].to_pylist()], dtype=bool)
            self._requests[run.run] = {
                name: np.asarray(table[name].to_numpy(zero_copy_only=False), dtype=np.float64)[kept]
                for name in _COLUMNS
            }
        return self._requests[run.run]

    def together(self, runs: Sequence[RunRow], name: str) -> Values:
        """One column of all these runs, concatenated."""
        parts = [found[name] for run in runs if (found := self.requests(run)) is not None]
        return np.concatenate(parts) if parts else np.zeros(0)

    def kv(self, run: RunRow) -> list[KVPoint]:
        """KV use over time of a run; may be empty.

        Raises:
            InputError: if its file is damaged.
        """
        return [] if self._folder is None else self._folder.kv(run.run)

    def settings(self, run: RunRow) -> Mapping[str, Any]:
        """The settings of a run; empty if unknown."""
        return self._settings.get(run.run, {})
