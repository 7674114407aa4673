"""Training a predictor, from a trace to a checkpoint.

Rule: only ``train`` rows teach; a part of them is held out to choose the epoch or round and the temperature; ``dev``
rows are used once, to say how good the result is. What a training run writes before it is done stays in
``OUTPUT/.training``, which belongs to that run alone (its fingerprint is kept there) and is removed at the end.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from platform import python_version
from typing import Any

from ecoserve.data import Trace
from ecoserve.errors import CheckpointError, ConfigError, RunError
from ecoserve.predictor import checkpoint
from ecoserve.predictor.base import LengthPredictor
from ecoserve.predictor.baselines import ConstantMedian
from ecoserve.predictor.bins import Bins, BinSettings
from ecoserve.predictor.calibration import Calibration
from ecoserve.predictor.calibration_fitting import fit_calibration
from ecoserve.predictor.config import BACKENDS, Backend, BoostingSettings, EncoderSettings, PredictorConfig
from ecoserve.predictor.evaluation import evaluate_predictor
from ecoserve.predictor.examples import Examples, Parts, training_parts
from ecoserve.predictor.progress import Progress, silent

WORK = ".training"
_RUN = "run.json"
_VERSIONED: dict[Backend, tuple[str, ...]] = {
    "encoder": ("torch", "transformers", "tokenizers"),
    "lightgbm": ("lightgbm", "scikit-learn"),
}


def train_predictor(
    trace: Trace,
    *,
    backend: Backend,
    output_dir: str | Path,
    seed: int = 0,
    settings: EncoderSettings | BoostingSettings | None = None,
    bins: BinSettings | None = None,
    served_model: str | None = None,
    max_rows: int | None = None,
    held_out: float = 0.1,
    resume: bool = False,
    progress: Progress = silent,
) -> LengthPredictor:
    """Train a length predictor on a trace and save its checkpoint.

    Args:
        trace: requests with the lengths of their answers; its own ``train``/``dev`` split is used if it has one.
        backend: ``"encoder"`` or ``"lightgbm"``.
        output_dir: folder for the checkpoint: new, empty, or an older checkpoint to replace.
        seed: seed of everything random; the same seed on the same machine gives the same weights.
        settings: the backend's hyperparameters.
        bins: how length bins are laid.
        served_model: the model whose answers these are; by default what the trace says.
        max_rows: use at most so many ``train`` rows, chosen at random.
        held_out: share of the ``train`` rows kept apart for choosing and calibrating.
        resume: go on with an interrupted run of the same settings, data and seed in ``output_dir``; if that run had
            ended, its checkpoint is loaded. Only the encoder has anything to go on with: LightGBM starts again.
        progress: told how far it is.

    Returns:
        the trained predictor, as loaded from its checkpoint; ``config.metrics`` says how good it is on ``held_out`` and
        ``dev`` rows and, beside them, how good the constant median is.

    Raises:
        TraceError: if the trace has too few rows with text and length.
        ConfigError: if settings do not fit, or ``resume`` meets another run.
        CheckpointError: if ``output_dir`` holds other files.
    """
    output = Path(output_dir).expanduser()
    if backend not in BACKENDS:
        raise ConfigError(f"no backend {backend!r}", where="backend", fix=f"one of {', '.join(BACKENDS)}")
    settings = settings or (EncoderSettings() if backend == "encoder" else BoostingSettings())
    if isinstance(settings, EncoderSettings) != (backend == "encoder"):
        raise ConfigError(f"{type(settings).__name__} are not settings of {backend}", where="settings")
    if not 0.0 < held_out < 0.9:
        raise ConfigError(f"held-out share {held_out} is not between 0 and 0.9", where="held_out")
    bins = bins or BinSettings()
    checkpoint.check_place(output)

    plan = _Plan(trace, backend, settings, bins, served_model or _model_of(trace), max_rows, held_out, seed)
    if resume and (done := _finished(output, plan)) is not None:
        return done
    progress("splitting", 0, 1)
    parts = training_parts(trace, seed=seed, max_rows=max_rows, held_out=held_out)
    work = _open_work(output, plan, resume=resume)
    started = time.monotonic()
    predictor = _train(plan, parts.fit, parts.held, work, resume=resume, progress=progress)
    seconds = time.monotonic() - started

    progress("calibrating", 0, 1)
    logits = predictor.logits(parts.held.views)
    held = parts.held
    predictor.calibration = fit_calibration(logits, held.lengths, predictor.config.edges, held.views, seed=seed)
    metrics = _measure(predictor, parts, progress)
    predictor.config = predictor.config.model_copy(update={"metrics": metrics, "training_seconds": round(seconds, 1)})
    predictor.save_pretrained(output)
    shutil.rmtree(work, ignore_errors=True)
    return LengthPredictor.from_pretrained(output)


@dataclass(frozen=True, slots=True)
class _Plan:
    """Everything that decides the outcome of a training run."""

    trace: Trace
    backend: Backend
    settings: EncoderSettings | BoostingSettings
    bins: BinSettings
    served_model: str | None
    max_rows: int | None
    held_out: float
    seed: int

    @property
    def hyperparameters(self) -> dict[str, Any]:
        rows = {"max_rows": self.max_rows, "held_out": self.held_out}
        content = {**self.settings.model_dump(mode="json"), **self.bins.model_dump(mode="json"), **rows}
        if isinstance(self.settings, EncoderSettings) and Path(self.settings.encoder).expanduser().is_dir():
            # A checkpoint travels; the path of the machine it was made on does not.
            content["encoder"] = Path(self.settings.encoder).expanduser().resolve().name
        return content

    @property
    def versions(self) -> dict[str, str]:
        found = {"python": python_version()}
        for name in ("ecoserve", "numpy", *_VERSIONED[self.backend]):
            try:
                found[name] = version(name)
            except PackageNotFoundError:
                found[name] = "unknown"
        return found

    @property
    def fingerprint(self) -> str:
        parts = [self.backend, self.hyperparameters, self.versions, self.trace.sha256, self.seed, self.served_model]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _train(
    plan: _Plan, fit: Examples, held: Examples, work: Path, *, resume: bool, progress: Progress
) -> LengthPredictor:
    """Run the backend's training; the result is not calibrated yet."""
    bins = Bins.fit(fit.all_lengths(), plan.bins)
    config = PredictorConfig(
        backend=plan.backend,
        edges=bins.edges,
        closed_by=bins.closed_by,
        prior=tuple(bins.shares(fit.all_lengths()).tolist()),
        served_model=plan.served_model,
        trace_name=Path(plan.trace.source).name,
        trace_format=plan.trace.format,
        trace_sha256=plan.trace.sha256,
        length_source=plan.trace.length_source,
        rows_trained=len(fit),
        rows_held_out=len(held),
        seed=plan.seed,
        run=plan.fingerprint,
        hyperparameters=plan.hyperparameters,
        versions=plan.versions,
    )
    if isinstance(plan.settings, EncoderSettings):
        from ecoserve.predictor.encoder.predictor import EncoderPredictor
        from ecoserve.predictor.encoder.training import train_encoder

        model, tokenizer, extra = train_encoder(
            fit, held, bins, plan.settings, seed=plan.seed, work=work, resume=resume, progress=progress
        )
        return EncoderPredictor(config.model_copy(update={"model": extra}), Calibration(), model, tokenizer)
    from ecoserve.predictor.boosting.predictor import BoostingPredictor
    from ecoserve.predictor.boosting.training import train_boosting

    booster, words = train_boosting(fit, held, bins, plan.settings, seed=plan.seed, progress=progress)
    return BoostingPredictor(config, Calibration(), booster, words)


