"""Recipes: everything that decides a training, in one YAML file, so that one command repeats it.

A recipe holds what ``ecoserve train-predictor`` takes as options; options on the command line win. ``first`` is a
recipe of its own, trained before: the encoder starts from its checkpoint. ``members`` are combined in an ensemble.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ecoserve.errors import ConfigError
from ecoserve.options import checked, flag, problem
from ecoserve.predictor.base import DEFAULT_BACKEND, settings_class, trained_backends
from ecoserve.predictor.bins import BinSettings
from ecoserve.predictor.config import BackendSettings

#: The setting that takes an earlier checkpoint, and the one that names the pretrained body it began with.
_START: Final = "start_from"
_BODY: Final = "encoder"
_LARGEST_BYTES: Final = 100_000


class Member(BaseModel):
    """One of an ensemble's trainings: what may differ between them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    backend: str = Field(default=DEFAULT_BACKEND, description=f"kind of predictor: {', '.join(trained_backends())}")
    settings: dict[str, Any] = Field(default={}, description="the backend's hyperparameters")
    first: Recipe | None = Field(default=None, description="trained before; the encoder starts from it")


class Recipe(Member):
    """One training. Its fields have the names of the command's options, with ``_`` for ``-``."""

    about: str = Field(default="", description="what it is for")
    trace: str | None = Field(default=None, description="a file, from the recipe's folder, or an id on the hub")
    format: str = Field(default="auto", description="format of the trace")
    length_field: str | None = Field(default=None, description="field with the lengths in tokens, as lengths[3]")
    sample_field: str | None = Field(default=None, description="field with lengths of several answers to each prompt")
    tokenizer: str | None = Field(default=None, description="served model's tokenizer, to count the answers' tokens")
    time_unit: Literal["s", "ms", "us", "ns"] | None = Field(
        default=None, description="unit of arrivals, where the trace does not state it"
    )
    strict: bool = Field(default=False, description="a unit or length that would be guessed is an error")
    served_model: str | None = Field(
        default=None, description="the model that gave the answers, if the trace does not name it"
    )
    bins: BinSettings = BinSettings()
    max_rows: int | None = Field(default=None, ge=1, description="train on at most this many rows, chosen at random")
    held_out: float = Field(
        default=0.1, gt=0, lt=0.9, description="share of the train rows held out to choose and calibrate on"
    )
    seed: int = Field(default=0, ge=0, description="seed of everything random")
    members: tuple[Member, ...] = Field(default=(), description="trained on the same rows, and combined in an ensemble")

    @model_validator(mode="after")
    def _complete(self) -> Self:
        known = trained_backends()
        if self.backend not in known:
            raise ValueError(f"backend {self.backend!r} is not trained, only {', '.join(known)}")
        if self.first is not None:
            for name in (self.backend, self.first.backend):
                if _START not in known[name].places():
                    raise ValueError(f"first gives an encoder to start from, and {name} has none")
        self.made_settings()
        if self.members:
            if len(self.members) == 1:
                raise ValueError("an ensemble has at least two members")
            if both := self.model_fields_set & Member.model_fields.keys():
                raise ValueError(f"{', '.join(sorted(both))} beside members: set it for each of them")
            self.of_each_member()
        return self

    def of_each_member(self) -> list[Recipe]:
        """The members' trainings, each with the rows, bins and seed that are the same for all."""
        shared = {n: getattr(self, n) for n in self.model_fields_set - {"about", "members"}}
        return [
            Recipe.model_validate({**shared, **{n: getattr(m, n) for n in m.model_fields_set}}) for m in self.members
        ]

    def made_settings(self) -> BackendSettings:
        return settings_class(self.backend).model_validate(self.settings)

    def with_options(self, options: Mapping[str, Any]) -> Recipe:
        """The same recipe with other values for some of its fields and hyperparameters, or a ConfigError."""
        content = {name: getattr(self, name) for name in self.model_fields_set}
        if self.members:
            of_one = {"backend", *(name for kind in trained_backends().values() for name in kind.places())}
            if other := next((n for n in options if n in of_one), None):
                what = "is of one predictor, and the recipe makes several"
                raise ConfigError(what, where=flag(other), fix="set it in the recipe, for a member")
            return _recipe_of(content | dict(options))
        backend = options.get("backend", self.backend)
        kind = settings_class(backend)
        # The recipe's hyperparameters are of its own backend.
        settings: dict[str, Any] = dict(self.settings) if backend == self.backend else {}
        content["backend"] = backend
        for name, value in options.items():
            if name == _BODY and self.first is not None:
                # The pretrained body is where the first stage begins.
                content["first"] = self.first.with_options({name: value})
            elif name in type(self).model_fields:
                content[name] = value
            elif name not in kind.places():
                raise ConfigError(f"is no option of the {backend} backend", where=flag(name), fix="leave it out")
            elif section := kind.places()[name]:
                checked(kind.parts()[section], {name: value})
                settings[section] = {**settings.get(section, {}), name: value}
            else:
                checked(kind, {name: value})
                settings[name] = value
        return _recipe_of({**content, "settings": settings})

    def started_from(self, checkpoint: Path) -> Recipe:
        """Without its first stage: the encoder starts from that stage's ``checkpoint``."""
        alone = Recipe.model_validate({n: getattr(self, n) for n in self.model_fields_set if n != "first"})
        return alone.with_options({_START: str(checkpoint)})


Member.model_rebuild()


def _recipe_of(content: dict[str, Any]) -> Recipe:
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        place, what = problem(error)
        raise ConfigError(what, where=flag(place.partition(".")[0] or "recipe")) from error


def read_recipe(path: str | Path) -> Recipe:
    """Read a recipe; the traces that it names by a file become paths from here. What does not fit is a ConfigError."""
    file = Path(path).expanduser()
    try:
        raw = file.read_bytes()
        if len(raw) > _LARGEST_BYTES:
            raise ConfigError(f"has {len(raw):,} bytes: it is no recipe", where=str(path))
        content = yaml.safe_load(raw.decode("utf-8"))
    except FileNotFoundError as error:
        raise ConfigError("no such recipe", where=str(path), fix="check the path") from error
    except OSError as error:
        raise ConfigError(f"cannot be read ({error.strerror or error})", where=str(path)) from error
    except (UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"is no YAML: {' '.join(str(error).split())[:200]}", where=str(path)) from error
    if not isinstance(content, dict):
        raise ConfigError("is no recipe: it has no keys", where=str(path), fix="see recipes/ for some")
    try:
        return Recipe.model_validate(_located(content, file.parent))
    except ValidationError as error:
        raise ConfigError(": ".join(filter(None, problem(error))), where=str(path)) from error


def _located(content: dict[str, Any], folder: Path) -> dict[str, Any]:
    found = dict(content)
    trace = found.get("trace")
    if isinstance(trace, str) and (folder / Path(trace).expanduser()).exists():
        found["trace"] = str(folder / Path(trace).expanduser())
    if isinstance(found.get("first"), dict):
        found["first"] = _located(found["first"], folder)
    if isinstance(found.get("members"), list):
        found["members"] = [_located(m, folder) if isinstance(m, dict) else m for m in found["members"]]
    return found
