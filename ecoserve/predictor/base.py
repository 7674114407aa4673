"""The length predictor: what every backend shares.

Rule: a backend turns requests into logits over the length bins, and reads and writes its weights. Everything else (how
a request is read, calibration, distributions, the checkpoint's common files) is here and the same for all.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from ecoserve.errors import ConfigError
from ecoserve.lengths import LengthDistribution
from ecoserve.predictor import checkpoint
from ecoserve.predictor.calibration import Calibration, cdf_of, softmax
from ecoserve.predictor.config import Backend, PredictorConfig
from ecoserve.predictor.text import Request, RequestView, read_request

#: Where each backend's class lives. They are imported when asked for: torch and LightGBM take their time.
_CLASSES: dict[Backend, tuple[str, str]] = {
    "encoder": ("ecoserve.predictor.encoder.predictor", "EncoderPredictor"),
    "lightgbm": ("ecoserve.predictor.boosting.predictor", "BoostingPredictor"),
    "stacked": ("ecoserve.predictor.stacking", "StackedPredictor"),
    "ensemble": ("ecoserve.predictor.ensemble", "EnsemblePredictor"),
    "adapted": ("ecoserve.predictor.adaptation_predictor", "AdaptedPredictor"),
}


@runtime_checkable
class Predicts(Protocol):
    """Anything that predicts: a trained predictor, a baseline, a test's stand-in."""

    def predict(self, requests: Sequence[Request], /) -> list[LengthDistribution]:
        """One length distribution per request."""
        ...


class LengthPredictor(ABC):
    """Predicts how many tokens the answer to a request will have.

    Attributes:
        config: what it was trained on and how (:class:`~ecoserve.predictor.config.PredictorConfig`).
        calibration: how its logits become probabilities.

    Safe to use from several threads at once. After loading it needs no network and no file.
    """

    backend: ClassVar[Backend]

    def __init__(self, config: PredictorConfig, calibration: Calibration) -> None:
        self.config = config
        self.calibration = calibration

    # -- predicting ------------------------------------------------------------------------------

    def predict(self, requests: Sequence[Request], /) -> list[LengthDistribution]:
        """Predict the length distribution of each request's answer.

        Args:
            requests: ``n`` prompts, or ``n`` lists of chat messages (:class:`~ecoserve.data.Message`), or a mixture;
                with parameters as :class:`~ecoserve.predictor.text.ChatRequest`.

        Returns:
            ``n`` distributions over :attr:`config`'s bins, in the order of the requests.
        """
        if isinstance(requests, str):
            raise TypeError("predict takes a list of requests; for one prompt give [prompt]")
        views = [read_request(r, self.config.parameters) for r in requests]
        edges, closed_by = self.config.edges, self.config.closed_by
        return [
            LengthDistribution.from_weights(edges, row, closed_by)
            for row in self.calibration.probabilities(self.logits(views))
        ]

    def upper_bounds(self, requests: Sequence[Request], level: float = 0.9) -> list[int]:
        """A length (tokens) per request that its answer stays within, for a share of at least ``level`` of answers.

        The guarantee, which needs requests and answers like those it was trained on, is stated in
        :mod:`ecoserve.predictor.conformal`. Against ``quantile(level)`` it buys that guarantee with a little scatter.

        Raises:
            ConfigError: if the predictor has no bound at this level.
        """
        views = [read_request(r, self.config.parameters) for r in requests]
        if (bounds := self.calibration.bounds) is None:
            what = "has no bounds: too few rows were held out in its training"
            raise ConfigError(what, where="predictor", fix="train it with more rows")
        return bounds.upper(cdf_of(softmax(self.logits(views))), self.config.edges, views, level)

    def logits(self, views: Sequence[RequestView]) -> npt.NDArray[np.float64]:
        """Uncalibrated logits over the bins, shape ``[n, K]``."""
        if not views:
            return np.zeros((0, len(self.config.prior)))
        return self._logits(views)

    @abstractmethod
    def _logits(self, views: Sequence[RequestView]) -> npt.NDArray[np.float64]:
        """Logits of at least one request."""

    # -- checkpoints -----------------------------------------------------------------------------

    def save_pretrained(self, directory: str | Path) -> Path:
        """Write the checkpoint into ``directory``, which appears, or changes, only when everything is written.

        Raises:
            CheckpointError: if ``directory`` holds something that is not a checkpoint of ours.
            RunError: if it cannot be written.
        """
        return checkpoint.save(self, Path(directory))

    @classmethod
    def from_pretrained(cls, source: str | Path) -> LengthPredictor:
        """Load a checkpoint from a folder or, for an id ``owner/name`` that is no folder here, from the hub.

        Raises:
            CheckpointError: if it is missing, damaged, edited, or of another version.
        """
        folder = checkpoint.locate(source)
        config, calibration = checkpoint.read(folder)
        backend = backend_class(config.backend)
        with checkpoint.damage_of(folder):
            return backend._load(folder, config, calibration)

    def push_to_hub(self, repo_id: str, *, private: bool = False) -> str:
        """Publish it as the model repository ``owner/name`` on the hub (:func:`ecoserve.predictor.hub.push`).

        Returns:
            the repository's address.
        """
        from ecoserve.predictor.hub import push

        with TemporaryDirectory(prefix="ecoserve-push-") as folder:
            return push(self.save_pretrained(Path(folder) / "checkpoint"), repo_id, private=private)[0]

    @abstractmethod
    def _write(self, folder: Path) -> None:
        """Write the backend's files (weights, tokenizer) into an empty folder."""

    @classmethod
    @abstractmethod
    def _load(cls, folder: Path, config: PredictorConfig, calibration: Calibration) -> LengthPredictor:
        """Read what :meth:`_write` wrote; the files' hashes have been checked."""


def backend_class(backend: Backend) -> type[LengthPredictor]:
    """The class of a backend, imported now."""
    module, name = _CLASSES[backend]
    found: type[LengthPredictor] = getattr(import_module(module), name)
    return found


def load_predictor(dir_or_hub_id: str | Path) -> LengthPredictor:
    """Load a predictor's checkpoint: :meth:`LengthPredictor.from_pretrained`."""
    return LengthPredictor.from_pretrained(dir_or_hub_id)
