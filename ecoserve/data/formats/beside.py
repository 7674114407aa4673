"""Formats of texts whose rows state counts, a time, a session beside the texts: read by the table of known fields.

Gateways and tools put ``prompt_tokens``, ``timestamp`` or ``session_id`` next to the messages; what a format of texts
does not find itself comes from there, in the unit that is found as for any table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ecoserve.data.fields import Row
from ecoserve.data.formats.base import Exchange, Exchanges, Format, Hints, Reader, Reject
from ecoserve.data.formats.conversations import HIDDEN
from ecoserve.data.formats.table import TableReader
from ecoserve.data.known_fields import time_of
from ecoserve.data.measuring import THINK
from ecoserve.data.records import changed


class _Beside:
    """``texts`` reads a row; what the one exchange in it lacks is what ``table`` finds beside it."""

    def __init__(self, texts: Reader, rows: Sequence[Row], hints: Hints) -> None:
        self._texts, self._table = texts, TableReader(rows, hints, beside=True)
        self.length_source = texts.length_source

    @property
    def stated(self) -> Sequence[str]:
        return (*self._texts.stated, *self._table.stated)

    @property
    def guesses(self) -> Sequence[str]:
        return (*self._texts.guesses, *self._table.guesses)

    def read(self, row: Row, index: int) -> Exchanges:
        items = self._texts.read(row, index)
        if not self._table.columns:
            return items
        items = list(items)
        return [self._completed(row, items[0])] if len(items) == 1 and isinstance(items[0], Exchange) else items

    def finish(self) -> Exchanges:
        return self._texts.finish()

    def _completed(self, row: Row, item: Exchange) -> Exchange | Reject:
        found = self._table.beside(row)
        if isinstance(found, str):
            return Reject(found)
        record = item.record
        changes: dict[str, Any] = {n: v for n, v in found.values.items() if getattr(record, n) is None}
        if found.arrival_s is not None and record.arrival_s in (None, time_of(row)):
            changes["arrival_s"] = found.arrival_s
        answer, missing = item.answer, item.missing
        if changes.get("thinking_tokens") and isinstance(answer, str) and THINK not in answer:
            answer, missing = None, HIDDEN
        counts_turn = item.counts_turn
        if found.session is not None and record.turn == 0 and record.sample == 0:
            # Without the turns before it in its context, a session's turns are those of the file.
            changes["conversation"], counts_turn = found.session, True
        if changes:
            record = changed(record, **changes)
        return replace(item, record=record, answer=answer, missing=missing, counts_turn=counts_turn)


def beside(form: Format) -> Format:
    """``form``, with what its rows state beside their texts."""
    return replace(form, opened=lambda rows, hints: _Beside(form.opened(rows, hints), rows, hints))
