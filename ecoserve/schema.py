"""How keys of result files (``summary.json``, ``profile.json``) are declared.

A key's meaning, unit and direction stand with its field; JSON Schema, documents and comparisons are made from them.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Better = Literal["lower", "higher"]


class Keys(BaseModel):
    """A closed group of keys: unknown ones are refused, and so is NaN; a number that cannot be given is null."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def key(meaning: str, unit: str = "", default: Any = ..., *, better: Better | None = None, **limits: Any) -> Any:
    """A key: what it means, its unit ("" for names and plain numbers), its default (none: required), its direction."""
    extra: dict[str, Any] = {name: value for name, value in (("unit", unit), ("better", better)) if value}
    return Field(default, description=meaning, json_schema_extra=extra, **limits)


def maybe(meaning: str, unit: str = "", **limits: Any) -> Any:
    """A key that is null where it cannot be given."""
    return key(meaning, unit, None, **limits)


def share(meaning: str, default: Any = ..., **limits: Any) -> Any:
    """A share of 0 to 1."""
    return key(meaning, "share 0..1", default, ge=0.0, le=1.0, **limits)


def tokens(meaning: str, default: Any = ..., **limits: Any) -> Any:
    """A number of tokens."""
    return key(meaning, "tokens", default, ge=0, **limits)


def count(meaning: str, default: Any = ..., **limits: Any) -> Any:
    """A number of things."""
    return key(meaning, "count", default, ge=0, **limits)


def extra_of(model: type[BaseModel], name: str) -> dict[str, Any]:
    """Unit and direction (``unit``, ``better``; absent where there is none) of a key."""
    extra = model.model_fields[name].json_schema_extra
    return dict(extra) if isinstance(extra, dict) else {}
