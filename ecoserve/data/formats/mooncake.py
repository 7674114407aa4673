"""Mooncake's traces: ``timestamp``, ``input_length``, ``output_length``, ``hash_ids`` (JSON lines).

Rule: time stamps are milliseconds. A hash id names 512 tokens of the prompt together with all before them; two requests
share a prefix as far as their ids are equal (:attr:`~ecoserve.data.Record.prefix_hashes`).
"""

from __future__ import annotations

from collections.abc import Iterator

from ecoserve.data.formats.base import Exchange, Reject, Row, whole
from ecoserve.data.formats.counts import NO_TIME, counted
from ecoserve.data.formats.values import number
from ecoserve.data.records import Record

_MILLISECONDS = 1000.0


class Mooncake:
    """The format of the traces published with Mooncake."""

    name = "mooncake"
    looks_like = "timestamp (ms), input_length, output_length, hash_ids"
    own_ids = False

    def matches(self, row: Row) -> bool:
        """Whether the row has the four fields."""
        return "hash_ids" in row and "timestamp" in row and "input_length" in row and "output_length" in row

    def read(self, row: Row, index: int) -> Iterator[Exchange | Reject]:
        """The one request of a row."""
        time = number(row.get("timestamp"))
        if time is None:
            yield Reject(NO_TIME)
            return
        found = row.get("hash_ids")
        hashes = [whole(h) for h in found] if isinstance(found, (list, tuple)) else None
        if hashes is None or None in hashes:
            yield Reject("hash_ids are not a list of numbers")
            return
        yield counted(
            Record(f"row-{index}", prefix_hashes=tuple(h for h in hashes if h is not None)),
            row,
            prompt=row.get("input_length"),
            response=row.get("output_length"),
            arrival=time / _MILLISECONDS,
        )
