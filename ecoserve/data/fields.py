"""Naming a value inside a row: ``name``, ``name[3]``, ``a.b[0]``.

Rule: a path is parsed once and its mistakes are reported at once; that a row lacks the value is no error.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from ecoserve.errors import TraceError

#: Fields, and characters of each, that a message shows.
_FIELDS = 6
_CHARACTERS = 20
_STEP = re.compile(r"([^.\[\]\s][^.\[\]]*)((?:\[\d+\])*)")


@dataclass(frozen=True, slots=True)
class FieldPath:
    """A parsed path: names and list indices to follow, from the row inwards."""

    text: str
    steps: tuple[str | int, ...]

    @classmethod
    def parse(cls, text: str, what: str | None = None) -> FieldPath:
        """Parse ``text``, which was given as ``what``.

        Raises:
            TraceError: if it is not a field path.
        """
        steps: list[str | int] = []
        for part in text.split("."):
            found = _STEP.fullmatch(part)
            if not found:
                raise TraceError(f"{text!r} is not a field path", where=what, fix="write name, name[3] or a.b[0]")
            steps.append(found[1])
            steps.extend(int(i) for i in re.findall(r"\d+", found[2]))
        return cls(text, tuple(steps))

    def get(self, row: object) -> Any:
        """The value in ``row``, or ``None`` where the row does not have it."""
        value: Any = row
        for step in self.steps:
            if isinstance(step, str):
                value = value.get(step) if isinstance(value, Mapping) else None
            elif isinstance(value, Sequence) and not isinstance(value, str) and step < len(value):
                value = value[step]
            else:
                return None
        return value

    def inside(self, other: FieldPath) -> int | None:
        """The index ``i`` if this path is ``other[i]``, else ``None``."""
        last = self.steps[-1]
        return last if isinstance(last, int) and self.steps[:-1] == other.steps else None


def describe(row: Mapping[str, object]) -> str:
    """The row's fields in a few words, for messages: names, and what may be counted as a length."""
    words = []
    for name, value in row.items():
        if isinstance(value, (list, tuple)):
            words.append(f"{name} (list of {len(value)})")
        elif value is not None:
            words.append(f"{name} ({type(value).__name__})")
    return ", ".join(words) or "no fields"


def shown(row: Mapping[str, object]) -> str:
    """The row's first fields with the beginning of what is in them, for messages."""
    words = []
    for name, value in islice(row.items(), _FIELDS):
        text = " ".join(value.split()) if isinstance(value, str) else value
        if isinstance(value, (list, tuple, dict)):
            words.append(f"{name} ({type(value).__name__} of {len(value)})")
        else:
            words.append(f"{name} {text[:_CHARACTERS]!r}" if isinstance(text, str) else f"{name} {text!r}"[:40])
    return ", ".join(words) or "no fields"
