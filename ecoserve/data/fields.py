"""Values inside a row: naming one (``name``, ``name[3]``, ``a.b[0]``), and reading what usual fields hold.

The names under which files keep counts, times, sessions and limits are in :mod:`ecoserve.data.known_fields`.
A point in time becomes seconds on the trace's own clock. A date becomes seconds since 1970 (UTC where it names no
zone), so that a row can be read without the ones before it and parts of a trace still fit together; a number is
taken as it stands, in seconds, unless it is so large that it can only be milli-, micro- or nanoseconds since 1970.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import Any, Final

from ecoserve.errors import TraceError

Row = Mapping[str, Any]

#: Fields, and characters of each, that a message shows.
_FIELDS = 6
_CHARACTERS = 20
_STEP = re.compile(r"([^.\[\]\s][^.\[\]]*)((?:\[\d+\])*)")
#: A whole number as tables (CSV) write it; columns with gaps in them become ``12.0``.
_WHOLE: Final = re.compile(r"[+-]?[0-9]{1,18}(?:\.0*)?")
#: Finish reasons of answers that were cut off. A filter, or a client that went away, ends one as a limit does.
CUT_OFF: Final = frozenset(
    (
        *("length", "max_tokens", "max_output_tokens", "model_length", "model_context_window_exceeded"),
        *("content_filter", "abort", "aborted", "cancelled", "canceled", "incomplete"),
    )
)
#: What tools that shorten texts leave behind.
_MARK: Final = re.compile(r"[\[(<]\s*(?:\w+ )?(?:truncated|cut off)\s*[\])>][\s.\u2026]*\Z", re.IGNORECASE)
#: Characters at the end in which such a mark is looked for.
_TAIL: Final = 40
#: Names of UTC behind a date.
_ZONE: Final = re.compile(r"\s+(?:UTC|GMT|\+00:?00(?:\s+UTC)?)\Z")
#: Seconds since 1970 stay below this for 3,000 years; milliseconds have been above it since 1973.
_LARGEST_SECONDS: Final = 1e11


@dataclass(frozen=True, slots=True)
class FieldPath:
    """Names and list indices to follow, from the row inwards."""

    text: str
    steps: tuple[str | int, ...]

    @classmethod
    def parse(cls, text: str, what: str | None = None) -> FieldPath:
        """Parse ``text``, which was given as ``what``; a :class:`TraceError` if it is no field path."""
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


def first_of(row: Row, *names: str) -> Any:
    """The first of the fields ``names`` that the row has, else ``None``."""
    return next((row[n] for n in names if row.get(n) is not None), None)


def whole(value: object) -> int | None:
    """``value``, maybe widened to float or a table's text, as a whole number; ``None`` if it is not one."""
    if isinstance(value, str):
        return int(value.partition(".")[0]) if _WHOLE.fullmatch(value.strip()) else None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return int(value) if value == value and value not in (float("inf"), float("-inf")) and value == int(value) else None


def text_or_none(value: object) -> str | None:
    """``value`` if it is a text with something in it, else ``None``."""
    return value if isinstance(value, str) and value.strip() else None


def unusable_text(value: object, what: str) -> str | None:
    """Why ``value`` cannot be a prompt or an answer (``what``), or ``None`` if it can."""
    if value is None:
        return f"no {what}"
    if not isinstance(value, str):
        return f"{what} is not text"
    if not value.strip():
        return f"empty {what}"
    try:
        value.encode()  # lone surrogates are no text: neither UTF-8 nor a tokenizer takes them
    except UnicodeEncodeError:
        return f"{what} is not valid Unicode"
    return None


def blank(value: object) -> bool:
    """Whether a field is there but holds nothing, or is not there."""
    return value is None or (isinstance(value, str) and not value.strip())


def number(value: object) -> float | None:
    """``value`` as a finite number, ``None`` if it is not one; text as tables hold it is read."""
    if isinstance(value, str):
        try:
            # Python alone takes 1_000 for a number.
            value = float(value) if "_" not in value else None
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def seconds(value: object) -> float | None:
    """A point in time in seconds by the rule above; ``None`` if ``value`` is none, or lies before the clock's zero."""
    if isinstance(value, str) and (read := number(value)) is None:
        try:
            # As ClickHouse and BigQuery write a zone.
            value = datetime.fromisoformat(_ZONE.sub(r"+00:00", value.strip()))
        except ValueError:
            return None
    elif isinstance(value, str):
        value = read
    if isinstance(value, datetime):
        try:
            value = (value if value.tzinfo is not None else value.replace(tzinfo=UTC)).timestamp()
        except (ValueError, OverflowError):
            return None
    time = number(value)
    if time is None or time < 0:
        return None
    while time >= _LARGEST_SECONDS:
        time /= 1000.0
    return time


def was_cut_off(finish_reason: str | None, answer: object = None) -> bool:
    """Whether the answer was cut off, by its finish reason or by a mark at the end of its text."""
    if finish_reason is not None and finish_reason.lower() in CUT_OFF:
        return True
    return isinstance(answer, str) and _MARK.search(answer, max(0, len(answer) - _TAIL)) is not None
