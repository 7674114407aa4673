"""Are the held-out rows like all the others? Trees that have not seen them tell.

Rule: a thousand held-out rows happen to be easier or harder than traffic is, and calibration on them inherits that: it
is most of what makes one checkpoint cover more than another. How easy a row is, cheap trees know nearly as well as the
predictor: trees are trained on two thirds of the ``train`` rows at a time and asked about the third (groups of like
prompts stay together), so every ``train`` row gets an honest P(length < its length). Held-out answers are
then weighed so
that, by the trees, they lie where the *served* answers of all ``train`` rows do (post-stratification, here a control
variate: e.g. Cochran, "Sampling Techniques", 1977, ch. 5A). Other sampled answers come from other temperatures, and
are moved to the served one by the same weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from ecoserve.data import Record
from ecoserve.data.splitting import record_groups
from ecoserve.predictor.calibration import Calibration, cdf_of, softmax
from ecoserve.predictor.config import BoostingSettings, PredictorConfig
from ecoserve.predictor.conformal import scores_of
from ecoserve.predictor.examples import Examples
from ecoserve.predictor.progress import Progress, silent

Array = npt.NDArray[np.float64]
#: Parts of the ``train`` rows; each is asked of trees that learned from the others.
FOLDS: Final = 3
#: With fewer held-out rows strata would be guesses; with more rows there is nothing left to gain.
HELD_OUT_ROWS: Final = (200, 5000)
#: Held-out rows for each stratum, and strata at most.
STRATUM_ROWS: Final = 50
MOST_STRATA: Final = 20


@dataclass(frozen=True, slots=True)
class Control:
    """Where answers lie in what trees, which had not seen them, said: P(length < length) plus half of
    P(length = length).
    """

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
    """Train the trees and ask them.

    Args:
        fit: the ``train`` rows that were learned from.
        held: those that were held out; their answers, the served one first, are in :attr:`Control.held`.
        config: of the predictor that is to be calibrated: its bins, and what it reads of requests.
        settings: of the trees.
        seed: of the parts.
        progress: told about each part.

    Returns:
        None where it would not pay, by the number of held-out rows.
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
        for i, row, lengths in zip(asked, _told(learned, rows, config, settings, seed), rows.answers, strict=True):
            answers = np.asarray(lengths, dtype=np.float64)
            own = np.repeat(row[None], len(answers), axis=0)
            scores[i] = (scores_of(own, config.edges, answers) + scores_of(own, config.edges, answers + 1.0)) / 2.0
    return Control(np.concatenate(scores[len(usable[0]) :]), np.asarray([s[0] for s in scores]))


def _told(learned: Examples, asked: Examples, config: PredictorConfig, settings: BoostingSettings, seed: int) -> Array:
    """P(length <= edge) for each row of ``asked``, shape ``[n, K + 1]``, by trees that learned from the
    other rows.
    """
    from ecoserve.predictor.boosting.predictor import BoostingPredictor
    from ecoserve.predictor.boosting.training import train_boosting

    booster, words = train_boosting(learned, asked, config.bins, settings, seed=seed, progress=silent)
    prior = tuple(config.bins.shares(learned.all_lengths()).tolist())
    trees = BoostingPredictor(config.model_copy(update={"prior": prior}), Calibration(), booster, words)
    return cdf_of(softmax(trees.logits(asked.views)))
