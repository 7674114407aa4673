"""Trace formats: which there are, and which one a file is.

Rule: a new format is one module with one class and one entry in :data:`FORMATS`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final

from ecoserve.data.fields import describe
from ecoserve.data.formats.alpaca import Alpaca
from ecoserve.data.formats.azure import Azure
from ecoserve.data.formats.base import Exchange, Format, Reject, Row
from ecoserve.data.formats.burstgpt import BurstGPT
from ecoserve.data.formats.chat import Chat
from ecoserve.data.formats.model_outputs import ModelOutputs
from ecoserve.data.formats.mooncake import Mooncake
from ecoserve.data.formats.openai_log import OpenAILog
from ecoserve.data.formats.plain import Plain
from ecoserve.data.formats.records import Records, check_layout, save_trace
from ecoserve.data.formats.sharegpt import ShareGPT
from ecoserve.data.formats.vllm_bench import VllmBench
from ecoserve.data.formats.vllm_log import VllmLog
from ecoserve.errors import TraceError

__all__ = ["FORMATS", "Exchange", "Format", "Reject", "Row", "detect", "get_format", "save_trace"]

#: Every format, in the order in which they are tried: a row has the first one that knows it.
FORMATS: Final[tuple[Format, ...]] = (
    Records(),
    ShareGPT(),
    OpenAILog(),
    Chat(),
    ModelOutputs(),
    Alpaca(),
    VllmBench(),
    VllmLog(),
    Azure(),
    Mooncake(),
    BurstGPT(),
    Plain(),
)


def get_format(name: str) -> Format:
    """The format called ``name``.

    Raises:
        TraceError: if there is none.
    """
    for form in FORMATS:
        if form.name == name:
            return form
    known = ", ".join(f.name for f in FORMATS)
    raise TraceError(f"there is no trace format {name!r}", fix=f"use one of: auto, {known}")


def detect(rows: Sequence[object], where: str) -> Format:
    """The format that most of ``rows`` (the first of a file) have.

    Raises:
        TraceError: if no format knows any of them (says what was seen and what is known), or only a later version
            of ecoserve does.
    """
    objects = [r for r in rows if isinstance(r, dict)]
    votes = Counter(next((i for i, f in enumerate(FORMATS) if f.matches(r)), None) for r in objects)
    del votes[None]
    if votes:
        # Of equally many, the one that asks for more, which is tried earlier.
        form = FORMATS[min((-n, i) for i, n in votes.items() if i is not None)[1]]
        for row in objects if isinstance(form, Records) else ():
            check_layout(row, where)
        return form
    seen = f"fields {describe(objects[0])}" if objects else f"rows that are no objects ({type(rows[0]).__name__})"
    known = ", ".join(f.name for f in FORMATS)
    fix = (
        f"known formats are {known}; in a table, call the answer's length response_tokens, or name its column: "
        "--format plain --length-field NAME"
    )
    raise TraceError(f"unknown trace format, it has {seen}", where=where, fix=fix)
