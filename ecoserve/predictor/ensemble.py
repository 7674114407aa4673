"""The ensemble: several trained predictors of the same rows, read together and calibrated as one.

Rule: its checkpoint's folder holds each member's whole checkpoint in a folder of its own (``member-1`` ...), and its
own config, weights and calibration beside them. The members' calibrations play no part: their logits are mixed
(:mod:`~ecoserve.predictor.mixing`), and the mix is calibrated. How it is made is said in
:mod:`~ecoserve.predictor.combining`.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar, Final

import numpy as np
import numpy.typing as npt

from ecoserve.predictor.base import LengthPredictor
from ecoserve.predictor.calibration import Calibration
from ecoserve.predictor.config import Backend, PredictorConfig
from ecoserve.predictor.mixing import mixed
from ecoserve.predictor.text import RequestView

#: In ``config.model``: each member's share, in the order of their folders.
WEIGHTS: Final = "weights"


class EnsemblePredictor(LengthPredictor):
    """Predictors of one config's bins, mixed.

    They are asked at the same time: a request costs what its members cost together, and takes as long as the slowest
    where enough cores are free.
    """

    backend: ClassVar[Backend] = "ensemble"

    def __init__(self, config: PredictorConfig, calibration: Calibration, members: Sequence[LengthPredictor]) -> None:
        super().__init__(config, calibration)
        self.members = tuple(members)
        self.weights = tuple(float(w) for w in config.model[WEIGHTS])
        if len(self.weights) != len(self.members) or min(self.weights) < 0.0 or abs(sum(self.weights) - 1.0) > 1e-6:
            raise ValueError(f"{WEIGHTS} {list(self.weights)} are no shares of {len(self.members)} members")
        if any(m.config.edges != config.edges for m in self.members):
            raise ValueError("the members have other length bins")
        # Its threads start when they are first needed, and end with the predictor.
        self._others = ThreadPoolExecutor(len(self.members), thread_name_prefix="ecoserve-ensemble")

    def _logits(self, views: Sequence[RequestView]) -> npt.NDArray[np.float64]:
        others = [self._others.submit(m.logits, views) for m in self.members[1:]]
        return mixed([self.members[0].logits(views), *(other.result() for other in others)], self.weights)

    def _write(self, folder: Path) -> None:
        for number, member in enumerate(self.members, 1):
            member.save_pretrained(_home(folder, number))

    @classmethod
    def _load(cls, folder: Path, config: PredictorConfig, calibration: Calibration) -> EnsemblePredictor:
        numbers = range(1, len(config.model[WEIGHTS]) + 1)
        return cls(config, calibration, [LengthPredictor.from_pretrained(_home(folder, n)) for n in numbers])


def _home(folder: Path, number: int) -> Path:
    return folder / f"member-{number}"
