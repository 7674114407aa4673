"""Everything that decides the outcome of a training run, and its fingerprint.

Rule: two runs with one fingerprint end with the same predictor; an interrupted run goes on only under its own.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from platform import python_version
from typing import Any

from ecoserve.data import Trace
from ecoserve.errors import ConfigError
from ecoserve.predictor import checkpoint
from ecoserve.predictor.bins import BinSettings
from ecoserve.predictor.config import Backend, EncoderSettings, Settings, StackedSettings

_VERSIONED: dict[Backend, tuple[str, ...]] = {
    "encoder": ("torch", "transformers", "tokenizers"),
    "lightgbm": ("lightgbm", "scikit-learn"),
    "stacked": ("torch", "transformers", "tokenizers", "lightgbm", "scikit-learn"),
}


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that decides the outcome of a training run."""

    trace: Trace
    backend: Backend
    settings: Settings
    bins: BinSettings
    served_model: str | None
    max_rows: int | None
    held_out: float
    seed: int
    #: the checkpoint that the encoder's body comes from, as its config says
    start: dict[str, Any] | None

    @classmethod
    def of(
        cls,
        trace: Trace,
        settings: Settings,
        bins: BinSettings,
        *,
        backend: Backend,
        served_model: str | None,
        max_rows: int | None,
        held_out: float,
        seed: int,
    ) -> Plan:
        """The plan of a training.

        Raises:
            CheckpointError: if the encoder shall start from a checkpoint that is missing or damaged.
            ConfigError: if that checkpoint has no encoder.
        """
        model = served_model or _model_of(trace)
        return cls(trace, backend, settings, bins, model, max_rows, held_out, seed, _start_of(settings))

    @property
    def hyperparameters(self) -> dict[str, Any]:
        rows = {"max_rows": self.max_rows, "held_out": self.held_out}
        parts = [self.settings]
        if isinstance(self.settings, StackedSettings):
            parts = [self.settings.encoder, self.settings.lightgbm]
        content = {**self.bins.model_dump(mode="json"), **rows}
        for part in parts:
            content |= part.model_dump(mode="json")
        # A checkpoint travels; paths of the machine it was made on do not.
        if self.start:
            content["start_from"] = self.start["sha256"]
        if "encoder" in content and Path(content["encoder"]).expanduser().is_dir():
            content["encoder"] = Path(content["encoder"]).expanduser().resolve().name
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


def _start_of(settings: Settings) -> dict[str, Any] | None:
    """What a config says of the checkpoint that the encoder starts from; it is checked here, before any work."""
    encoder = settings.encoder if isinstance(settings, StackedSettings) else settings
    if not isinstance(encoder, EncoderSettings) or encoder.start_from is None:
        return None
    folder = checkpoint.locate(encoder.start_from)
    config, _ = checkpoint.read(folder)
    if "encoder" not in config.model:
        raise ConfigError(
            f"is a {config.backend} predictor's checkpoint, without an encoder to start from", where=encoder.start_from
        )
    about = config.model_dump(mode="json", include={"served_model", "trace_name", "trace_sha256", "rows_trained"})
    return {"sha256": json.loads((folder / checkpoint.CONFIG).read_text(encoding="utf-8"))["sha256"], **about}


def _model_of(trace: Trace) -> str | None:
    """The model that gave all answers of the trace, if it was one."""
    names = {r.model for r in trace.records}
    return names.pop() if len(names) == 1 else None
