"""Trace formats: which there are, and which one a file is.

A new format is a :class:`~ecoserve.data.formats.base.Format` in a module here, and its place in :data:`FORMATS`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final

from ecoserve.data.fields import describe, number
from ecoserve.data.formats import agents, alpaca, answers, benchmarks, conversations, openai, recorded, records, table
from ecoserve.data.formats.base import Exchange, Format, Hints, Reject
from ecoserve.data.formats.beside import beside
from ecoserve.data.formats.records import save_trace
from ecoserve.data.reading import SERVEGEN
from ecoserve.errors import TraceError

__all__ = ["FORMATS", "Exchange", "Format", "Hints", "Reject", "detect", "get_format", "save_trace"]

#: Every format, in the order in which they are tried: a row has the first one that knows it.
FORMATS: Final[tuple[Format, ...]] = (
    records.FORMAT,
    beside(conversations.SHAREGPT),
    agents.TRANSCRIPTS,
    answers.ARENA,
    beside(openai.FORMAT),
    beside(conversations.CHAT),
    beside(alpaca.MODEL_OUTPUTS),
    beside(alpaca.ALPACA),
    answers.TREES,
    agents.SESSIONS,
    benchmarks.VLLM_BENCH,
    benchmarks.GUIDELLM,
    benchmarks.AIPERF,
    benchmarks.GENAI_PERF,
    recorded.VLLM,
    recorded.AZURE,
    recorded.BAILIAN,
    recorded.MOONCAKE,
    recorded.BURSTGPT,
    table.PLAIN,
)
#: Cells of a window of ServeGen, at least.
_WINDOW: Final = 5
_KNOWN: Final = ", ".join(f.name for f in FORMATS)


def get_format(name: str) -> Format:
    """The format called ``name``; raises TraceError if there is none."""
    for form in FORMATS:
        if form.name == name:
            return form
    raise TraceError(f"there is no trace format {name!r}", fix=f"use one of: auto, {_KNOWN}")


def detect(rows: Sequence[object], where: str) -> Format:
    """The format that most of ``rows`` (the first of a file) have.

    Raises TraceError if no format knows any of them (says what was seen and what is known), or only a later version of
    ecoserve does.
    """
    objects = [r for r in rows if isinstance(r, dict)]
    if objects and _is_client(objects[0]):
        raise TraceError("is one client of ServeGen, no trace", where=where, fix=SERVEGEN)
    votes = Counter(next((i for i, f in enumerate(FORMATS) if f.matches(r)), None) for r in objects)
    del votes[None]
    if votes:
        # Of equally many, the one that asks for more, which is tried earlier.
        form = FORMATS[min((-n, i) for i, n in votes.items() if i is not None)[1]]
        for row in objects if form.name == "records" else ():
            records.check_layout(row, where)
        return form
    if objects and benchmarks.is_summary(objects[0]):
        fix = "export the requests: AIPerf's profile_export.jsonl, GuideLLM's JSON, vllm bench serve --save-detailed"
        raise TraceError("holds totals, averages or percentiles, no single requests", where=where, fix=fix)
    seen = f"fields {describe(objects[0])}" if objects else f"rows that are no objects ({type(rows[0]).__name__})"
    fix = (
        f"known formats are {_KNOWN}; in a table, call the answer's length response_tokens, or name its column: "
        "--format plain --length-field NAME"
    )
    raise TraceError(f"unknown trace format, it has {seen}", where=where, fix=fix)


def _is_client(row: dict[str, object]) -> bool:
    """Whether ``row`` is a client's lengths, or the first line of its windows taken for names."""
    lengths = any(isinstance(part, dict) and {"input_tokens", "output_tokens"} <= part.keys() for part in row.values())
    windows = len(row) >= _WINDOW and all(name in ("", "Gamma", "Weibull") or number(name) is not None for name in row)
    return windows or (lengths and all(name.isdecimal() for name in row))
