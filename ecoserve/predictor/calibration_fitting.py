"""Fitting a predictor's calibration on held-out rows: a temperature, a map of levels, and a control for easy rows.

docs/how/calibration.md has the rules. With d how much more than q the quantile covers, and s its standard error over
rows: the temperature has the smallest sum of d² / (q (1 - q)) over :data:`LEVELS` among those within :data:`SHARPNESS`,
as pinball loss alone rewards sharpness that was luck; the map passes (q + w (score - q), q), where ``score`` makes d
vanish and w = max(0, 1 - 4 s² / d²) (positive-part shrinkage, after James and Stein, 1961), so that checkpoints of one
training do not scatter; the control is post-stratification (e.g. Cochran, "Sampling Techniques", 1977, ch. 5A).

A length is a whole token with a probability of its own, and counts as spread evenly over it. Figures on the rows that
were fitted on are slightly optimistic; the bounds (:mod:`ecoserve.predictor.conformal`) depend on none of this.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from ecoserve.data import Record
from ecoserve.data.splitting import record_groups
from ecoserve.predictor.base import TrainingRun
from ecoserve.predictor.boosting.predictor import BoostingPredictor, BoostingSettings
from ecoserve.predictor.calibration import BOUNDS, Calibration, LevelMap, cdf_of, softmax
from ecoserve.predictor.config import PredictorConfig
from ecoserve.predictor.conformal import GroupBounds, scores_of
from ecoserve.predictor.examples import Examples
from ecoserve.predictor.runtime import Progress, silent
from ecoserve.predictor.text import RequestView

Array = npt.NDArray[np.float64]
#: Levels that the map may pass. Few: each adds its rows' noise to the shape.
LEVELS: Final = (0.1, 0.25, 0.5, 0.8, 0.9, 0.95, 0.99)
#: Fewer rows than this have a temperature only: neither a map nor bounds.
MIN_ROWS: Final = 50
#: Fewer rows than this are not calibrated on.
MIN_TEMPERATURE_ROWS: Final = 20
#: A difference whose square is below so many squared standard errors is taken for chance.
GIVES_WAY: Final = 4.0
#: How much worse than the best temperature's the pinball loss may be, as a share.
SHARPNESS: Final = 0.01
#: Temperatures tried for coverage: so many, as far from the sharpest as this, in logarithms.
_TRIED: Final = 61
_AROUND: Final = 0.3
#: Quantiles over which the pinball loss is averaged.
LOSS_LEVELS: Final = np.round(np.arange(0.05, 0.96, 0.05), 2)
#: Parts of the ``train`` rows; each is predicted by trees that learned from the others.
FOLDS: Final = 3
#: Held-out rows below which strata would be guesses, and above which there is nothing to gain.
HELD_OUT_ROWS: Final = (200, 5000)
#: Held-out rows for each stratum, and strata at most.
STRATUM_ROWS: Final = 50
MOST_STRATA: Final = 20


@dataclass(frozen=True, slots=True)
class Control:
    """Where responses lie in the CDFs of trees that have not seen them: just before their length plus half of it."""

    #: of all answers to the held-out rows, flat in their order, shape ``[a]``
    held: Array
    #: of the served answer to every ``train`` row, shape ``[N]``
    served: Array

    def strata(self, rows: int) -> tuple[npt.NDArray[np.intp], Array]:
        """The stratum of each held-out answer, shape ``[a]``, and each stratum's share of served answers, ``[S]``."""
        count = int(np.clip(rows // STRATUM_ROWS, 1, MOST_STRATA))
        cuts = np.quantile(self.served, np.arange(1, count) / count)
        shares = np.bincount(np.searchsorted(cuts, self.served), minlength=count) / len(self.served)
        return np.searchsorted(cuts, self.held), shares


@dataclass(frozen=True, slots=True)
class Answers:
    """Lengths of all answers to ``n`` rows, flat: ``a`` of them."""

    #: of which row, shape ``[a]``
    row: npt.NDArray[np.intp]
    #: tokens, shape ``[a]``
    length: Array
    #: adding up to 1; without a control the same for each row, shape ``[a]``
    weight: Array
    #: which stratum of the control it is in, shape ``[a]``
    stratum: npt.NDArray[np.intp]

    @classmethod
    def of(cls, answers: Sequence[Sequence[float]], control: Control | None = None) -> Answers:
        """From one sequence of lengths (tokens) per row, each with at least one."""
        counts = np.asarray([len(a) for a in answers])
        row = np.repeat(np.arange(len(answers)), counts)
        lengths = np.asarray([n for a in answers for n in a], dtype=np.float64)
        weight = 1.0 / (counts[row] * len(answers))
        if control is None:
            return cls(row, lengths, weight, np.zeros_like(row))
        stratum, shares = control.strata(len(answers))
        weight *= shares[stratum] / np.bincount(stratum, weight, minlength=len(shares))[stratum]
        return cls(row, lengths, weight / weight.sum(), stratum)

    def spans(self, cdf: Array, edges: Array) -> Spans:
        """Where the answers lie in the CDFs of their rows, shape ``[n, K + 1]``."""
        own = cdf[self.row]
        return Spans(self, scores_of(own, edges, self.length), scores_of(own, edges, self.length + 1.0))


@dataclass(frozen=True, slots=True)
class Spans:
    """The CDF just before and at the length of ``a`` answers, shapes ``[a]``."""

    answers: Answers
    low: Array
    high: Array

    def below(self, score: float) -> Array:
        """The share of each answer below ``score``, shape ``[a]``."""
        return np.asarray(np.clip((score - self.low) / np.maximum(self.high - self.low, 1e-12), 0.0, 1.0))

    def score_at(self, level: float) -> float | None:
        """The score with a share of ``level`` of all answers below it; None if too many lie beyond the last edge."""
        from scipy.optimize import brentq

        def off(score: float) -> float:
            return float(self.answers.weight @ self.below(score)) - level

        return None if off(1.0) <= 0.0 else float(brentq(off, 0.0, 1.0, xtol=1e-9))

    def error(self, level: float) -> tuple[float, float]:
        """How much more than ``level`` the quantile covers, and the standard error of that over the rows."""
        below, weight, stratum = self.below(level), self.answers.weight, self.answers.stratum
        usual = np.bincount(stratum, weight * below) / np.maximum(np.bincount(stratum, weight), 1e-300)
        of_rows = np.bincount(self.answers.row, weight * (below - usual[stratum]))
        return float(weight @ below) - level, float(np.sqrt((of_rows**2).sum()))


def fit_calibration(
    logits: npt.ArrayLike,
    answers: Sequence[Sequence[float]],
    edges: npt.ArrayLike,
    views: Sequence[RequestView] | None,
    control: Control | None = None,
) -> Calibration:
    """Calibrate on ``n >= 1`` rows that were not learned from: logits of shape ``[n, K]`` over bins of ``K + 1`` edges.

    ``answers``: lengths (tokens) of each row's answers, the served one first; of a cut-off one, where it was cut.
    ``control``: how these rows differ from all others; None: not at all. Without ``views`` there are no bounds.
    """
    z = np.asarray(logits, dtype=np.float64)
    e = np.asarray(edges, dtype=np.float64)
    if len(z) < MIN_TEMPERATURE_ROWS:
        return Calibration()
    known = Answers.of(answers, control)
    before, plain = _loss(Calibration(), z, e, known), cdf_of(softmax(z))
    fitted = Calibration(temperature=fit_temperature(z, known, e))
    if len(z) >= MIN_ROWS:
        served = np.asarray([a[0] for a in answers], dtype=np.float64)
        bounds = None if views is None else GroupBounds.fit(plain, e, served, views)
        fitted = fitted.model_copy(update={"map": fit_map(known.spans(fitted.cdf(z), e)), "bounds": bounds})
    return fitted.model_copy(
        update={
            "rows": len(z),
            "answers": len(known.length),
            "pinball_before": before,
            "pinball_after": _loss(fitted, z, e, known),
        }
    )


def fit_temperature(logits: Array, answers: Answers, edges: Array) -> float:
    from scipy.optimize import minimize_scalar

    levels = np.asarray(LEVELS)

    def sharp(log_temperature: float) -> float:
        return _loss(Calibration(temperature=float(np.exp(log_temperature))), logits, edges, answers)

    def off(log_temperature: float) -> float:
        spans = answers.spans(Calibration(temperature=float(np.exp(log_temperature))).cdf(logits), edges)
        d = np.asarray([float(answers.weight @ spans.below(level)) for level in LEVELS]) - levels
        return float((d**2 / (levels * (1.0 - levels))).sum())

    low, high = np.log(BOUNDS)
    found = minimize_scalar(sharp, bounds=(low, high), method="bounded", options={"xatol": 3e-3})
    best = float(found.x) if float(found.fun) < sharp(0.0) else 0.0
    around = np.clip(best + np.linspace(-_AROUND, _AROUND, _TRIED), low, high)
    most = (1.0 + SHARPNESS) * sharp(best)
    return float(np.exp(min((x for x in (best, *around) if sharp(x) <= most), key=off)))


def fit_map(spans: Spans) -> LevelMap:
    points, changed = [], False
    for level in LEVELS:
        score = spans.score_at(level)
        if score is None:
            break
        off, error = spans.error(level)
        weight = max(0.0, 1.0 - GIVES_WAY * error**2 / max(off**2, 1e-18))
        points.append((level + weight * (score - level), level))
        changed |= weight > 0.0
    return LevelMap.through(points) if changed else LevelMap()


def quantiles(cdf: Array, edges: Array, levels: Array) -> Array:
    """Quantiles in tokens, shape ``[n, len(levels)]``, as :class:`~ecoserve.lengths.LengthDistribution` gives them."""
    last = len(edges) - 2
    k = np.minimum(np.stack([(cdf[:, 1:] < level).sum(axis=1) for level in levels], axis=1), last)
    rows = np.arange(len(cdf))[:, None]
    share = np.maximum(cdf[rows, k + 1] - cdf[rows, k], 1e-300)
    low, high = edges[k], edges[k + 1]
    found = low + np.ceil((levels - cdf[rows, k]) / share * (high - low) - 1e-9)
    return np.asarray(np.clip(found, low + 1, high), dtype=np.float64)


def pinball(cdf: Array, edges: Array, lengths: Array) -> Array:
    """Mean pinball loss of each row over :data:`LOSS_LEVELS`, in tokens, shape ``[n]``."""
    return _pinball(lengths[:, None] - quantiles(cdf, edges, LOSS_LEVELS))


def _pinball(off: Array) -> Array:
    return np.asarray(np.maximum(LOSS_LEVELS * off, (LOSS_LEVELS - 1.0) * off).mean(axis=1), dtype=np.float64)


def _loss(calibration: Calibration, logits: Array, edges: Array, answers: Answers) -> float:
    """Mean pinball loss over all answers, in tokens."""
    predicted = quantiles(calibration.cdf(logits), edges, LOSS_LEVELS)
    return float(answers.weight @ _pinball(answers.length[:, None] - predicted[answers.row]))


def control_of(
    fit: Sequence[Record],
    held: Sequence[Record],
    config: PredictorConfig,
    settings: BoostingSettings,
    *,
    seed: int = 0,
    progress: Progress = silent,
) -> Control | None:
    """Train the trees and let them predict; None where the number of held-out rows makes it useless.

    ``fit`` are the ``train`` rows learned from, ``held`` those held out; ``config`` is of the predictor to be
    calibrated (its bins, and what it reads of requests), ``settings`` are the trees'.
    """
    if not HELD_OUT_ROWS[0] <= len(held) <= HELD_OUT_ROWS[1]:
        return None
    from sklearn.model_selection import GroupKFold

    usable = [[r for r in part if len(Examples.of((r,)))] for part in (fit, held)]
    records = (*usable[0], *usable[1])
    groups = record_groups(records)
    if len(np.unique(groups)) < FOLDS:
        return None
    scores: list[Array] = [np.empty(0)] * len(records)
    folds = GroupKFold(FOLDS, shuffle=True, random_state=seed).split(groups, groups=groups)
    for done, (others, asked) in enumerate(folds):
        progress("comparing", done, FOLDS)
        learned = Examples.of((records[i] for i in others), config.parameters)
        rows = Examples.of((records[i] for i in asked), config.parameters)
        for i, row, lengths in zip(asked, _cdf(learned, rows, config, settings), rows.answers, strict=True):
            answers = np.asarray(lengths, dtype=np.float64)
            own = np.repeat(row[None], len(answers), axis=0)
            scores[i] = (scores_of(own, config.edges, answers) + scores_of(own, config.edges, answers + 1.0)) / 2.0
    return Control(np.concatenate(scores[len(usable[0]) :]), np.asarray([s[0] for s in scores]))


def _cdf(learned: Examples, asked: Examples, config: PredictorConfig, settings: BoostingSettings) -> Array:
    """P(length <= edge) for each row of ``asked``, shape ``[n, K + 1]``, by trees that learned from other rows."""
    prior = tuple(config.bins.shares(learned.all_lengths()).tolist())
    run = TrainingRun(config.model_copy(update={"prior": prior}), learned, asked, Path(), False, silent)
    return cdf_of(softmax(BoostingPredictor.fit(run, settings).logits(asked.views)))


def tree_settings(trained: Iterable[PredictorConfig]) -> BoostingSettings:
    """The settings of the first training that had trees; the default ones if none had."""
    for config in trained:
        found = {k: v for k, v in config.hyperparameters.items() if k in BoostingSettings.model_fields}
        if {"rounds", "leaves"} <= found.keys():
            return BoostingSettings.model_validate(found)
    return BoostingSettings()
