"""The length predictor: what every backend shares, and the registry of backends.

A backend is one class and one line in :data:`BACKENDS`. It learns (:meth:`~LengthPredictor.fit`), turns requests into
logits over the length bins (``_logits``), and writes and reads its files (``_write``, ``_load``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Final, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from ecoserve.errors import CheckpointError, ConfigError
from ecoserve.lengths import LengthDistribution
from ecoserve.predictor import checkpoint, hub
from ecoserve.predictor.calibration import Calibration, cdf_of, softmax
from ecoserve.predictor.config import BackendSettings, PredictorConfig
from ecoserve.predictor.examples import Examples
from ecoserve.predictor.runtime import Progress
from ecoserve.predictor.text import Request, RequestView, read_request

#: Name -> "module:class". The module is imported when asked for, and imports torch or LightGBM only to compute.
BACKENDS: Final[dict[str, str]] = {
    "stacked": "ecoserve.predictor.stacking:StackedPredictor",
    "encoder": "ecoserve.predictor.encoder.predictor:EncoderPredictor",
    "lightgbm": "ecoserve.predictor.boosting.predictor:BoostingPredictor",
    "ensemble": "ecoserve.predictor.ensemble:EnsemblePredictor",
    "adapted": "ecoserve.predictor.adaptation:AdaptedPredictor",
    "linear": "ecoserve.predictor.linear:LinearPredictor",
}
DEFAULT_BACKEND: Final = "stacked"


@runtime_checkable
class Predicts(Protocol):
    """Anything that predicts: a trained predictor, a baseline, a test's stand-in."""

    def predict(self, requests: Sequence[Request], /) -> list[LengthDistribution]: ...


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """What a backend's :meth:`LengthPredictor.fit` is given."""

    #: bins, prior, seed, provenance; what the backend needs to load again goes into its ``model``
    config: PredictorConfig
    #: rows to learn from, and rows to choose an epoch, a round or weights on
    fit: Examples
    held: Examples
    #: the run's own folder for the state that an interrupted training goes on from, if ``resume``
    work: Path
    resume: bool
    progress: Progress


class LengthPredictor(ABC):
    """Predicts how many tokens responses will have: from several threads at once, without network or files."""

    #: the backend's hyperparameters; None: it is made from trained predictors, not trained itself
    Settings: ClassVar[type[BackendSettings] | None] = None
    #: distributions whose versions the checkpoint records
    packages: ClassVar[tuple[str, ...]] = ()
    #: whether an interrupted training can go on where it was
    resumable: ClassVar[bool] = False

    def __init__(self, config: PredictorConfig, calibration: Calibration) -> None:
        self.config = config
        self.calibration = calibration

    @property
    def backend(self) -> str:
        return self.config.backend

    @classmethod
    def fit(cls, run: TrainingRun, settings: Any) -> LengthPredictor:
        """Train on ``run`` with an instance of :attr:`Settings`; the result is not calibrated yet."""
        raise NotImplementedError(f"{cls.__name__} is not trained")

    @abstractmethod
    def _logits(self, views: Sequence[RequestView]) -> npt.NDArray[np.float64]:
        """Logits of ``n >= 1`` requests over the bins, shape ``[n, K]``."""

    @abstractmethod
    def _write(self, folder: Path) -> None:
        """Write the backend's files (weights, tokenizer) into an empty folder."""

    @classmethod
    @abstractmethod
    def _load(cls, folder: Path, config: PredictorConfig, calibration: Calibration) -> LengthPredictor:
        """Read what :meth:`_write` wrote; the files' hashes have been checked."""

    def predict(self, requests: Sequence[Request], /) -> list[LengthDistribution]:
        """The length distributions of the responses to ``n`` requests, in their order."""
        if isinstance(requests, str):
            raise TypeError("predict takes a list of requests; for one prompt give [prompt]")
        bins, logits = self.config.bins, self.logits(self._views(requests))
        return [bins.distribution(row) for row in self.calibration.probabilities(logits)]

    def upper_bounds(self, requests: Sequence[Request], level: float = 0.9) -> list[int]:
        """A length (tokens) per request that at least a share of ``level`` of responses stays within.

        :mod:`ecoserve.predictor.conformal` states the guarantee. A level without a bound is a ConfigError.
        """
        views = self._views(requests)
        if (bounds := self.calibration.bounds) is None:
            what = "has no bounds: too few rows were held out in its training"
            raise ConfigError(what, where="predictor", fix="train it with more rows")
        return bounds.upper(cdf_of(softmax(self.logits(views))), self.config.edges, views, level)

    def logits(self, views: Sequence[RequestView]) -> npt.NDArray[np.float64]:
        """Uncalibrated logits over the bins, shape ``[n, K]``."""
        return self._logits(views) if views else np.zeros((0, len(self.config.prior)))

    def _views(self, requests: Sequence[Request]) -> list[RequestView]:
        return [read_request(r, self.config.parameters) for r in requests]

    def save_pretrained(self, directory: str | Path) -> Path:
        """Write the checkpoint into ``directory`` (:func:`ecoserve.predictor.checkpoint.save`)."""
        return checkpoint.save(Path(directory), self.config, self.calibration, self._write)

    @classmethod
    def from_pretrained(cls, source: str | Path) -> LengthPredictor:
        """Load a checkpoint from a folder or, for an id ``owner/name`` that is no folder here, from the hub.

        A checkpoint that is missing, damaged, edited, or of another version is a CheckpointError.
        """
        folder = hub.locate(source)
        config, calibration = checkpoint.read(folder)
        if config.backend not in BACKENDS:
            what = f"is of the backend {config.backend!r}, which this ecoserve does not have"
            raise CheckpointError(what, where=str(folder), fix=f"backends here: {', '.join(BACKENDS)}")
        with checkpoint.damage_of(folder):
            return backend_class(config.backend)._load(folder, config, calibration)

    def push_to_hub(self, repo_id: str, *, private: bool = False) -> str:
        """Publish it as the model repository ``owner/name`` (:func:`ecoserve.predictor.hub.push`); returns its URL."""
        with TemporaryDirectory(prefix="ecoserve-push-") as folder:
            return hub.push(self.save_pretrained(Path(folder) / "checkpoint"), repo_id, private=private)[0]


def backend_class(name: str) -> type[LengthPredictor]:
    """The class of a backend in :data:`BACKENDS`, imported now."""
    module, _, attribute = BACKENDS[name].partition(":")
    found: type[LengthPredictor] = getattr(import_module(module), attribute)
    return found


def trained_backends() -> dict[str, type[BackendSettings]]:
    """Backends that are trained from a trace, and their settings."""
    classes = {name: backend_class(name).Settings for name in BACKENDS}
    return {name: settings for name, settings in classes.items() if settings is not None}


def settings_class(backend: str) -> type[BackendSettings]:
    """The settings of a backend that is trained from a trace; another backend is a ConfigError."""
    known = trained_backends()
    if backend not in known:
        raise ConfigError(f"no backend {backend!r}", where="--backend", fix=f"one of {', '.join(known)}")
    return known[backend]


load_predictor = LengthPredictor.from_pretrained
