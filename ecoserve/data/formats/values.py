"""What formats read alike, however a file writes it: numbers, points in time, and whether an answer was cut off.

Rule: a point in time becomes seconds on the trace's own clock. A date becomes seconds since 1970 (UTC where it names no
zone), so that a row can be read without the ones before it and parts of a trace still fit together; a number is
taken as it stands, in seconds, unless it is so large that it can only be milli-, micro- or nanoseconds since 1970.
"""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime
from typing import Final

from ecoserve.data.formats.base import Row, first_of, whole

#: Why servers say that an answer ended before its end. A filter, or a client that went away, ends it as a limit does.
CUT_OFF: Final = frozenset(
    (
        "length",
        "max_tokens",
        "max_output_tokens",
        "model_length",
        "model_context_window_exceeded",
        "content_filter",
        "abort",
        "aborted",
        "cancelled",
        "canceled",
        "incomplete",
    )
)
#: What tools that shorten texts leave behind.
_MARK: Final = re.compile(r"[\[(<]\s*(?:\w+ )?(?:truncated|cut off)\s*[\])>][\s.\u2026]*\Z", re.IGNORECASE)
#: Characters at the end in which such a mark is looked for.
_TAIL: Final = 40
#: Seconds since 1970 stay below this for 3,000 years; milliseconds have been above it since 1973.
_LARGEST_SECONDS: Final = 1e11


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
            value = datetime.fromisoformat(value.strip())
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
    """Whether the server's word for how the answer ended, or a mark at the end of its text, says it was cut off."""
    if finish_reason is not None and finish_reason.lower() in CUT_OFF:
        return True
    return isinstance(answer, str) and _MARK.search(answer, max(0, len(answer) - _TAIL)) is not None


def usage_of(fields: Row) -> tuple[int | None, int | None]:
    """Tokens of the prompt and of the answer as an API's ``usage`` states them, ``None`` where it does not."""
    usage = fields.get("usage")
    if not isinstance(usage, dict):
        return None, None
    prompt = whole(first_of(usage, "prompt_tokens", "input_tokens"))
    return prompt, whole(first_of(usage, "completion_tokens", "output_tokens"))


def times_of(fields: Row) -> float | None:
    """When a request or message came, from the first of the usual fields that holds a point in time."""
    for name in TIMES:
        if (value := fields.get(name)) is not None and (time := seconds(value)) is not None:
            return time
    return None


#: Fields that say when something came, or was made.
TIMES: Final = (
    "arrival_s",
    "arrival_time",
    "timestamp",
    "created",
    "created_at",
    "create_time",
    "start_time",
    "request_time",
)