def _measure(predictor: LengthPredictor, parts: Parts, progress: Progress) -> dict[str, dict[str, float]]:
    """Evaluate on the held-out rows and on ``dev``; the constant median on the same rows as the last of them."""
    progress("evaluating", 0, 1)
    metrics = {"held_out": evaluate_predictor(predictor, parts.held_records)}
    last = parts.held_records
    if any(r.response_tokens is not None for r in parts.dev_records):
        last = parts.dev_records
        metrics["dev"] = evaluate_predictor(predictor, last)
    metrics["constant_median"] = evaluate_predictor(ConstantMedian.of(predictor.config), last)
    progress("evaluating", 1, 1)
    return metrics


def _model_of(trace: Trace) -> str | None:
    """The model that gave all answers of the trace, if it was one."""
    names = {r.model for r in trace.records}
    return names.pop() if len(names) == 1 else None


def _finished(output: Path, plan: _Plan) -> LengthPredictor | None:
    """The checkpoint in ``output`` if the very same run made it."""
    try:
        config, _ = checkpoint.read(output)
    except CheckpointError:
        return None
    return LengthPredictor.from_pretrained(output) if config.run == plan.fingerprint else None


def _open_work(output: Path, plan: _Plan, *, resume: bool) -> Path:
    """The run's work folder: the interrupted one's if ``resume``, else a fresh one."""
    work = output / WORK
    note = work / _RUN
    try:
        if resume and note.is_file():
            if json.loads(note.read_text(encoding="utf-8")).get("run") == plan.fingerprint:
                return work
            raise ConfigError(
                "the run that was interrupted here had other data, settings, seed or versions",
                where=str(output),
                fix="repeat its command with --resume, or start anew without --resume",
            )
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        note.write_text(json.dumps({"run": plan.fingerprint}) + "\n", encoding="utf-8")
    except (OSError, ValueError) as error:
        raise RunError(f"cannot work here: {error}", where=str(work)) from error
    return work
