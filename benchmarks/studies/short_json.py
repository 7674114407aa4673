"""JSON for result files: whatever fits a line stands on one line."""

from __future__ import annotations

import json
from typing import Any, Final

WIDTH: Final = 150


def dumps(value: Any, indent: int = 0) -> str:
    """A value as JSON text without a final newline; lists and objects are broken up only if they must be."""
    line = json.dumps(value)
    if len(line) + indent <= WIDTH or not isinstance(value, dict | list) or not value:
        return line
    pad = " " * (indent + 1)
    if isinstance(value, dict):
        items = [f"{pad}{json.dumps(k)}: {dumps(v, indent + 1)}" for k, v in value.items()]
        return "{\n" + ",\n".join(items) + "\n" + " " * indent + "}"
    if all(isinstance(v, int | float) for v in value):
        return line
    return "[\n" + ",\n".join(pad + dumps(v, indent + 1) for v in value) + "\n" + " " * indent + "]"
