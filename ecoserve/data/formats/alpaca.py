"""Alpaca: one instruction with its answer a row (``instruction``, ``input``, ``output``).

The prompt is the instruction, then the input on a new line where there is one. Rows may carry a ``split``, lists of
token lengths (``--length-field``), and the name of the model that answered (``model``, ``generator``).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from ecoserve.data.fields import (
    PROMPT_COUNTS,
    RESPONSE_COUNTS,
    Row,
    first_of,
    text_or_none,
    unusable_text,
    was_cut_off,
    whole,
)
from ecoserve.data.formats.base import Exchange, Format, Reject, has_fields
from ecoserve.data.records import Record


def instruction(row: Row, index: int) -> Exchange | Reject:
    """The exchange of a row with an instruction, named by the row's number."""
    asked, extra = row.get("instruction"), row.get("input")
    problem = unusable_text(asked, "prompt")
    if problem is None and extra not in (None, ""):
        problem = unusable_text(extra, "input")
        problem = None if problem == "empty input" else problem
    if problem is not None:
        return Reject(problem)
    reason = text_or_none(row.get("finish_reason"))
    record = Record(
        conversation=f"row-{index}",
        prompt=f"{asked}\n{extra}" if text_or_none(extra) else str(asked),
        response_tokens=whole(first_of(row, *RESPONSE_COUNTS)),
        prompt_tokens=whole(first_of(row, *PROMPT_COUNTS)),
        model=text_or_none(first_of(row, "model", "generator")),
        split=text_or_none(row.get("split")),
        censored=was_cut_off(reason, row.get("output")),
        finish_reason=reason,
    )
    return Exchange(record, row.get("output"), row)


def _read(row: Row, index: int) -> Iterator[Exchange | Reject]:
    yield instruction(row, index)


FORMAT: Final = Format(
    "alpaca",
    looks_like="instruction, input, output",
    about="Stanford Alpaca and data sets in its layout: `split`, counts, lists of lengths by `--length-field`",
    matches=has_fields("instruction", "output"),
    read=_read,
)
