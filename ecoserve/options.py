"""Settings of a pydantic model, read from options, environment variables or a config."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ValidationError

from ecoserve.deprecations import SETTINGS, renamed
from ecoserve.errors import ConfigError

Model = TypeVar("Model", bound=BaseModel)

PREFIX: Final = "ECOSERVE_"
_UNKNOWN: Final = "there is no such setting"


def flag(name: str, model: type[BaseModel] | None = None) -> str:
    """The command line's name of a field; a field can state another one as ``json_schema_extra={"flag": ...}``."""
    field = model.model_fields.get(name) if model is not None else None
    extra = field.json_schema_extra if field is not None else None
    return "--" + str(extra["flag"] if isinstance(extra, dict) and "flag" in extra else name).replace("_", "-")


def variable(name: str) -> str:
    return PREFIX + name.upper()


def checked(model: type[Model], values: Any, where: str | Callable[[str], str] | None = None) -> Model:
    """Settings from what a user gave, by the fields' names or old ones (:data:`~ecoserve.deprecations.SETTINGS`).

    ``where`` is the name of the whole, or a function from a field ("" for the whole) to what the user wrote; None:
    fields are options of the command line. The first value that does not fit is a ConfigError, with what is allowed.
    """
    spelled = where if callable(where) else lambda name: where or (flag(name, model) if name else model.__name__)
    if not isinstance(values, Mapping):
        raise ConfigError(f"is no object of settings: {str(values)[:40]!r}", where=spelled(""))
    fields = model.model_fields
    old = {name: new for name, new in SETTINGS.items() if name not in fields and (new is None or new in fields)}
    try:
        return model.model_validate(renamed(values, old, spelled("").rstrip(" .")))
    except ValidationError as error:
        place, what = problem(error)
        name, _, inner = place.partition(".")
        fix = f"one of {', '.join(fields)}" if what == _UNKNOWN and not inner else None
        inner = place if isinstance(where, str) else inner
        raise ConfigError(f"{inner}: {what}" if inner else what, where=spelled(name), fix=fix) from None


def problem(error: ValidationError) -> tuple[str, str]:
    """Where the first mistake is (``a.b``; "" for the whole), and what it is, in one line."""
    first = error.errors(include_url=False)[0]
    given, kind = first.get("input"), first["type"]
    what = " ".join(first["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ").split())[:300]
    if kind == "extra_forbidden":
        what = _UNKNOWN
    elif kind == "missing":
        what = "is missing"
    elif what.startswith("Input should be "):
        what = "must be " + what.removeprefix("Input should be ").partition(", unable to ")[0]
        what += f", not {str(given)[:40]!r}" if isinstance(given, int | float | str) else ""
    return ".".join(str(part) for part in first["loc"]), what


def from_environment(model: type[BaseModel], environment: Mapping[str, str]) -> dict[str, str]:
    """The values of a model's fields that the environment states."""
    names = [*model.model_fields, *(old for old, new in SETTINGS.items() if new in model.model_fields)]
    return {name: value for name in names if (value := environment.get(variable(name), ""))}


def to_environment(settings: BaseModel) -> dict[str, str]:
    """The variables that state what differs from the defaults."""
    values = settings.model_dump(exclude_defaults=True)
    return {variable(n): str(int(value) if isinstance(value, bool) else value) for n, value in values.items()}
