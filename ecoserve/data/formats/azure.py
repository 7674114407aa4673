"""Azure's LLM inference traces of 2023 and 2024: ``TIMESTAMP``, ``ContextTokens``, ``GeneratedTokens`` (CSV).

Rule: arrivals are seconds since 1970; the trace of 2023 names no time zone and is taken as UTC.
"""

from __future__ import annotations

from collections.abc import Iterator

from ecoserve.data.formats.base import Exchange, Reject, Row
from ecoserve.data.formats.counts import counted
from ecoserve.data.records import Record


class Azure:
    """The format of AzurePublicDataset's LLM inference traces."""

    name = "azure"
    looks_like = "TIMESTAMP, ContextTokens, GeneratedTokens"
    own_ids = False

    def matches(self, row: Row) -> bool:
        """Whether the row has the three columns (a later trace has more)."""
        return "TIMESTAMP" in row and "ContextTokens" in row and "GeneratedTokens" in row

    def read(self, row: Row, index: int) -> Iterator[Exchange | Reject]:
        """The one request of a row."""
        yield counted(
            Record(f"row-{index}"),
            row,
            prompt=row.get("ContextTokens"),
            response=row.get("GeneratedTokens"),
            arrival=row.get("TIMESTAMP"),
        )
