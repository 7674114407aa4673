"""One row of a trace becomes drafts of records, or reasons why not.

A function of the row and its number alone; what depends on other rows (duplicates, where lengths come from) is decided
by the stream (:mod:`ecoserve.data.streaming`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ecoserve.data.duplicates import identity
from ecoserve.data.encodings import MendedRow
from ecoserve.data.fields import FieldPath, unusable_text, whole
from ecoserve.data.formats import Exchange, Format, Reject
from ecoserve.data.measuring import absurd
from ecoserve.data.plain_csv import BadRow
from ecoserve.data.records import Record, changed


class Draft(NamedTuple):
    """A record with its answer and the lengths that its row states, before its lengths are final.

    ``notes`` are counted if it is kept; equal exchanges share the ``key`` (:func:`~ecoserve.data.duplicates.identity`);
    ``counts_turn``: the turn is to be counted along the file.
    """

    record: Record
    notes: tuple[str, ...] = ()
    key: int | None = None
    counts_turn: bool = False


class Dropped(NamedTuple):
    """An exchange that is not used: the reason, and the conversation if its turns are counted along the file."""

    reason: str
    conversation: str | None = None


#: What one row gives.
Items = list[Draft | Dropped]


class RowReader(NamedTuple):
    """What is read from each row: the format, the fields with the answer's length and with lengths of other answers,
    and the name of the model where the row does not state it.
    """

    form: Format
    length: FieldPath | None = None
    samples: FieldPath | None = None
    model: str | None = None

    def read(self, row: object, index: int) -> Items:
        """What row number ``index`` of the file gives; nothing for a header."""
        row, mended = (row.row, (row.note,)) if isinstance(row, MendedRow) else (row, ())
        if not isinstance(row, dict):
            return [Dropped(row.reason if isinstance(row, BadRow) else "row is not an object")]
        return [self._item(item, mended) for item in self.form.read(row, index)]

    def _item(self, item: Exchange | Reject, mended: tuple[str, ...]) -> Draft | Dropped:
        if isinstance(item, Reject):
            return Dropped(item.reason)
        record = self._record(item)
        if isinstance(record, str):
            return Dropped(record, item.record.conversation if item.counts_turn else None)
        named = self.form.own_ids
        # Turns that are counted are never the same twice.
        key = None if named and item.counts_turn else identity(record, named=named)
        if self.model is not None and record.model is None:
            record = changed(record, model=self.model)
        return Draft(record, item.notes + mended, key, item.counts_turn)

    def _record(self, item: Exchange) -> Record | str:
        """The exchange with its answer and the lengths that the row states, or why it is dropped."""
        record, fields = item.record, item.fields
        changes: dict[str, Any] = {}
        problem = unusable_text(item.answer, "answer")
        if problem is None:
            changes["response"] = item.answer
        if self.length is not None:
            value = self.length.get(fields)
            if value is None:
                return f"no {self.length.text}"
            count = whole(value)
            if count is None:
                return f"{self.length.text} is not a whole number"
            changes["response_tokens"] = count
        elif problem is not None and (problem != "no answer" or record.response_tokens is None):
            return item.missing or problem
        if absurd(changes.get("response_tokens", record.response_tokens)):
            return "absurd length"
        if self.samples is not None and (values := self.samples.get(fields)) is not None:
            others = _samples(values, self.length.inside(self.samples) if self.length else None)
            if others is None:
                return f"{self.samples.text} is not a list of lengths"
            changes["sample_tokens"] = others
        return changed(record, **changes) if changes else record


def _samples(values: object, own: int | None) -> tuple[int, ...] | None:
    if not isinstance(values, (list, tuple)):
        return None
    counts = [whole(v) for i, v in enumerate(values) if i != own and v is not None]
    return tuple(n for n in counts if n is not None) if not any(n is None or absurd(n) for n in counts) else None
