"""Training a predictor, from a trace to a checkpoint.

Rule: only ``train`` rows teach; a part of them is held out to choose the epoch or round and the temperature; ``dev``
rows are used once, to say how good the result is. What a training run writes before it is done stays in
``OUTPUT/.training``, which belongs to that run alone (its fingerprint is kept there) and is removed at the end.
Under torchrun or accelerate all processes fine-tune the encoder; the rest is done by the first.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from ecoserve.data import Trace
from ecoserve.errors import CheckpointError, ConfigError, RunError
from ecoserve.predictor import checkpoint
from ecoserve.predictor.base import LengthPredictor
from ecoserve.predictor.baselines import ConstantMedian
from ecoserve.predictor.bins import Bins, BinSettings
from ecoserve.predictor.calibration import Calibration
from ecoserve.predictor.calibration_fitting import fit_calibration
from ecoserve.predictor.config import (
    BACKENDS,
    SETTINGS,
    Backend,
    BoostingSettings,
    EncoderSettings,
    PredictorConfig,
    Settings,
)
from ecoserve.predictor.control import control_of
from ecoserve.predictor.evaluation import evaluate_predictor
from ecoserve.predictor.examples import Examples, Parts, training_parts
from ecoserve.predictor.plan import Plan
from ecoserve.predictor.processes import first, wait_for_all
from ecoserve.predictor.progress import Progress, silent
from ecoserve.predictor.stopwatch import Stopwatch

if TYPE_CHECKING:
    from ecoserve.predictor.boosting.predictor import BoostingPredictor
    from ecoserve.predictor.encoder.predictor import EncoderPredictor

WORK = ".training"
_RUN = "run.json"


def train_predictor(
    trace: Trace,
    *,
    backend: Backend,
    output_dir: str | Path,
    seed: int = 0,
    settings: Settings | None = None,
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
        backend: ``"encoder"``, ``"lightgbm"``, or ``"stacked"`` for both together.
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
    settings = settings or SETTINGS[backend]()
    if not isinstance(settings, SETTINGS[backend]):
        raise ConfigError(f"{type(settings).__name__} are not settings of {backend}", where="settings")
    if not 0.0 < held_out < 0.9:
        raise ConfigError(f"held-out share {held_out} is not between 0 and 0.9", where="held_out")
    bins = bins or BinSettings()
    checkpoint.check_place(output)

    plan = Plan.of(
        trace,
        settings,
        bins,
        backend=backend,
        served_model=served_model,
        max_rows=max_rows,
        held_out=held_out,
        seed=seed,
    )
    if resume and (done := _finished(output, plan)) is not None:
        return done
    progress("splitting", 0, 1)
    parts = training_parts(trace, seed=seed, max_rows=max_rows, held_out=held_out)
    work = output / WORK
    if first():
        _open_work(output, plan, resume=resume)
    wait_for_all()
    watch = Stopwatch(work, progress)
    predictor = _train(plan, parts.fit, parts.held, work, resume=resume, progress=watch)
    seconds = watch.seconds

    if first():
        finish(predictor, parts, _trees(plan.settings), output, seconds, progress)
        shutil.rmtree(work, ignore_errors=True)
    wait_for_all()
    return LengthPredictor.from_pretrained(output)


def _train(
    plan: Plan, fit: Examples, held: Examples, work: Path, *, resume: bool, progress: Progress
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
        parameters=fit.parameters,
        seed=plan.seed,
        run=plan.fingerprint,
        hyperparameters=plan.hyperparameters,
        versions=plan.versions,
    )
    settings = plan.settings
    if isinstance(settings, EncoderSettings):
        return _train_encoder(config, plan, settings, fit, held, work, resume=resume, progress=progress)
    if isinstance(settings, BoostingSettings):
        return _train_boosting(config, plan, settings, fit, held, progress)
    encoder = _train_encoder(config, plan, settings.encoder, fit, held, work, resume=resume, progress=progress)
    if not first():
        return encoder
    from ecoserve.predictor.mixing import fit_weights
    from ecoserve.predictor.stacking import WEIGHT, StackedPredictor

    boosting = _train_boosting(config, plan, settings.lightgbm, fit, held, progress)
    progress("stacking", 0, 1)
    weight = fit_weights((encoder.logits(held.views), boosting.logits(held.views)), held.targets(bins))[0]
    config = config.model_copy(update={"model": {**encoder.config.model, WEIGHT: weight}})
    return StackedPredictor(config, Calibration(), encoder, boosting)


def _train_encoder(
    config: PredictorConfig,
    plan: Plan,
    settings: EncoderSettings,
    fit: Examples,
    held: Examples,
    work: Path,
    *,
    resume: bool,
    progress: Progress,
) -> EncoderPredictor:
    from ecoserve.predictor.encoder.predictor import EncoderPredictor
    from ecoserve.predictor.encoder.training import train_encoder

    model, tokenizer, extra = train_encoder(
        fit, held, config.bins, settings, seed=plan.seed, work=work, resume=resume, progress=progress
    )
    if plan.start:
        extra["started_from"] = plan.start
    return EncoderPredictor(config.model_copy(update={"model": extra}), Calibration(), model, tokenizer)


def _train_boosting(
    config: PredictorConfig,
    plan: Plan,
    settings: BoostingSettings,
    fit: Examples,
    held: Examples,
    progress: Progress,
) -> BoostingPredictor:
    from ecoserve.predictor.boosting.predictor import BoostingPredictor
    from ecoserve.predictor.boosting.training import train_boosting

    booster, words = train_boosting(fit, held, config.bins, settings, seed=plan.seed, progress=progress)
    return BoostingPredictor(config, Calibration(), booster, words)


def finish(
    predictor: LengthPredictor,
    parts: Parts,
    trees: BoostingSettings,
    output: Path,
    seconds: float,
    progress: Progress,
) -> None:
    """Calibrate on the held-out rows, evaluate and save.

    Args:
        predictor: trained, not calibrated; its ``config.seed`` is that of ``parts``.
        parts: the rows that it has learned from, and the others.
        trees: hyperparameters of the trees that compare the held-out rows with those it has learned from.
        output: the checkpoint's folder.
        seconds: what training took.
        progress: told how far it is.
    """
    progress("calibrating", 0, 1)
    held = parts.held
    logits = predictor.logits(held.views)
    control = control_of(
        parts.fit_records, parts.held_records, predictor.config, trees, seed=predictor.config.seed, progress=progress
    )
    predictor.calibration = fit_calibration(logits, held.answers, predictor.config.edges, held.views, control)
    metrics = _measure(predictor, parts, progress)
    predictor.config = predictor.config.model_copy(update={"metrics": metrics, "training_seconds": round(seconds, 1)})
    predictor.save_pretrained(output)


def _trees(settings: Settings) -> BoostingSettings:
    """Hyperparameters of the trees that compare the held-out rows with the others."""
    if isinstance(settings, EncoderSettings):
        return BoostingSettings()
    return settings if isinstance(settings, BoostingSettings) else settings.lightgbm


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


def _finished(output: Path, plan: Plan) -> LengthPredictor | None:
    """The checkpoint in ``output`` if the very same run made it."""
    try:
        config, _ = checkpoint.read(output)
    except CheckpointError:
        return None
    return LengthPredictor.from_pretrained(output) if config.run == plan.fingerprint else None


def _open_work(output: Path, plan: Plan, *, resume: bool) -> None:
    """Open the run's work folder: the interrupted one's if ``resume``, else a fresh one."""
    work = output / WORK
    note = work / _RUN
    try:
        if resume and note.is_file():
            if json.loads(note.read_text(encoding="utf-8")).get("run") == plan.fingerprint:
                return
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
