"""Logs of vLLM requests: ``input_toks``, ``output_toks`` and an arrival (JSON lines).

Rule: two files of a run are read alike: its load (``arrival_time_ns`` from the start, token ids) and what became of it
(``request_id``, ``arrival_time`` in seconds). Where token ids stand beside a count, they must agree.
"""

from __future__ import annotations

from collections.abc import Iterator

from ecoserve.data.formats.base import Exchange, Reject, Row, first_of, text_or_none, whole
from ecoserve.data.formats.counts import NO_TIME, counted
from ecoserve.data.formats.turns import limit_of
from ecoserve.data.formats.values import number, was_cut_off
from ecoserve.data.records import Record

_NANOSECONDS = 1e9
_LISTS = {"input_toks": "input_tok_ids", "output_toks": "output_tok_ids"}


class VllmLog:
    """The format of LLMServingSim's recordings of vLLM."""

    name = "vllm"
    looks_like = "input_toks, output_toks, arrival_time_ns (or arrival_time)"
    own_ids = False

    def matches(self, row: Row) -> bool:
        """Whether the row has both counts."""
        return "input_toks" in row and "output_toks" in row

    def read(self, row: Row, index: int) -> Iterator[Exchange | Reject]:
        """The one request of a row."""
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
        name = first_of(row, "request_id", "id")
        reason = text_or_none(row.get("finish_reason"))
        record = Record(
            str(name) if name not in (None, "") else f"row-{index}",
            model=text_or_none(row.get("model")),
            censored=was_cut_off(reason),
            finish_reason=reason,
            max_tokens=limit_of(row),
        )
        yield counted(record, row, prompt=row.get("input_toks"), response=row.get("output_toks"), arrival=arrival)
