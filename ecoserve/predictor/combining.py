"""Combining trained predictors into one: an ensemble.

Rule: all members have learned from the same rows of one trace and have held out the same others, which the config of
each shows; those rows, which no member has learned from, choose the weights and make the calibration. So the ensemble
knows of ``dev`` no more than its members do, and its checkpoint is as good as that of a single training.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from ecoserve.data import Trace
from ecoserve.errors import CheckpointError, ConfigError
from ecoserve.predictor import checkpoint
from ecoserve.predictor.base import LengthPredictor
from ecoserve.predictor.calibration import Calibration
from ecoserve.predictor.config import SETTINGS, BoostingSettings, PredictorConfig
from ecoserve.predictor.ensemble import WEIGHTS, EnsemblePredictor
from ecoserve.predictor.examples import Examples, training_parts
from ecoserve.predictor.mixing import fit_weights
from ecoserve.predictor.processes import first, wait_for_all
from ecoserve.predictor.progress import Progress, silent
from ecoserve.predictor.training import finish

#: What the members' configs must have in common, and what it is called.
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


def combine_predictors(
    trace: Trace,
    checkpoints: Sequence[str | Path],
    *,
    output_dir: str | Path,
    resume: bool = False,
    progress: Progress = silent,
) -> LengthPredictor:
    """Combine trained predictors of one trace and seed into an ensemble, and save its checkpoint.

    Args:
        trace: the trace that they were trained on.
        checkpoints: at least two: folders, or ids on the hub.
        output_dir: folder for the checkpoint: new, empty, or an older checkpoint to replace.
        resume: if the very same ensemble is in ``output_dir`` already, it is loaded.
        progress: told how far it is.

    Returns:
        the ensemble, as loaded from its checkpoint; its ``training_seconds`` are its members' and its own together.

    Raises:
        ConfigError: if they do not go together, or not with the trace.
        CheckpointError: if one is missing or damaged, or ``output_dir`` holds other files.
    """
    output = Path(output_dir).expanduser()
    checkpoint.check_place(output)
    if len(checkpoints) < 2:
        raise ConfigError(f"an ensemble has at least two members, not {len(checkpoints)}", where="CHECKPOINT")
    started = time.monotonic()
    folders = [checkpoint.locate(c) for c in checkpoints]
    configs = [checkpoint.read(f)[0] for f in folders]
    names = [str(c) for c in checkpoints]
    _check(configs, names)
    if trace.sha256 != configs[0].trace_sha256:
        what = f"is not the trace that {names[0]} was trained on ({configs[0].trace_name}), or is read otherwise"
        raise ConfigError(what, where=trace.source, fix="give that trace, with the options that it was read with")
    if first():
        hashes = [json.loads((f / checkpoint.CONFIG).read_text(encoding="utf-8"))["sha256"] for f in folders]
        run = hashlib.sha256(json.dumps(hashes).encode()).hexdigest()
        if not (resume and _is_there(output, run)):
            progress("splitting", 0, 1)
            rows = configs[0].hyperparameters
            parts = training_parts(
                trace, seed=configs[0].seed, max_rows=rows.get("max_rows"), held_out=float(rows["held_out"])
            )
            if len(parts.held) != configs[0].rows_held_out:
                what = f"{len(parts.held)} rows are held out today, {configs[0].rows_held_out} were in training"
                raise ConfigError(what, where=names[0], fix="train it again with this ecoserve")
            members = [LengthPredictor.from_pretrained(f) for f in folders]
            predictor = _mixed(configs, members, hashes, run, parts.held, progress)
            seconds = sum(c.training_seconds for c in configs) + time.monotonic() - started
            finish(predictor, parts, _trees(configs), output, seconds, progress)
    wait_for_all()
    return LengthPredictor.from_pretrained(output)


def _check(configs: Sequence[PredictorConfig], names: Sequence[str]) -> None:
    """Refuse members that have not learned the same from the same rows."""
    for config, name in zip(configs, names, strict=True):
        if config.backend not in SETTINGS:
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


def _mixed(
    configs: Sequence[PredictorConfig],
    members: Sequence[LengthPredictor],
    hashes: Sequence[str],
    run: str,
    held: Examples,
    progress: Progress,
) -> EnsemblePredictor:
    """The members with their weights, not calibrated yet."""
    progress("weighing", 0, len(members))
    logits = []
    for done, member in enumerate(members, 1):
        logits.append(member.logits(held.views))
        progress("weighing", done, len(members))
    weights = fit_weights(logits, held.targets(configs[0].bins))
    about = [{"backend": c.backend, "sha256": sha} for c, sha in zip(configs, hashes, strict=True)]
    config = configs[0].model_copy(
        update={
            "backend": EnsemblePredictor.backend,
            "run": run,
            "hyperparameters": {k: configs[0].hyperparameters.get(k) for k in _ROWS},
            "versions": {k: v for c in reversed(configs) for k, v in c.versions.items()},
            "model": {WEIGHTS: list(weights), "members": about},
            "metrics": {},
        }
    )
    return EnsemblePredictor(config, Calibration(), members)


def _trees(configs: Sequence[PredictorConfig]) -> BoostingSettings:
    """The trees that the first member with trees was trained with; the default ones if none has any."""
    for config in configs:
        said = {k: v for k, v in config.hyperparameters.items() if k in BoostingSettings.model_fields}
        if said and config.backend != "encoder":
            return BoostingSettings.model_validate(said)
    return BoostingSettings()


def _is_there(output: Path, run: str) -> bool:
    try:
        return checkpoint.read(output)[0].run == run
    except CheckpointError:
        return False
