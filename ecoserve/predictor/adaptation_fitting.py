"""Adapting a predictor to another served model from a few of its responses.

Everything is chosen by cross-validation over the given rows, rows of the same prompt together. Of the three kinds
(:mod:`ecoserve.predictor.adaptation`) a simpler one stays unless the next one's pinball loss is lower by more than the
standard error of the difference, so few rows make nothing worse by more than noise. The calibration is fitted on
predictions for rows that were left out: its bounds hold but for the difference between those models and the one of all
rows, and for the choices made on the same rows.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from ecoserve.data import Trace, split_trace
from ecoserve.errors import CheckpointError, ConfigError, TraceError
from ecoserve.predictor import checkpoint, hub
from ecoserve.predictor.adaptation import (
    MOST,
    Adaptation,
    AdaptedPredictor,
    Kind,
    base_features,
    moved,
    with_share,
)
from ecoserve.predictor.base import LengthPredictor
from ecoserve.predictor.baselines import ConstantMedian
from ecoserve.predictor.bins import Bins, BinSettings
from ecoserve.predictor.calibration_fitting import fit_calibration, pinball
from ecoserve.predictor.evaluation import evaluate_predictor
from ecoserve.predictor.examples import MIN_ROWS, Examples, at_most, require_texts, usable
from ecoserve.predictor.runtime import Progress, silent

Array = npt.NDArray[np.float64]
KINDS: Final[tuple[Kind, ...]] = ("none", "affine", "ridge")
PENALTIES: Final = np.geomspace(3.0, 3000.0, 10)
STRETCHES: Final = np.geomspace(0.4, 4.0, 17)
#: Share of the new model's lengths as such in every adapted prediction.
MIX: Final = 0.05
_FOLDS: Final = 10


def adapt_predictor(
    base: str | Path,
    trace: Trace,
    *,
    output_dir: str | Path,
    rows: int | None = None,
    served_model: str | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> LengthPredictor:
    """Adapt a checkpoint to another served model and save the result as a checkpoint.

    Args:
        base: folder or hub id of the predictor to start from.
        trace: requests with the lengths of the new model's responses; its ``train`` rows adapt, its ``dev`` rows
            evaluate.
        output_dir: folder for the checkpoint: new, empty, or an older checkpoint to replace, not the base's.
        rows: adapt from at most so many rows, chosen at random.
        served_model: the new model; by default what the trace says. Of several models' responses, its own are taken.

    Raises CheckpointError if the base is missing, damaged, or adapted itself, or ``output_dir`` holds other files;
    TraceError if there are fewer than 50 rows with text and length, or several models' responses; ConfigError if
    ``output_dir`` is the base's own folder.
    """
    started = time.monotonic()
    output = Path(output_dir).expanduser()
    checkpoint.check_place(output)
    folder = hub.locate(base)
    if output.exists() and output.samefile(folder):
        raise ConfigError("is the folder of the predictor to start from", where=str(output), fix="give another one")
    predictor = LengthPredictor.from_pretrained(folder)
    if isinstance(predictor, AdaptedPredictor):
        raise CheckpointError("is adapted already", where=str(base), fix="give the checkpoint it was adapted from")
    trace, model = _responses_of(trace, served_model)
    require_texts(trace)
    parts = split_trace(trace, seed=seed)
    examples = Examples.of(at_most(usable(parts["train"].records), rows, seed), predictor.config.parameters)
    _check(examples, trace.source)
    adapted = fit_adaptation(predictor, examples, seed=seed, progress=progress)
    seconds = round(time.monotonic() - started, 1)
    metrics, dev = {}, parts["dev"].records
    if usable(dev):
        progress("evaluating", 0, 1)
        metrics = {
            "dev": evaluate_predictor(adapted, dev),
            "unadapted": evaluate_predictor(predictor, dev),
            "constant_median": evaluate_predictor(ConstantMedian.of(adapted.config), dev),
        }
    of_base = {"backend", "served_model", "trace_name", "trace_sha256"}
    about = {"sha256": checkpoint.identity(folder), **predictor.config.model_dump(mode="json", include=of_base)}
    adapted.config = adapted.config.model_copy(
        update={
            "served_model": model,
            "trace_name": Path(trace.source).name,
            "trace_format": trace.format,
            "trace_sha256": trace.sha256,
            "length_source": trace.length_source,
            "seed": seed,
            "hyperparameters": {"rows": rows, "kind": adapted.adaptation.kind},
            "model": {"base": about},
            "metrics": metrics,
            "training_seconds": seconds,
        }
    )
    adapted.save_pretrained(output)
    return LengthPredictor.from_pretrained(output)


def fit_adaptation(
    base: LengthPredictor, examples: Examples, *, seed: int = 0, progress: Progress = silent
) -> AdaptedPredictor:
    """Fit on ``examples``; the trace in the config is still the base's."""
    progress("reading", 0, 3)
    lengths = np.asarray(examples.lengths, dtype=np.float64)
    features, cdf = base_features(base, examples.views)
    bins = adapted_bins(lengths, base.config.edges, examples.censored)
    prior = bins.shares(lengths.astype(np.int64))
    folds = _folds([v.text for v in examples.views], seed)
    progress("adapting", 1, 3)
    adaptation, left_out = choose(features, cdf, base.config.edges, lengths, bins, prior, folds)
    progress("calibrating", 2, 3)
    calibration = fit_calibration(np.log(left_out), examples.answers, bins.edges, examples.views)
    config = base.config.model_copy(
        update={
            "backend": "adapted",
            "edges": bins.edges,
            "closed_by": bins.closed_by,
            "prior": tuple(prior.tolist()),
            "rows_trained": len(examples),
            "rows_held_out": 0,
            "run": "",
            "metrics": {},
        }
    )
    progress("calibrating", 3, 3)
    return AdaptedPredictor(config, calibration, base, adaptation)


