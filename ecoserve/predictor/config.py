"""What a checkpoint says about itself, and the settings that training takes.

Rule: one definition per setting; its field gives the name in the checkpoint, the default and the help. A config is
checked as it is read: unknown keys, other formats and numbers that do not go together are refused.
"""

from __future__ import annotations

import math
from typing import Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ecoserve.lengths import MAX_LENGTH, ClosedBy
from ecoserve.predictor.bins import Bins

#: Raised when a reader of an older format could misread a newer checkpoint.
FORMAT_VERSION: Final = 2
FORMAT: Final = "ecoserve-length-predictor"

Backend = Literal["encoder", "lightgbm", "stacked", "adapted", "ensemble"]
#: Those that are trained; an adapted one is made from one of them, an ensemble from several.
BACKENDS: tuple[Backend, ...] = ("stacked", "encoder", "lightgbm")


class PredictorConfig(BaseModel):
    """``config.json`` of a predictor's checkpoint."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    format: Literal["ecoserve-length-predictor"] = FORMAT
    format_version: Literal[2] = FORMAT_VERSION
    backend: Backend
    #: K + 1 bin edges in tokens; bin k is (edges[k], edges[k + 1]]
    edges: tuple[int, ...]
    closed_by: ClosedBy = "support"
    #: share of the training lengths in each bin: what is predicted when nothing is known
    prior: tuple[float, ...]
    #: the model whose answers' lengths were learned, if the trace or the user said so
    served_model: str | None = None
    trace_name: str
    trace_format: str
    trace_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    #: where the lengths came from: a field, a tokenizer, the trace's own counts, or a stated factor
    length_source: str
    #: rows learned from, and rows kept apart for choosing and calibrating
    rows_trained: int = Field(ge=0)
    rows_held_out: int = Field(ge=0)
    #: names of the request's parameters that were learned from (:class:`~ecoserve.data.parameters.RequestParameters`)
    parameters: tuple[Literal["max_tokens", "stop", "tools", "thinking", "response_format"], ...] = ()
    seed: int
    #: fingerprint of everything that decides the outcome of the training
    run: str = ""
    hyperparameters: dict[str, Any] = {}
    versions: dict[str, str] = {}
    #: what the backend needs besides its weights
    model: dict[str, Any] = {}
    #: part of the data ("held_out", "dev") -> DESIGN's evaluation keys
    metrics: dict[str, dict[str, float]] = {}
    training_seconds: float = 0.0

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if len(self.edges) < 3 or any(b <= a for a, b in zip(self.edges, self.edges[1:], strict=False)):
            raise ValueError("edges must ascend and make at least two bins")
        if self.edges[0] < 0 or self.edges[-1] > MAX_LENGTH:
            raise ValueError(f"edges must lie within 0 and {MAX_LENGTH} tokens")
        if len(self.prior) != len(self.edges) - 1:
            raise ValueError(f"{len(self.edges) - 1} bins but {len(self.prior)} prior shares")
        if any(p < 0 for p in self.prior) or not math.isclose(math.fsum(self.prior), 1.0, abs_tol=1e-6):
            raise ValueError("prior shares must add up to 1")
        return self

    @property
    def bins(self) -> Bins:
        """The bins of :attr:`edges`."""
        return Bins(self.edges, self.closed_by)


class EncoderSettings(BaseModel):
    """Hyperparameters of the encoder backend."""

    model_config = ConfigDict(extra="forbid", frozen=True)

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


class BoostingSettings(BaseModel):
    """Hyperparameters of the LightGBM backend."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rounds: int = Field(default=60, ge=1, le=5000, description="boosting rounds; each grows one tree per bin")
    learning_rate: float = Field(default=0.1, gt=0, le=1, description="shrinkage of each round")
    leaves: int = Field(default=7, ge=2, le=4096, description="leaves per tree")
    min_rows_in_leaf: int = Field(default=50, ge=1, description="rows in a leaf at least")
    terms: int = Field(default=20_000, ge=10, description="words and pairs of words kept")
    ridge: float = Field(default=1.0, gt=0, description="L2 penalty of the linear model on words")
    patience: int = Field(default=10, ge=1, description="rounds without a better held-out loss before it stops")


class StackedSettings(BaseModel):
    """Hyperparameters of the stacked backend: those of its two parts."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    encoder: EncoderSettings = EncoderSettings()
    lightgbm: BoostingSettings = BoostingSettings()


Settings = EncoderSettings | BoostingSettings | StackedSettings
#: The settings that each backend takes.
SETTINGS: Final[dict[Backend, type[EncoderSettings] | type[BoostingSettings] | type[StackedSettings]]] = {
    "encoder": EncoderSettings,
    "lightgbm": BoostingSettings,
    "stacked": StackedSettings,
}
