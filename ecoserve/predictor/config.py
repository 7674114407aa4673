"""``config.json`` of a checkpoint, and the base class of the backends' settings."""

from __future__ import annotations

from typing import Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ecoserve.errors import PredictionError
from ecoserve.lengths import ClosedBy, LengthDistribution
from ecoserve.predictor.bins import Bins

#: Raised when a reader of an older format could misread a newer checkpoint.
FORMAT_VERSION: Final = 2
FORMAT: Final = "ecoserve-length-predictor"


class PredictorConfig(BaseModel):
    """What a checkpoint says about itself; unknown keys and numbers that do not fit together are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    format: Literal["ecoserve-length-predictor"] = FORMAT
    format_version: Literal[2] = FORMAT_VERSION
    #: a name in :data:`ecoserve.predictor.base.BACKENDS`
    backend: str
    #: K + 1 bin edges in tokens; bin k is (edges[k], edges[k + 1]]
    edges: tuple[int, ...]
    closed_by: ClosedBy = "support"
    #: share of the training lengths in each bin
    prior: tuple[float, ...]
    #: the model whose response lengths were learned, if the trace or the user named it
    served_model: str | None = None
    trace_name: str
    trace_format: str
    trace_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    #: where the lengths came from: a field, a tokenizer, the trace's own counts, or a stated factor
    length_source: str
    #: rows learned from, and rows held out for choosing and calibrating
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
    #: part of the data ("held_out", "dev") -> keys of :mod:`ecoserve.predictor.evaluation`
    metrics: dict[str, dict[str, float]] = {}
    training_seconds: float = 0.0

    @model_validator(mode="after")
    def _agree(self) -> Self:
        try:
            LengthDistribution(self.edges, self.prior, self.closed_by)
        except PredictionError as error:
            raise ValueError(f"edges and prior are no distribution: {error}") from error
        return self

    @property
    def bins(self) -> Bins:
        return Bins(self.edges, self.closed_by)


class BackendSettings(BaseModel):
    """A backend's hyperparameters: keys of a recipe and options of ``train-predictor``.

    A field that is itself settings is a section (one level deep): its fields are options, the section is none.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def parts(cls) -> dict[str, type[BackendSettings]]:
        """The sections by their keys, and under "" the settings themselves."""
        kinds = {name: field.annotation for name, field in cls.model_fields.items()}
        sections = {n: k for n, k in kinds.items() if isinstance(k, type) and issubclass(k, BackendSettings)}
        return {"": cls, **sections}

    @classmethod
    def options(cls) -> list[str]:
        """Names of the options that are no section's."""
        return [name for name in cls.model_fields if name not in cls.parts()]

    @classmethod
    def places(cls) -> dict[str, str]:
        """Every option's name, and the key of the section that it is in, or ""."""
        return {name: section for section, kind in cls.parts().items() for name in kind.options()}

    def recorded(self) -> dict[str, Any]:
        """The settings by option as a checkpoint records them: without paths of this machine."""
        content = self.model_dump(mode="json")
        for name, value in self:
            if isinstance(value, BackendSettings):
                del content[name]
                content |= value.recorded()
        return content
