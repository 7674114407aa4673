"""One row of a trace becomes drafts of records, or reasons why not.

Rule: this is a function of the row and its number alone, so that it gives the same wherever a row is read, here or in
a worker process. What depends on other rows (duplicates, where lengths come from) is decided where all of them pass by.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Final, NamedTuple

from ecoserve.data.duplicates import identity
from ecoserve.data.fields import FieldPath
from ecoserve.data.formats import Exchange, Format, Reject
from ecoserve.data.formats.base import unusable_text, whole
from ecoserve.data.measuring import Sources, absurd, measure
from ecoserve.data.records import Record
from ecoserve.data.rows import BadRow, MendedRow
from ecoserve.errors import EcoServeError

#: Rows read before what they gave is handed on, and the bytes of the file after which it is handed on anyway.
ROWS_AT_ONCE: Final = 256
BYTES_AT_ONCE: Final = 1 << 21


class Draft(NamedTuple):
    """A record before its lengths are final.

    Attributes:
        record: with its answer, and with the lengths that its row states.
        notes: peculiarities, counted if it is kept.
        key: 64 bits that equal exchanges share (:func:`~ecoserve.data.duplicates.identity`).
        counts_turn: the turn is to be counted along the file.
        problem: why it is dropped after all, found when its length was taken.
        line: what is hashed of it (:meth:`~ecoserve.data.records.Fingerprint.line`), where that was made already.
    """

    record: Record
    notes: tuple[str, ...] = ()
    key: int | None = None
    counts_turn: bool = False
    problem: str | None = None
    line: bytes | None = None

    def with_turn(self, turn: int) -> Draft:
        """The same at that turn."""
        return self._replace(record=replace(self.record, turn=turn))


class Dropped(NamedTuple):
    """An exchange that is not used.

    Attributes:
        reason: what is counted.
        conversation: whose turns are counted along the file, this one too; else ``None``.
    """

    reason: str
    conversation: str | None = None


#: What one row gives.
Items = list[Draft | Dropped]


class Wanted(NamedTuple):
    """What is read from each row.

    Attributes:
        form: the trace's format.
        length: where response length is found, if it is a field.
        samples: where RLs of other answers are found.
        model: name of the model that gave the answers, where the row does not say it.
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
            record = replace(record, model=self.model)
        return Draft(record, item.notes + mended, key, item.counts_turn)

    def _record(self, item: Exchange) -> Record | str:
        """The exchange with its answer and what the row says about lengths, or why it is dropped."""
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
        return replace(record, **changes) if changes else record


def _samples(values: object, own: int | None) -> tuple[int, ...] | None:
    if not isinstance(values, (list, tuple)):
        return None
    counts = [whole(v) for i, v in enumerate(values) if i != own and v is not None]
    return tuple(n for n in counts if n is not None) if not any(n is None or absurd(n) for n in counts) else None


def measured(items: Items, sources: Sources) -> Items:
    """``items`` with the lengths that need no tokenizer."""
    return [_measured(item, sources) if isinstance(item, Draft) else item for item in items]


def _measured(draft: Draft, sources: Sources) -> Draft:
    record, problem, note = measure(draft.record, sources)
    return draft._replace(record=record, problem=problem, notes=draft.notes if note is None else (*draft.notes, note))


def clean(
    rows: Iterator[object], wanted: Wanted, *, first: int = 0, position: Callable[[], int] = lambda: 0
) -> Iterator[list[Items]]:
    """What ``rows`` give, a batch of rows at a time.

    An error is raised only after the rows before it were handed on, so that who needs no more never meets it.

    Args:
        rows: the file's rows.
        wanted: what is read from each.
        first: the number of the first of them.
        position: bytes of the file read so far.
    """
    index = first
    while True:
        batch: list[Items] = []
        problem: EcoServeError | None = None
        start = position()
        ended = True
        try:
            for row in rows:
                batch.append(wanted.read(row, index))
                index += 1
                if len(batch) >= ROWS_AT_ONCE or position() - start >= BYTES_AT_ONCE:
                    ended = False
                    break
        except EcoServeError as e:
            problem = e
        if batch:
            yield batch
        if problem is not None:
            raise problem
        if ended:
            return
