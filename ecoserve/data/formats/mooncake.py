"""Mooncake's traces (JSON lines). Time stamps are milliseconds.

A hash id names 512 tokens of the prompt together with all before them; two requests share a prefix as far as their ids
are equal (:attr:`~ecoserve.data.Record.prefix_hashes`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from ecoserve.data.fields import Row, number, whole
from ecoserve.data.formats.base import NO_TIME, Exchange, Format, Reject, counted, has_fields
from ecoserve.data.records import Record

_MILLISECONDS: Final = 1000.0


def _read(row: Row, index: int) -> Iterator[Exchange | Reject]:
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


FORMAT: Final = Format(
    "mooncake",
    looks_like="timestamp (ms), input_length, output_length, hash_ids",
    about="Mooncake's traces: lengths, arrivals, ids of shared prefixes",
    matches=has_fields("hash_ids", "timestamp", "input_length", "output_length"),
    read=_read,
)
