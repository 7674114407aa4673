"""One row of a trace becomes drafts of records, or reasons why not.

What depends on other rows (where lengths come from) is decided by the stream (:mod:`ecoserve.data.streaming`). Two
exchanges are the same if their 64-bit keys are. The keys seen are kept in sorted arrays, 8 bytes each; while two of
these are merged, up to 16. Of ten million exchanges, two different ones share a key with a chance of 3 in a million.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ecoserve.data.fields import FieldPath, unusable_text, whole
from ecoserve.data.formats import Exchange, Format, Reject
from ecoserve.data.formats.base import Reader
from ecoserve.data.known_fields import looks_like, meanings_of
from ecoserve.data.measuring import absurd
from ecoserve.data.records import Record, changed
from ecoserve.data.text_rows import BadRow, MendedRow

#: Conversations whose turns are counted at the same time; one without a turn for longer starts again at 0.
CONVERSATIONS: Final = 1 << 18


class Draft(NamedTuple):
    """A record with its answer and the lengths that its row states, before its lengths are final.

    ``notes`` are counted if it is kept; equal exchanges share the ``key`` (:func:`identity`);
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
    """What is read from each row: by which format, fields with lengths, the model where the row does not state it."""

    form: Format
    reader: Reader
    length: FieldPath | None = None
    samples: FieldPath | None = None
    model: str | None = None

    def read(self, row: object, index: int) -> Items:
        """What row number ``index`` of the file gives; nothing for a header."""
        row, mended = (row.row, (row.note,)) if isinstance(row, MendedRow) else (row, ())
        if not isinstance(row, dict):
            return [Dropped(row.reason if isinstance(row, BadRow) else "row is not an object")]
        return [self._item(item, mended) for item in self.reader.read(row, index)]

    def finish(self) -> Items:
        """What is known only after the last row."""
        return [self._item(item, ()) for item in self.reader.finish()]

    def _item(self, item: Exchange | Reject, mended: tuple[str, ...]) -> Draft | Dropped:
        if isinstance(item, Reject):
            return Dropped(item.reason)
        record = self._record(item)
        if isinstance(record, str):
            return Dropped(record, item.record.conversation if item.counts_turn else None)
        named = self.form.own_ids or item.named
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


class _Watched(dict[str, Any]):
    """A row that notes in ``touched`` which of its fields are read, those of its objects and of lists of them too."""

    def __init__(self, row: dict[str, Any], touched: set[tuple[str, ...]], at: tuple[str, ...] = ()) -> None:
        super().__init__({name: _watched(value, touched, (*at, str(name))) for name, value in row.items()})
        self._touched, self._at = touched, at

    def __getitem__(self, name: str) -> Any:
        self._touched.add((*self._at, name))
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self._touched.add((*self._at, name))
        return super().get(name, default)


def _watched(value: object, touched: set[tuple[str, ...]], at: tuple[str, ...]) -> object:
    if isinstance(value, dict):
        return _Watched(value, touched, at)
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return [_watched(v, touched, at) for v in value]
    return value


def unused_fields(rows: Sequence[dict[str, Any]], reader: RowReader) -> list[str]:
    """Fields of ``rows`` that look like a count, a time or a session and that ``reader`` does not use, in words.

    A time is needed where no arrival was found, a session where none was; a known count where the record lacks it.
    """
    touched: set[tuple[str, ...]] = set()
    items = [i for k, row in enumerate(rows) for i in reader.read(_Watched(row, touched), k)]
    records = [i.record for i in (*items, *reader.finish()) if isinstance(i, Draft)]
    has = {
        "a time": any(r.arrival_s is not None or r.think_s is not None for r in records),
        "a session": any(not r.conversation.startswith("row-") and r.turn for r in records),
        "response_tokens": any(r.response_tokens is not None for r in records),
        "prompt_tokens": any(r.prompt_tokens is not None for r in records),
        "thinking_tokens": any(r.thinking_tokens is not None for r in records),
    }
    values: dict[tuple[str, ...], list[object]] = {}
    for row in rows:
        for path, value in _leaves(row):
            values.setdefault(path, []).append(value)
    found = []
    for path, some in values.items():
        if path in touched or not (kind := looks_like(path, some)):
            continue
        known = [has[m] for m, _ in meanings_of(path) if m in has]
        if not has.get(kind, False) and not any(known):
            found.append(f"{'.'.join(path)} looks like {kind} and is not used")
    return found


