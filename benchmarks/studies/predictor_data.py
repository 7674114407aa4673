"""What the predictor's studies share: their traces, a LightGBM predictor trained on the spot, embeddings, spreads.

Imported by ``predictor_table.py``, ``predictor_other_data.py`` and ``predictor_study.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final

import numpy as np

from ecoserve.data import Record, Trace, load_trace
from ecoserve.lengths import LengthDistribution
from ecoserve.predictor import Bins, BoostingSettings, LengthPredictor, PredictorConfig, Predicts
from ecoserve.predictor.base import TrainingRun
from ecoserve.predictor.baselines import Vectors
from ecoserve.predictor.boosting.predictor import BoostingPredictor
from ecoserve.predictor.calibration_fitting import control_of, fit_calibration
from ecoserve.predictor.encoder.predictor import FrozenEncoder
from ecoserve.predictor.encoder.settings import find_encoder
from ecoserve.predictor.evaluation import predict_all, score, scored_records, true_lengths
from ecoserve.predictor.examples import Parts
from ecoserve.predictor.runtime import silent
from ecoserve.predictor.text import RequestView, asked_of

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


def boosted(parts: Parts, seed: int) -> LengthPredictor:
    """A LightGBM predictor as ``train-predictor`` makes it of these parts of a trace, neither evaluated nor saved."""
    bins = Bins.fit(parts.fit.all_lengths())
    config = PredictorConfig(
        backend="lightgbm",
        edges=bins.edges,
        closed_by=bins.closed_by,
        prior=tuple(bins.shares(parts.fit.all_lengths()).tolist()),
        trace_name="not saved",
        trace_format="not saved",
        trace_sha256="0" * 64,
        length_source="not saved",
        rows_trained=len(parts.fit),
        rows_held_out=len(parts.held),
        seed=seed,
        parameters=parts.fit.parameters,
    )
    run = TrainingRun(config, parts.fit, parts.held, Path(), False, silent)
    predictor = BoostingPredictor.fit(run, BoostingSettings())
    held = parts.held
    control = control_of(parts.fit_records, parts.held_records, config, BoostingSettings(), seed=seed)
    logits = predictor.logits(held.views)
    predictor.calibration = fit_calibration(logits, held.answers, bins.edges, held.views, control)
    return predictor


def asked(predictor: Predicts, records: Sequence[Record]) -> list[LengthDistribution]:
    """What a predictor says of records."""
    return predict_all(predictor, [asked_of(r) or "" for r in records])


def scored_on_dev(predictor: Predicts, parts: Parts) -> dict[str, float]:
    """How good a predictor is on the dev rows of a trace."""
    rows = scored_records(parts.dev_records)
    return score(asked(predictor, rows), true_lengths(rows))


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
                self._known = dict(zip(content["keys"].tolist(), content["vectors"], strict=True))

    def __call__(self, views: Sequence[RequestView]) -> Vectors:
        keys = [blake2b(v.text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest() for v in views]
        new = {key: view for key, view in zip(keys, views, strict=True) if key not in self._known}
        if new:
            self._encoder = self._encoder or FrozenEncoder(find_encoder("all-MiniLM-L6-v2")[0])
            self._known.update(zip(new, self._encoder(list(new.values())), strict=True))
            if self._file is not None:
                np.savez(self._file, keys=np.asarray(list(self._known)), vectors=np.stack(list(self._known.values())))
        return np.stack([self._known[key] for key in keys])
