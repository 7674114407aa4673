"""BurstGPT (CSV). A request without response tokens failed; time stamps are seconds.

Later releases name the session of a chat (``Session ID``), which is its conversation; turns are counted in the order
of the file.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from ecoserve.data.fields import Row, text_or_none
from ecoserve.data.formats.base import Exchange, Format, Reject, counted, has_fields
from ecoserve.data.records import Record


def _read(row: Row, index: int) -> Iterator[Exchange | Reject]:
    session = text_or_none(row.get("Session ID"))
    yield counted(
        Record(session or f"row-{index}", model=text_or_none(row.get("Model"))),
        row,
        prompt=row.get("Request tokens"),
        response=row.get("Response tokens"),
        arrival=row.get("Timestamp"),
        counts_turn=session is not None,
    )


FORMAT: Final = Format(
    "burstgpt",
    looks_like="Timestamp, Model, Request tokens, Response tokens",
    about="BurstGPT's traces: lengths, arrivals, model, sessions as conversations",
    matches=has_fields("Timestamp", "Request tokens", "Response tokens"),
    read=_read,
)
