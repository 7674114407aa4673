"""How a key of a profile is declared: its meaning and unit stand with it, and the schema and the document come from
there."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Keys(BaseModel):
    """A group of keys. Nothing unknown is taken, nothing is NaN: a number that cannot be given is null."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def key(meaning: str, unit: str = "", default: Any = ..., **limits: Any) -> Any:
    """A key: what it means, its unit ("" for names and plain numbers), and its default (none: it must be given)."""
    return Field(default, description=meaning, json_schema_extra={"unit": unit} if unit else {}, **limits)


def share(meaning: str, default: Any = ...) -> Any:
    """A share of 0 to 1."""
    return key(meaning, "share 0..1", default, ge=0.0, le=1.0)


def tokens(meaning: str, default: Any = ...) -> Any:
    """A number of tokens."""
    return key(meaning, "tokens", default, ge=0)


def maybe(meaning: str, unit: str = "", **limits: Any) -> Any:
    """A key that is null where it cannot be given."""
    return key(meaning, unit, None, **limits)
