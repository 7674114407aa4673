"""A control for calibration: how the held-out rows differ from all ``train`` rows, as trees see them.

A thousand held-out rows happen to be easier or harder than traffic, which is most of what makes the coverage of
checkpoints differ. Cheap trees rank rows by ease nearly as well as the predictor. They are trained on two thirds of the
``train`` rows at a time and predict the third (groups of like prompts stay together), so every ``train`` row gets an
honest P(length < its length). Held-out responses are weighed so that, by the trees, they lie where the *served*
responses of all ``train`` rows do (post-stratification, e.g. Cochran, "Sampling Techniques", 1977, ch. 5A). Other
sampled responses come from other temperatures, and the same weights move them to the served one.
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
from ecoserve.predictor.calibration import cdf_of, softmax
from ecoserve.predictor.config import PredictorConfig
from ecoserve.predictor.conformal import scores_of
from ecoserve.predictor.examples import Examples
from ecoserve.predictor.runtime import Progress, silent

Array = npt.NDArray[np.float64]
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
        """The stratum of each held-out answer, shape ``[a]``, and each stratum's share of served answers, ``[S]``.

        Args:
            rows: how many rows were held out.
        """
        count = int(np.clip(rows // STRATUM_ROWS, 1, MOST_STRATA))
        cuts = np.quantile(self.served, np.arange(1, count) / count)
        shares = np.bincount(np.searchsorted(cuts, self.served), minlength=count) / len(self.served)
        return np.searchsorted(cuts, self.held), shares


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

    Args:
        fit: the ``train`` rows that were learned from.
        held: those that were held out; their responses, the served one first, are in :attr:`Control.held`.
        config: of the predictor that is to be calibrated: its bins, and what it reads of requests.
        settings: of the trees.
        seed: of the parts.
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
