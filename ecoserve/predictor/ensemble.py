"""The ensemble: trained predictors of the same rows, mixed and calibrated as one.

Its checkpoint holds each member's whole checkpoint in a folder of its own (``member-1`` ...). The members' calibrations
are not used. Weights and calibration are fitted on the rows that all members held out.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from ecoserve.data import Trace
from ecoserve.errors import ConfigError
from ecoserve.predictor import checkpoint, hub
from ecoserve.predictor.base import LengthPredictor, trained_backends
from ecoserve.predictor.calibration import Calibration, fit_weights, mixed
from ecoserve.predictor.config import PredictorConfig
from ecoserve.predictor.examples import Examples, training_parts
from ecoserve.predictor.runtime import Progress, first, silent, wait_for_all
from ecoserve.predictor.text import RequestView
from ecoserve.predictor.training import finish

#: In ``config.model``: each member's share, in the order of their folders.
WEIGHTS: Final = "weights"
#: What the members' configs must have in common, and what an error calls it.
_SHARED: Final = {
    "trace_sha256": "trace",
    "length_source": "lengths",
    "seed": "seed",
    "edges": "length bins",
    "closed_by": "closing of the last bin",
    "parameters": "request parameters",
    "served_model": "served model",
    "rows_trained": "training rows",
    "rows_held_out": "held-out rows",
}
_ROWS: Final = ("max_rows", "held_out")


class EnsemblePredictor(LengthPredictor):
    """Predictors over one config's bins, mixed; members compute at the same time, on a thread each."""

    def __init__(self, config: PredictorConfig, calibration: Calibration, members: Sequence[LengthPredictor]) -> None:
        super().__init__(config, calibration)
        self.members = tuple(members)
        self.weights = tuple(float(w) for w in config.model[WEIGHTS])
        if len(self.weights) != len(self.members) or min(self.weights) < 0.0 or abs(sum(self.weights) - 1.0) > 1e-6:
            raise ValueError(f"{WEIGHTS} {list(self.weights)} are no shares of {len(self.members)} members")
        if any(m.config.edges != config.edges for m in self.members):
            raise ValueError("the members have other length bins")
        # Threads start when they are first needed, and end with the predictor.
        self._others = ThreadPoolExecutor(len(self.members), thread_name_prefix="ecoserve-ensemble")

    def _logits(self, views: Sequence[RequestView]) -> npt.NDArray[np.float64]:
        others = [self._others.submit(m.logits, views) for m in self.members[1:]]
        return mixed([self.members[0].logits(views), *(other.result() for other in others)], self.weights)

    def _write(self, folder: Path) -> None:
        for number, member in enumerate(self.members, 1):
            member.save_pretrained(folder / f"member-{number}")

    @classmethod
    def _load(cls, folder: Path, config: PredictorConfig, calibration: Calibration) -> EnsemblePredictor:
        numbers = range(1, len(config.model[WEIGHTS]) + 1)
        return cls(config, calibration, [LengthPredictor.from_pretrained(folder / f"member-{n}") for n in numbers])


def combine_predictors(
    trace: Trace,
    checkpoints: Sequence[str | Path],
    *,
    output_dir: str | Path,
    resume: bool = False,
    progress: Progress = silent,
) -> LengthPredictor:
    """Combine two or more trained predictors of one trace and seed into an ensemble, and save its checkpoint.

    With ``resume`` the very same ensemble that is in ``output_dir`` already is loaded. Raises ConfigError if they do
    not go together, or not with the trace; CheckpointError if one is missing or damaged, or ``output_dir`` holds other
    files.
    """
    output = Path(output_dir).expanduser()
    checkpoint.check_place(output)
    if len(checkpoints) < 2:
        raise ConfigError(f"an ensemble has at least two members, not {len(checkpoints)}", where="CHECKPOINT")
    started = time.monotonic()
    folders = [hub.locate(c) for c in checkpoints]
    configs = [checkpoint.read(f)[0] for f in folders]
    names = [str(c) for c in checkpoints]
    _check(configs, names)
    if trace.sha256 != configs[0].trace_sha256:
        what = f"is not the trace that {names[0]} was trained on ({configs[0].trace_name}), or is read otherwise"
        raise ConfigError(what, where=trace.source, fix="give that trace, with the options that it was read with")
    hashes = [checkpoint.identity(f) for f in folders]
    run = hashlib.sha256(json.dumps(hashes).encode()).hexdigest()
    if first() and not (resume and checkpoint.is_of_run(output, run)):
        progress("splitting", 0, 1)
        rows = configs[0].hyperparameters
        parts = training_parts(
            trace, seed=configs[0].seed, max_rows=rows.get("max_rows"), held_out=float(rows["held_out"])
        )
        if len(parts.held) != configs[0].rows_held_out:
            what = f"{len(parts.held)} rows are held out today, {configs[0].rows_held_out} were in training"
            raise ConfigError(what, where=names[0], fix="train it again with this ecoserve")
        predictor = _weighed([LengthPredictor.from_pretrained(f) for f in folders], hashes, run, parts.held, progress)
        seconds = sum(c.training_seconds for c in configs) + time.monotonic() - started
        finish(predictor, parts, configs, output, seconds, progress)
    wait_for_all()
    return LengthPredictor.from_pretrained(output)


def _check(configs: Sequence[PredictorConfig], names: Sequence[str]) -> None:
    for config, name in zip(configs, names, strict=True):
        if config.backend not in trained_backends():
            raise ConfigError(f"is an {config.backend} predictor, and only trained ones can be combined", where=name)
    for config, name in zip(configs[1:], names[1:], strict=True):
        differ = [label for key, label in _SHARED.items() if getattr(config, key) != getattr(configs[0], key)]
        differ += [k for k in _ROWS if config.hyperparameters.get(k) != configs[0].hyperparameters.get(k)]
        if differ:
            raise ConfigError(
                f"was trained with other {', '.join(differ)} than {names[0]}",
                where=name,
                fix="train both on one trace with the same seed and the same rows and bins",
            )


def _weighed(
    members: Sequence[LengthPredictor], hashes: Sequence[str], run: str, held: Examples, progress: Progress
) -> EnsemblePredictor:
    """The ensemble with weights fitted on ``held``, not calibrated yet."""
    configs = [m.config for m in members]
    logits = []
    for done, member in enumerate(members):
        progress("weighing", done, len(members))
        logits.append(member.logits(held.views))
    weights = fit_weights(logits, held.targets(configs[0].bins))
    about = [{"backend": c.backend, "sha256": sha} for c, sha in zip(configs, hashes, strict=True)]
    config = configs[0].model_copy(
        update={
            "backend": "ensemble",
            "run": run,
            "hyperparameters": {k: configs[0].hyperparameters.get(k) for k in _ROWS},
            "versions": {k: v for c in reversed(configs) for k, v in c.versions.items()},
            "model": {WEIGHTS: list(weights), "members": about},
            "metrics": {},
        }
    )
    return EnsemblePredictor(config, Calibration(), members)