def choose(
    features: Array,
    cdf: Array,
    base_edges: npt.ArrayLike,
    lengths: Array,
    bins: Bins,
    prior: Array,
    folds: npt.NDArray[np.int64],
) -> tuple[Adaptation, Array]:
    """The adaptation, and each row's probabilities by one that was fitted without its fold, shape ``[n, K]``.

    The ridge's penalty has the smallest error of log length, the stretch the smallest pinball loss.
    """
    edges, target = np.asarray(bins.edges, dtype=np.float64), np.log(lengths)
    by_penalty = {p: _left_out("ridge", features, target, folds, p) for p in PENALTIES}
    penalty = min(PENALTIES, key=lambda p: float(np.square(by_penalty[p] - target).mean()))
    log_lengths = {
        "none": features[:, 0],
        "affine": _left_out("affine", features, target, folds, 1.0),
        "ridge": by_penalty[penalty],
    }
    best: tuple[Adaptation, Array, Array] | None = None
    for kind in KINDS:
        stretches, mix = (np.ones(1), 0.0) if kind == "none" else (STRETCHES, MIX)
        by_stretch = {float(s): moved(cdf, base_edges, features[:, 0], log_lengths[kind], s, edges) for s in stretches}
        stretch = min(by_stretch, key=lambda s: float(pinball(by_stretch[s], edges, lengths).mean()))
        p = with_share(by_stretch[stretch], mix, prior)
        loss = pinball(np.concatenate([np.zeros((len(p), 1)), np.cumsum(p, axis=1)], axis=1), edges, lengths)
        gain = None if best is None else best[2] - loss
        if gain is None or gain.mean() > gain.std() / math.sqrt(len(gain)):
            adaptation = _fit(kind, features, target, penalty if kind == "ridge" else 1.0)
            best = adaptation.model_copy(update={"stretch": stretch, "mix": mix}), p, loss
    assert best is not None
    return best[0], best[1]


def _fit(kind: Kind, features: Array, target: Array, penalty: float) -> Adaptation:
    if kind == "none":
        return Adaptation()
    from sklearn.linear_model import Ridge

    x = features[:, :1] if kind == "affine" else features
    means, scales = x.mean(axis=0), np.maximum(x.std(axis=0), 1e-6)
    found = Ridge(alpha=penalty).fit(np.clip((x - means) / scales, -MOST, MOST), target)
    return Adaptation(
        kind=kind,
        means=tuple(means.tolist()),
        scales=tuple(scales.tolist()),
        weights=tuple(found.coef_.tolist()),
        intercept=float(found.intercept_),
    )


def _left_out(kind: Kind, features: Array, target: Array, folds: npt.NDArray[np.int64], penalty: float) -> Array:
    """Predicted log lengths of each fold by a regression on the others, shape ``[n]``."""
    out = np.empty(len(target))
    for fold in np.unique(folds):
        held = folds == fold
        out[held] = _fit(kind, features[~held], target[~held], penalty).log_lengths(features[held])
    return out


def _folds(texts: list[str], seed: int) -> npt.NDArray[np.int64]:
    _, which = np.unique(np.asarray(texts, dtype=object), return_inverse=True)
    count = int(which.max()) + 1
    fold = np.random.default_rng(seed).permutation(count) % min(_FOLDS, count)
    return np.asarray(fold[which], dtype=np.int64)


def adapted_bins(lengths: Array, base_edges: tuple[int, ...], censored: tuple[bool, ...]) -> Bins:
    """Bins over the new model's lengths, which reach further the fewer responses were seen.

    They end at the cap where at least four responses were cut off at the largest length, else at the base's end or
    above the largest length seen, whichever is longer.
    """
    top = int(lengths.max())
    at_top = lengths == top
    if at_top.sum() >= 4 and np.asarray(censored)[at_top].all():
        return Bins.fit(lengths, BinSettings(upper=top))
    headroom = 0.1 + 2.0 / math.sqrt(len(lengths))
    upper = max(int(base_edges[-1]), math.ceil(top * (1.0 + headroom)))
    inner = Bins.fit(lengths, BinSettings(upper=upper)).edges[:-1]
    # The room above the largest length in steps, so that a high quantile does not lie anywhere in it.
    steps = np.unique(np.rint(np.geomspace(max(inner[-1], 1), upper, 4)).astype(int))
    return Bins((*inner, *(int(s) for s in steps if s > inner[-1])))


def _check(examples: Examples, source: str) -> None:
    ended = sum(not c for c in examples.censored)
    if ended < MIN_ROWS:
        raise TraceError(
            f"{ended} answers to adapt from that have a text and a length and ended by themselves, "
            f"need at least {MIN_ROWS}",
            where=source,
            fix="check --length-field and --rows, or collect more answers",
        )
    if min(examples.lengths) == max(examples.lengths):
        what = f"every answer is {examples.lengths[0]} tokens long: there is nothing to adapt to"
        raise TraceError(what, where=source, fix="check the length field and the trace")


def _responses_of(trace: Trace, model: str | None) -> tuple[Trace, str | None]:
    """One model's responses, and its name; ``model`` says which where there are several models'."""
    names = {r.model for r in trace.records if r.model is not None}
    if len(names) < 2:
        return trace, model or next(iter(names), None)
    if model not in names:
        what = f"has answers of {len(names)} models, " + (f"none of {model}" if model else "and one is adapted to")
        raise TraceError(what, where=trace.source, fix=f"name with --model one of {', '.join(sorted(names))}")
    return trace.with_records(r for r in trace.records if r.model == model), model
