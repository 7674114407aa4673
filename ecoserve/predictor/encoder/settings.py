"""Settings of the encoder backend."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from ecoserve.errors import ConfigError
from ecoserve.predictor import checkpoint, hub
from ecoserve.predictor.config import BackendSettings


class EncoderSettings(BackendSettings):
    """Hyperparameters of the encoder backend."""

    encoder: str = Field(
        default="sentence-transformers/all-MiniLM-L6-v2",
        description="pretrained encoder: a folder, or an id on the hub",
    )
    start_from: str | None = Field(
        default=None,
        description="checkpoint of an encoder trained on another trace, whose body is taken in place of the pretrained",
    )
    epochs: float = Field(default=3.0, gt=0, le=100, description="passes over the training rows")
    runs: int = Field(
        default=1, ge=1, le=20, description="trainings that differ in the order of the rows, whose weights are averaged"
    )
    batch_size: int = Field(default=32, ge=1, le=4096, description="rows per optimiser step")
    body_lr: float = Field(default=1e-4, gt=0, le=1, description="learning rate of the pretrained body")
    layer_decay: float = Field(
        default=1.0, gt=0, le=1, description="learning rate of each layer of the body, relative to the one above it"
    )
    head_lr: float = Field(default=1e-3, gt=0, le=1, description="learning rate of the new head")
    warmup: float = Field(default=0.06, ge=0, lt=1, description="share of the steps in which the learning rates rise")
    weight_decay: float = Field(default=0.01, ge=0, le=1, description="weight decay, not on biases and norms")
    smoothing: float = Field(
        default=1.0, ge=0, le=10, description="spread of each length over neighbouring bins, in bins"
    )
    ranking: float = Field(
        default=0.0, ge=0, le=100, description="weight of a pairwise ranking loss beside the cross-entropy"
    )
    max_length: int = Field(default=128, ge=8, le=8192, description="tokens read of a request")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto",
        description="of products in training; auto: bfloat16 where the hardware has it. Weights stay float32",
    )

    def start(self) -> dict[str, Any] | None:
        """What a config records of the checkpoint that the encoder starts from, which is checked here.

        Raises:
            CheckpointError: if it is missing or damaged.
            ConfigError: if it has no encoder.
        """
        if self.start_from is None:
            return None
        folder = hub.locate(self.start_from)
        config, _ = checkpoint.read(folder)
        if "encoder" not in config.model:
            what = f"is a {config.backend} predictor's checkpoint, without an encoder to start from"
            raise ConfigError(what, where=self.start_from)
        about = config.model_dump(mode="json", include={"served_model", "trace_name", "trace_sha256", "rows_trained"})
        return {"sha256": checkpoint.identity(folder), **about}

    def recorded(self) -> dict[str, Any]:
        """See :meth:`BackendSettings.recorded`: a checkpoint's hash, and the name of an encoder's folder."""
        content = super().recorded()
        if start := self.start():
            content["start_from"] = start["sha256"]
        if Path(self.encoder).expanduser().is_dir():
            content["encoder"] = Path(self.encoder).expanduser().resolve().name
        return content
