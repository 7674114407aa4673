"""BurstGPT: ``Timestamp``, ``Model``, ``Request tokens``, ``Response tokens``, ... (CSV).

Rule: time stamps are seconds. A request without response tokens failed and is dropped as such. Later releases name the
session of a chat (``Session ID``), which is its conversation; turns are counted in the order of the file.
"""

from __future__ import annotations

from collections.abc import Iterator

from ecoserve.data.formats.base import Exchange, Reject, Row, text_or_none
from ecoserve.data.formats.counts import counted
from ecoserve.data.records import Record


class BurstGPT:
    """The format of the BurstGPT traces."""

    name = "burstgpt"
    looks_like = "Timestamp, Model, Request tokens, Response tokens"
    own_ids = False

    def matches(self, row: Row) -> bool:
        """Whether the row has the columns that all releases have."""
        return "Timestamp" in row and "Request tokens" in row and "Response tokens" in row

    def read(self, row: Row, index: int) -> Iterator[Exchange | Reject]:
        """The one request of a row."""
        session = text_or_none(row.get("Session ID"))
        yield counted(
            Record(session or f"row-{index}", model=text_or_none(row.get("Model"))),
            row,
            prompt=row.get("Request tokens"),
            response=row.get("Response tokens"),
            arrival=row.get("Timestamp"),
            counts_turn=session is not None,
        )
