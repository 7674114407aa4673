"""Training a predictor, from a trace to a checkpoint.

Only ``train`` rows are learned from; a part of them is held out for choosing and calibrating. ``dev`` rows only
evaluate the result. The state of an unfinished run lies in ``OUTPUT/.training``. Under torchrun or accelerate all
processes call
the backend's ``fit``; the rest is done by the first.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from platform import python_version
from typing import Any, Final

from ecoserve.data import Trace
from ecoserve.errors import ConfigError, RunError
from ecoserve.predictor import checkpoint
from ecoserve.predictor.base import LengthPredictor, TrainingRun, backend_class, settings_class
from ecoserve.predictor.baselines import ConstantMedian
from ecoserve.predictor.bins import Bins, BinSettings
from ecoserve.predictor.calibration_fitting import control_of, fit_calibration, tree_settings
from ecoserve.predictor.config import BackendSettings, PredictorConfig
from ecoserve.predictor.evaluation import evaluate_predictor
from ecoserve.predictor.examples import Parts, training_parts, usable
from ecoserve.predictor.runtime import Progress, Stopwatch, first, silent, wait_for_all

WORK: Final = ".training"
_RUN: Final = "run.json"


def train_predictor(
    trace: Trace,
    *,
    backend: str,
    output_dir: str | Path,
    seed: int = 0,
    settings: BackendSettings | None = None,
    bins: BinSettings | None = None,
    served_model: str | None = None,
    max_rows: int | None = None,
    held_out: float = 0.1,
    resume: bool = False,
    progress: Progress = silent,
) -> LengthPredictor:
    """Train a length predictor on a trace and save its checkpoint.

    Args:
        trace: requests with the lengths of their responses; its own ``train``/``dev`` split is used if it has one.
        backend: a name in :data:`ecoserve.predictor.base.BACKENDS`.
        output_dir: folder for the checkpoint: new, empty, or an older checkpoint to replace.
        seed: the same seed on the same machine gives the same weights.
        served_model: the model whose responses these are; by default what the trace says.
        max_rows: use at most so many ``train`` rows, chosen at random.
        held_out: share of the ``train`` rows kept apart for choosing and calibrating.
        resume: go on with an interrupted run of the same settings, data and seed, or load its checkpoint if it has
            ended. A backend that is not resumable starts again.

    Returns:
        the predictor as loaded; ``config.metrics`` has its evaluation and that of the constant median.

    Raises TraceError if the trace has too few rows with text and length; ConfigError if settings do not fit, or
    ``resume`` meets another run; CheckpointError if ``output_dir`` holds other files.
    """
    output = Path(output_dir).expanduser()
    kind = settings_class(backend)
    settings = settings or kind()
    if not isinstance(settings, kind):
        raise ConfigError(f"{type(settings).__name__} are not settings of {backend}", where="settings")
    if not 0.0 < held_out < 0.9:
        raise ConfigError(f"held-out share {held_out} is not between 0 and 0.9", where="held_out")
    bins = bins or BinSettings()
    checkpoint.check_place(output)

    about: dict[str, Any] = {
        "backend": backend,
        "served_model": served_model or _model_of(trace),
        "trace_sha256": trace.sha256,
        "seed": seed,
        "hyperparameters": {
            **bins.model_dump(mode="json"),
            "max_rows": max_rows,
            "held_out": held_out,
            **settings.recorded(),
        },
        "versions": _versions(backend_class(backend).packages),
    }
    about["run"] = _fingerprint(about)
    if resume and checkpoint.is_of_run(output, about["run"]):
        return LengthPredictor.from_pretrained(output)
    progress("splitting", 0, 1)
    parts = training_parts(trace, seed=seed, max_rows=max_rows, held_out=held_out)
    laid = Bins.fit(parts.fit.all_lengths(), bins)
    config = PredictorConfig(
        **about,
        edges=laid.edges,
        closed_by=laid.closed_by,
        prior=tuple(laid.shares(parts.fit.all_lengths()).tolist()),
        trace_name=Path(trace.source).name,
        trace_format=trace.format,
        length_source=trace.length_source,
        rows_trained=len(parts.fit),
        rows_held_out=len(parts.held),
        parameters=parts.fit.parameters,
    )
    work = output / WORK
    if first():
        _open_work(output, config.run, resume=resume)
    wait_for_all()
    watch = Stopwatch(work, progress)
    run = TrainingRun(config, parts.fit, parts.held, work, resume, watch)
    predictor = backend_class(backend).fit(run, settings)
    if first():
        finish(predictor, parts, [config], output, watch.seconds, progress)
        shutil.rmtree(work, ignore_errors=True)
    wait_for_all()
    return LengthPredictor.from_pretrained(output)


def finish(
    predictor: LengthPredictor,
    parts: Parts,
    trained: Sequence[PredictorConfig],
    output: Path,
    seconds: float,
    progress: Progress,
) -> None:
    """Calibrate a fitted predictor on the held-out rows, evaluate it and save it in ``output``.

    ``trained`` are the configs of the trainings behind it
    (:func:`~ecoserve.predictor.calibration_fitting.tree_settings`).
    """
    progress("calibrating", 0, 1)
    held, config = parts.held, predictor.config
    logits = predictor.logits(held.views)
    control = control_of(
        parts.fit_records, parts.held_records, config, tree_settings(trained), seed=config.seed, progress=progress
    )
    predictor.calibration = fit_calibration(logits, held.answers, config.edges, held.views, control)
    progress("evaluating", 0, 1)
    metrics = {"held_out": evaluate_predictor(predictor, parts.held_records)}
    last = parts.held_records
    if usable(parts.dev_records):
        last = parts.dev_records
        metrics["dev"] = evaluate_predictor(predictor, last)
    metrics["constant_median"] = evaluate_predictor(ConstantMedian.of(config), last)
    progress("evaluating", 1, 1)
    predictor.config = config.model_copy(update={"metrics": metrics, "training_seconds": round(seconds, 1)})
    predictor.save_pretrained(output)


def _versions(packages: Sequence[str]) -> dict[str, str]:
    found = {"python": python_version()}
    for name in ("ecoserve", "numpy", *packages):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found


def _fingerprint(about: dict[str, Any]) -> str:
    keys = ("backend", "hyperparameters", "versions", "trace_sha256", "seed", "served_model")
    return hashlib.sha256(json.dumps([about[k] for k in keys], sort_keys=True).encode()).hexdigest()


def _model_of(trace: Trace) -> str | None:
    names = {r.model for r in trace.records}
    return names.pop() if len(names) == 1 else None


def _open_work(output: Path, run: str, *, resume: bool) -> None:
    work = output / WORK
    note = work / _RUN
    try:
        if resume and note.is_file():
            if json.loads(note.read_text(encoding="utf-8")).get("run") == run:
                return
            raise ConfigError(
                "the run that was interrupted here had other data, settings, seed or versions",
                where=str(output),
                fix="repeat its command with --resume, or start anew without --resume",
            )
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        note.write_text(json.dumps({"run": run}) + "\n", encoding="utf-8")
    except (OSError, ValueError) as error:
        raise RunError(f"cannot work here: {error}", where=str(work)) from error
