"""What the predictor's studies share: their traces, a LightGBM predictor trained on the spot, embeddings, spreads.

Imported by ``predictor_table.py``, ``predictor_other_data.py`` and ``predictor_study.py``.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from ecoserve.data import Trace, load_trace
from ecoserve.files import write_atomically
from ecoserve.predictor import BoostingSettings, LengthPredictor, train_predictor
from ecoserve.predictor.baselines_nearest import FrozenEncoder, Vectors
from ecoserve.predictor.encoder.source import find_encoder
from ecoserve.predictor.text import RequestView

#: File of each trace, and how its lengths are read.
TRACES: Final[dict[str, tuple[str, dict[str, str]]]] = {
    "alpaca": ("alpaca.json.gz", {"length_field": "vicuna_7b_tokens[3]", "sample_field": "vicuna_7b_tokens"}),
    "sharegpt": ("sharegpt.json.gz", {}),
    "alpaca_eval": ("alpaca_eval.json.gz", {}),
}
#: Keys of an evaluation that a busy machine does not change.
TIMELESS: Final = (
    *("rows", "mae_tokens", "within_50", "within_100", "kendall_tau", "bin_accuracy", "pinball_loss", "crps", "ece"),
    *("coverage_50", "coverage_80", "coverage_90", "coverage_95"),
)


def load(folder: Path, name: str) -> Trace:
    """One of :data:`TRACES` from the folder with the data."""
    file, options = TRACES[name]
    return load_trace(folder / file, **options)  # type: ignore[arg-type]


def boosted(
    trace: Trace, seed: int, *, max_rows: int | None = None, settings: BoostingSettings | None = None
) -> LengthPredictor:
    """A LightGBM predictor of ``trace`` as ``train-predictor`` makes it; its config says how good it is on dev."""
    with tempfile.TemporaryDirectory() as folder:
        return train_predictor(
            trace,
            backend="lightgbm",
            output_dir=Path(folder) / "lightgbm",
            seed=seed,
            max_rows=max_rows,
            settings=settings,
        )


def spread(runs: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """The mean of each key over seeds, beside the standard deviation over them (``sd``, none for one seed)."""
    keys = [k for k in TIMELESS if all(k in run for run in runs)]
    found: dict[str, Any] = {k: round(float(np.mean([run[k] for run in runs])), 5) for k in keys}
    if len(runs) > 1:
        found["sd"] = {k: round(float(np.std([run[k] for run in runs], ddof=1)), 5) for k in keys}
    return found


class Remembered:
    """The default encoder's embeddings of requests, each computed once; kept in a file if one is named."""

    def __init__(self, file: Path | None = None) -> None:
        self._file = file
        self._encoder: FrozenEncoder | None = None
        self._known: dict[str, Any] = {}
        if file is not None and file.exists():
            with np.load(file, allow_pickle=False) as content:
                self._known = dict(zip(content["texts"].tolist(), content["vectors"], strict=True))

    def __call__(self, views: Sequence[RequestView]) -> Vectors:
        new = list({v.text: v for v in views if v.text not in self._known}.values())
        if new:
            self._encoder = self._encoder or FrozenEncoder(find_encoder("all-MiniLM-L6-v2")[0])
            self._known.update(zip([v.text for v in new], self._encoder(new), strict=True))
            if self._file is not None:
                np.savez(self._file, texts=np.asarray(list(self._known)), vectors=np.stack(list(self._known.values())))
        return np.stack([self._known[v.text] for v in views])


def write(file: Path, content: Any) -> None:
    """Write a result file."""
    write_atomically(file, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
