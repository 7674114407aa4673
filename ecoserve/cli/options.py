"""Options of the command line made from the fields of a pydantic model (:mod:`ecoserve.options`)."""

from __future__ import annotations

import functools
import inspect
import json
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Literal, TypeVar, Union, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from rich.markup import escape

from ecoserve.errors import ConfigError
from ecoserve.options import Model, checked, flag

Command = TypeVar("Command", bound=Callable[..., Any])

_METAVARS: Final[dict[Any, str]] = {int: "N", float: "X", Path: "PATH", dict: "JSON", tuple: "TEXT"}


def takes(
    model: type[BaseModel], names: str, *, panel: str | None = None, defaults: Mapping[str, Any] | None = None
) -> Callable[[Command], Command]:
    """A decorator that gives a command an option for each field in ``names``, a list in one text.

    The command gets what the user has typed as keyword arguments by the fields' names, to be checked by
    :func:`ecoserve.options.checked`. ``defaults`` are the command's own, where they are not the model's. In the help
    these options come before those that the command has behind ``*``.
    """
    fields = {name: model.model_fields[name] for name in names.split()}

    def decorate(command: Command) -> Command:
        added = [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=inspect.Parameter.empty if field.is_required() else None,
                annotation=_option(model, name, field, panel, (defaults or {}).get(name, field.default)),
            )
            for name, field in fields.items()
        ]
        own = inspect.signature(command, eval_str=True)
        parameters = [p for p in own.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        at = sum(p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD for p in parameters)

        @functools.wraps(command)
        def run(**values: Any) -> Any:
            typed = {n: _parsed(fields[n], v, flag(n, model)) for n in fields if (v := values.pop(n)) is not None}
            return command(**values, **typed)

        run.__signature__ = own.replace(parameters=[*parameters[:at], *added, *parameters[at:]])  # type: ignore[attr-defined]
        return run  # type: ignore[return-value]

    return decorate


def taken(model: type[Model], given: dict[str, Any], **own: Any) -> Model:
    """The settings of ``model`` among what was typed, and ``own``, checked; they are removed from ``given``."""
    return checked(model, {**{n: given.pop(n) for n in list(given) if n in model.model_fields}, **own})


def _kind(field: FieldInfo) -> Any:
    annotation: Any = field.annotation
    if get_origin(annotation) in (Union, UnionType):
        (annotation,) = (part for part in get_args(annotation) if part is not NoneType)
    return annotation


def _option(model: type[BaseModel], name: str, field: FieldInfo, panel: str | None, default: Any) -> Any:
    kind, spelled = _kind(field), flag(name, model)
    choices = get_args(kind) if get_origin(kind) is Literal else ()
    unit = "SECONDS" if name.endswith("_s") else "MS" if name.endswith("_ms") else None
    metavar = unit or _METAVARS.get(get_origin(kind) or kind, "TEXT")
    if choices:
        listed = "|".join(map(str, choices))
        # Long lists would leave no room for the options' names; they go into the text.
        metavar = listed if len(listed) <= 16 else "NAME"
    extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    first, blank, rest = (field.description or "").removesuffix(".").partition(" ")
    first = first.capitalize() if first.isalpha() and first.islower() else first
    among = f": {', '.join(map(str, choices))}" if metavar == "NAME" and choices else ""
    info: dict[str, Any] = {
        # Escaped: help is markup, in which a bracket may begin a tag.
        "help": escape(f"{first}{blank}{rest}{_upper_bound(field)}{among}.{_shown(default)}"),
        "rich_help_panel": panel,
        "show_default": False,
    }
    declared = [spelled, *([str(extra["short"])] if "short" in extra else [])]
    if get_origin(kind) is list:
        return Annotated[list[str] | None, typer.Option(*declared, metavar=str(extra.get("metavar", metavar)), **info)]
    if kind is bool:
        decl = spelled if default is False else f"{spelled}/--no-{spelled[2:]}"
        return Annotated[bool | None, typer.Option(decl, **info)]
    return Annotated[str | None, typer.Option(*declared, metavar=str(extra.get("metavar", metavar)), **info)]


def _shown(default: Any) -> str:
    if isinstance(default, bool) or default in (None, "", ()) or not isinstance(default, int | float | str | Path):
        return ""
    return f" [default: {default:,.10g}]" if isinstance(default, float) else f" [default: {default}]"


def _upper_bound(field: FieldInfo) -> str:
    """The upper bound in words; lower ones are mostly a matter of course, and errors name both."""
    for part in field.metadata:
        if (most := getattr(part, "le", getattr(part, "lt", None))) is not None:
            return f" ({'at most' if hasattr(part, 'le') else 'below'} {most:,.10g})"
    return ""


def _parsed(field: FieldInfo, value: Any, spelled: str) -> Any:
    kind = get_origin(_kind(field))
    try:
        if kind is dict:
            return json.loads(value)
        return tuple(shlex.split(value)) if kind is tuple else value
    except ValueError as error:
        raise ConfigError(f"is not {'JSON' if kind is dict else 'one text'} ({error})", where=spelled) from error