def _leaves(row: dict[str, Any], before: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], object]]:
    for name, value in row.items():
        path = (*before, str(name))
        inner = value if isinstance(value, list) and value and isinstance(value[0], dict) else [value]
        for one in inner[:3] if isinstance(inner, list) else ():
            if isinstance(one, dict):
                yield from _leaves(one, path)
            else:
                yield path, one


def _samples(values: object, own: int | None) -> tuple[int, ...] | None:
    if not isinstance(values, (list, tuple)):
        return None
    counts = [whole(v) for i, v in enumerate(values) if i != own and v is not None]
    return tuple(n for n in counts if n is not None) if not any(n is None or absurd(n) for n in counts) else None


def identity(record: Record, *, named: bool) -> int | None:
    """The key (64 bits) that ``record``, before its lengths are measured, shares with those equal to it.

    ``named``: conversation and turn are the file's own, so that they tell equal exchanges apart. ``None`` where there
    is no text to tell by.
    """
    if record.prompt is None and (record.response is None or not named):
        return None
    numbers = (record.response_tokens, record.sample_tokens, record.sample, record.arrival_s, named and record.turn)
    texts = [record.response, record.model, record.conversation if named else None]
    if record.messages:
        texts += [text for m in record.messages for text in (m.role, m.content)]
    else:
        texts.append(record.prompt)
    # With the texts' lengths, so that no two lists of texts become the same bytes.
    lengths = [-1 if t is None else len(t) for t in texts]
    data = f"{numbers}{lengths}".encode() + "".join(filter(None, texts)).encode("utf-8", "surrogatepass")
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "little")


class SeenKeys:
    """The set of all keys so far, which answers for many at a time."""

    def __init__(self) -> None:
        # Each at least twice as long as the next, so that there are few, and each key is merged a few times only.
        self._runs: list[NDArray[np.uint64]] = []

    def __len__(self) -> int:
        return sum(len(run) for run in self._runs)

    def first_seen(self, keys: Sequence[int | None]) -> list[bool]:
        """Whether each of ``keys`` is new, within them too; they are then seen. ``None`` always is."""
        fresh = np.ones(len(keys), dtype=bool)
        known = [i for i, key in enumerate(keys) if key is not None]
        values = np.array([keys[i] or 0 for i in known], dtype=np.uint64)
        distinct, firsts = np.unique(values, return_index=True)
        new = np.ones(len(distinct), dtype=bool)
        for run in self._runs:
            places = np.searchsorted(run, distinct)
            places[places == len(run)] = 0
            new &= run[places] != distinct
        found = np.zeros(len(known), dtype=bool)
        found[firsts[new]] = True
        fresh[known] = found
        if new.any():
            self._runs.append(distinct[new])
        while len(self._runs) > 1 and len(self._runs[-2]) < 2 * len(self._runs[-1]):
            self._runs.append(np.sort(np.concatenate((self._runs.pop(), self._runs.pop()))))
        answer: list[bool] = fresh.tolist()
        return answer


class TurnCounter:
    """Numbers the turns of conversations that come mixed; the last :data:`CONVERSATIONS` are remembered."""

    def __init__(self, remembered: int = CONVERSATIONS) -> None:
        self._remembered = remembered
        self._turns: OrderedDict[str, int] = OrderedDict()

    def next(self, conversation: str) -> int:
        """The turn that comes now, 0-based."""
        turn = self._turns.pop(conversation, -1) + 1
        self._turns[conversation] = turn
        if len(self._turns) > self._remembered:
            self._turns.popitem(last=False)
        return turn
