"""Logs of vLLM requests as LLMServingSim records them: ``input_toks``, ``output_toks`` and an arrival (JSON lines).

Two files of a run are read alike: its load (``arrival_time_ns`` from the start, token ids) and what became of it
(``request_id``, ``arrival_time`` in seconds). Where token ids stand beside a count, they must agree.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from ecoserve.data.fields import Row, first_of, id_of, limit_of, number, text_or_none, was_cut_off, whole
from ecoserve.data.formats.base import NO_TIME, Exchange, Format, Reject, counted, has_fields
from ecoserve.data.records import Record

_NANOSECONDS: Final = 1e9
_LISTS: Final = {"input_toks": "input_tok_ids", "output_toks": "output_tok_ids"}


def _read(row: Row, index: int) -> Iterator[Exchange | Reject]:
    for count, ids in _LISTS.items():
        if isinstance(row.get(ids), list) and whole(row.get(count)) != len(row[ids]):
            yield Reject("token ids and counts disagree")
            return
    arrival = first_of(row, "arrival_time", "arrival_s")
    if (ns := row.get("arrival_time_ns")) is not None:
        since_start = number(ns)
        if since_start is None:
            yield Reject(NO_TIME)
            return
        arrival = since_start / _NANOSECONDS
    reason = text_or_none(row.get("finish_reason"))
    record = Record(
        id_of(row, ("request_id", "id"), index),
        model=text_or_none(row.get("model")),
        censored=was_cut_off(reason),
        finish_reason=reason,
        max_tokens=limit_of(row),
    )
    yield counted(record, row, prompt=row.get("input_toks"), response=row.get("output_toks"), arrival=arrival)


FORMAT: Final = Format(
    "vllm",
    looks_like="input_toks, output_toks, arrival_time_ns (or arrival_time)",
    about="recorded vLLM loads and request logs: token ids (held against their count), arrivals, finish reason",
    matches=has_fields("input_toks", "output_toks"),
    read=_read,
)
