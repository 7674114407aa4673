"""Azure's LLM inference traces of 2023 and 2024 (CSV). The trace of 2023 names no time zone and is taken as UTC."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from ecoserve.data.fields import Row
from ecoserve.data.formats.base import Exchange, Format, Reject, counted, has_fields
from ecoserve.data.records import Record


def _read(row: Row, index: int) -> Iterator[Exchange | Reject]:
    prompt, response, arrival = (row.get(name) for name in ("ContextTokens", "GeneratedTokens", "TIMESTAMP"))
    yield counted(Record(f"row-{index}"), row, prompt=prompt, response=response, arrival=arrival)


FORMAT: Final = Format(
    "azure",
    looks_like="TIMESTAMP, ContextTokens, GeneratedTokens",
    about="Azure's LLM inference traces of 2023 and 2024: lengths, arrivals",
    matches=has_fields("TIMESTAMP", "ContextTokens", "GeneratedTokens"),
    read=_read,
)
