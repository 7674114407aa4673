"""A trace as a stream of records: a file of any size in memory that does not grow with it.

In memory are one batch of rows, the first exchanges until they have decided where lengths come from, 8 to 16 bytes for
each exchange with a text (:mod:`ecoserve.data.cleaning`), and a histogram of lengths.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from itertools import chain
from typing import Final

from ecoserve.data import measuring
from ecoserve.data.cleaning import Draft, Items, RowReader, SeenKeys, TurnCounter
from ecoserve.data.fields import FieldPath, describe, shown
from ecoserve.data.formats import Exchange
from ecoserve.data.formats.records import HEADER
from ecoserve.data.measuring import BY_CHARACTERS, OWN, LengthHistogram, Sources, TokenCounter
from ecoserve.data.reading import FileRows, Progress
from ecoserve.data.records import Fingerprint, LoadReport, Record, changed
from ecoserve.errors import EcoServeError, TraceError

CUT_OFF: Final = "answers cut off"
#: Most records in a batch.
_BATCH: Final = 1000
#: Rows cleaned at once, and the bytes of the file after which fewer are.
_ROWS_AT_ONCE: Final = 256
_BYTES_AT_ONCE: Final = 1 << 21


class TraceStream:
    """The records of a trace, once, in the order of the file, marked as cut off only where their row states it.

    What only the whole file tells is known after the last batch: the report, the fingerprint, and :meth:`cap`. Made by
    :func:`~ecoserve.data.loading.open_trace`; the ``looked`` rows come before the ``rest``, which is closed at the end.
    """

    def __init__(
        self,
        where: str,
        looked: list[object],
        rest: Iterator[object],
        reader: RowReader,
        first: list[object],
        *,
        file: FileRows | None = None,
        tokenizer: str | None = None,
        limit: int | None = None,
        progress: Progress | None = None,
        unused: Sequence[str] = (),
        strict: bool = False,
    ) -> None:
        self.source = where
        #: The name of the format.
        self.format = reader.form.name
        #: What was kept and dropped so far; complete after the last batch.
        self.report = LoadReport()
        #: Bytes of the file that the records so far came from, and its size; 0 where there is no file.
        self.bytes_read, self.bytes_total = 0, file.size if file is not None else 0
        self._looked, self._rest, self._reader, self._first, self._file = looked, rest, reader, first, file
        self._tokenizer, self._limit, self._progress = tokenizer, limit, progress
        self._sources: Sources | None = None
        self._counter: TokenCounter | None = None
        self._seen, self._turns = SeenKeys(), TurnCounter()
        self._fingerprint: Fingerprint | None = None
        self._lengths = LengthHistogram()
        self._taken = self._cut_off = 0
        self._begun = self._ended = self._sampled = False
        self._strict = strict
        self._warn(*unused)
        self._state()

    def batches(self, *, fingerprint: bool = True) -> Generator[list[Record], None, None]:
        """The records, up to 1,000 at a time; ``fingerprint``: for :attr:`sha256`, whose making takes time.

        Raises TraceError if the trace is damaged, or holds no usable record; RuntimeError if the stream was read
        before.
        """
        if self._begun:
            raise RuntimeError("a trace stream can be read once; open another with stream_trace")
        self._begun = True
        self._fingerprint = Fingerprint() if fingerprint else None
        with closing(self._drafts()) as drafts:
            for some in drafts:
                for i in range(0, len(some), _BATCH):
                    if records := self._finished(some[i : i + _BATCH]):
                        yield records
        self.report.note(CUT_OFF, self._cut_off)
        self._state()
        if self._file is not None and self._file.encoding != "utf-8":
            self.report.note(f"read as {self._file.encoding}", self.report.kept)
        if not self.report.kept:
            raise self._nothing_usable()
        if self._reader.samples is not None and not self._sampled:
            raise self._no_field(self._reader.samples)
        self._ended = True

    @property
    def length_source(self) -> str:
        """Where ``response_tokens`` come from (:attr:`Trace.length_source`); known from the first batch on."""
        return self._stated("length_source", self._decided().response)

    @property
    def prompt_length_source(self) -> str:
        return self._stated("prompt_length_source", self._decided().prompt)

    @property
    def sha256(self) -> str:
        """Fingerprint of the records as they came; after the last batch."""
        self._need_end()
        if self._fingerprint is None:
            raise RuntimeError("the stream was read without its fingerprint")
        return self._fingerprint.hexdigest()

    def cap(self) -> int | None:
        """The limit at which answers seem to have been cut off, after the last batch.

        ``None`` if there is none, or lengths are of a kind that cannot have one (estimates), or were marked before.
        """
        self._need_end()
        own = self._decided().response == OWN and not self._reader.form.own_ids
        return self._lengths.cap() if own or self._reader.length is not None else None

    def _cleaned(self) -> Generator[list[Items], None, None]:
        """What the rows give, some rows at a time; an error is raised after the rows before it were handed on."""
        position = self._file.position if self._file is not None else int
        batch: list[Items] = []
        start = position()
        try:
            for index, row in enumerate(chain(self._looked, self._rest)):
                batch.append(self._reader.read(row, index))
                if len(batch) >= _ROWS_AT_ONCE or position() - start >= _BYTES_AT_ONCE:
                    yield batch
                    batch, start = [], position()
        except EcoServeError:
            if batch:
                yield batch
            raise
        finally:
            if isinstance(self._rest, Generator):
                self._rest.close()
        if last := self._reader.finish():
            batch.append(last)
        if batch:
            yield batch

    def _drafts(self) -> Generator[list[Draft], None, None]:
        """New exchanges; none until :meth:`_decide` could decide."""
        waiting: list[Draft] = []
        characters = 0
        with closing(self._cleaned()) as cleaned:
            for rows in cleaned:
                some = self._sift(rows)
                if self._file is not None:
                    self.bytes_read = self._file.position()
                    if self._progress is not None:
                        self._progress(self.bytes_read, self.bytes_total)
                if self._sources is not None:
                    yield some
                else:
                    waiting += some
                    characters += sum(map(_characters, some))
                    if len(waiting) >= measuring.DECIDING or characters >= measuring.DECIDING_CHARACTERS:
                        self._decide(waiting)
                        yield waiting
                        waiting = []
                if self._limit is not None and self._taken >= self._limit:
                    break
        if self._sources is None:
            self._decide(waiting)
            yield waiting

    def _sift(self, rows: list[Items]) -> list[Draft]:
        """The exchanges that are new, up to the limit; the others are counted."""
        report = self.report
        fresh = iter(self._seen.first_seen([d.key for items in rows for d in items if isinstance(d, Draft)]))
        kept: list[Draft] = []
        for items in rows:
            report.rows_in += bool(items)
            for item in items:
                if not isinstance(item, Draft):
                    if item.conversation is not None:
                        self._turns.next(item.conversation)
                    report.drop(item.reason)
                    continue
                if item.counts_turn:
                    turn = self._turns.next(item.record.conversation)
                    item = item._replace(record=changed(item.record, turn=turn))
                if not next(fresh):
                    report.drop("duplicate")
                    continue
                kept.append(item)
                self._taken += 1
                if self._taken == self._limit:
                    return kept
        return kept

    def _decide(self, drafts: list[Draft]) -> None:
        """Decide where lengths come from, by the first exchanges, however they came in batches."""
        first: list[Record] = []
        characters = 0
        for draft in drafts:
            first.append(draft.record)
            characters += _characters(draft)
            if len(first) >= measuring.DECIDING or characters >= measuring.DECIDING_CHARACTERS:
                break
        length = self._reader.length
        self._sources = measuring.decide(first, length.text if length else None, self._tokenizer)
        by_characters = [(self.length_source, "answers"), (self.prompt_length_source, "prompts")]
        for source, what in by_characters if drafts else ():
            if source.startswith(BY_CHARACTERS) and (what == "answers" or any(d.record.prompt for d in drafts)):
                self._warn(f"tokens of {what} are estimated as {source}: give --tokenizer")

    def _finished(self, drafts: list[Draft]) -> list[Record]:
        sources, report = self._decided(), self.report
        records: list[Record] = []
        notes: list[tuple[str, ...]] = []
        for draft in drafts:
            record, problem, note = measuring.measure(draft.record, sources)
            if problem is not None:
                report.drop(problem)
                continue
            records.append(record)
            notes.append(draft.notes if note is None else (*draft.notes, note))
        if sources.tokenizer() and records:
            if self._counter is None:
                self._counter = TokenCounter(self._tokenizer or "")
            records = measuring.count_tokens(records, sources, self._counter)
            good = [not measuring.absurd(r.response_tokens) for r in records]
            if not all(good):
                report.drop("absurd length", len(good) - sum(good))
                records = [r for r, ok in zip(records, good, strict=True) if ok]
                notes = [n for n, ok in zip(notes, good, strict=True) if ok]
        for note in chain.from_iterable(notes):
            report.note(note)
        report.kept += len(records)
        self._cut_off += sum(r.censored for r in records)
        self._sampled = self._sampled or any(r.sample_tokens for r in records)
        self._lengths.add(r.response_tokens or 0 for r in records)
        if self._fingerprint is not None:
            self._fingerprint.add(records)
        return records

    def _decided(self) -> Sources:
        if self._sources is None:
            raise RuntimeError("where lengths come from is known from the first batch on")
        return self._sources

    def _state(self) -> None:
        """Take over how the reader reads the file, and what of that it had to guess."""
        reader = self._reader.reader
        self.report.stated = list(reader.stated)
        self._warn(*reader.guesses)

    def _warn(self, *warnings: str) -> None:
        """Add what is new of ``warnings`` to the report; in strict reading the first is an error."""
        for warning in warnings:
            if warning not in self.report.warnings:
                if self._strict:
                    raise TraceError(warning, where=self.source, fix="leave out --strict to go on with a warning")
                self.report.warnings.append(warning)

    def _need_end(self) -> None:
        if not self._ended:
            raise RuntimeError("that is known after the last batch")

    def _stated(self, name: str, source: str) -> str:
        """The source of its counts that a saved trace states, or that its format knows, else ``source``."""
        row = self._first[0]
        if source == OWN and name == "length_source" and self._reader.reader.length_source is not None:
            return self._reader.reader.length_source
        if source != OWN or not isinstance(row, dict) or row.get(HEADER) is None:
            return source
        return str(row.get(name) or OWN)

    def _nothing_usable(self) -> TraceError:
        form, length, where = self._reader.form, self._reader.length, self.source
        if length is not None and set(self.report.dropped) == {f"no {length.text}"}:
            return self._no_field(length)
        row = next((r for r in self._first if isinstance(r, dict)), {})
        fix = f"{form.name} needs {form.looks_like}; the first row has {shown(row)}"
        return TraceError(f"no usable record: {self.report.counted()}", where=where, fix=fix)

    def _no_field(self, path: FieldPath) -> TraceError:
        row = next((r for r in self._first if isinstance(r, dict)), {})
        fields = (i.fields for i in self._reader.form.read(row, 0) if isinstance(i, Exchange))
        what = f"no row has the field {path.text}"
        return TraceError(what, where=self.source, fix=f"the first has {describe(next(fields, row))}")


def _characters(draft: Draft) -> int:
    return len(draft.record.prompt or "") + len(draft.record.response or "")
