"""A trace as a stream of records: a file of any size in memory that does not grow with it.

Rule: records come in the order of the file and are the same however many processes read it. In memory are a few
blocks of the file, the first exchanges until they have decided where lengths come from, 8 to 16 bytes for each exchange
with a text (:mod:`ecoserve.data.duplicates`), and a histogram of lengths.

What only the whole file tells is known behind the last batch: the report, the fingerprint, and the limit at which
answers were cut off (:meth:`TraceStream.cap`); records of a stream are marked as cut off only where their row says so.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import closing
from itertools import chain, islice
from pathlib import Path
from typing import Any, Final

from ecoserve.data.cleaning import Draft, Items, Wanted, measured
from ecoserve.data.duplicates import SeenKeys, TurnCounter
from ecoserve.data.fields import FieldPath, describe, shown
from ecoserve.data.formats import Exchange, detect, get_format
from ecoserve.data.formats.records import HEADER
from ecoserve.data.hub import hub_rows, is_hub_id
from ecoserve.data.measuring import (
    DECIDING,
    DECIDING_CHARACTERS,
    OWN,
    LengthHistogram,
    Sources,
    absurd,
    count_tokens,
    decide,
)
from ecoserve.data.progress import Progress
from ecoserve.data.reading import FileRows
from ecoserve.data.records import Fingerprint, LoadReport, Record
from ecoserve.data.rows import BadRow, MendedRow
from ecoserve.data.streaming_sources import FileSource, RowSource
from ecoserve.data.tokens import TokenCounter
from ecoserve.data.workload_rows import is_workload, workload_rows
from ecoserve.errors import TraceError

CUT_OFF: Final = "answers cut off"
#: Rows looked at to recognise a format.
_LOOK: Final = 20
#: Most records in a batch.
_BATCH: Final = 1000


def stream_trace(
    source: str | Path,
    *,
    format: str = "auto",
    length_field: str | None = None,
    sample_field: str | None = None,
    tokenizer: str | None = None,
    model: str | None = None,
    limit: int | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> TraceStream:
    """Open a trace of any size as a stream of records.

    Args:
        source: as in :func:`~ecoserve.data.load_trace`, as are all the others but these.
        workers: processes that parse beside this one, which reads, removes duplicates and counts; 0: none. Default:
            as many as there are cores, up to 4, for a file that is worth it.
        progress: called with the bytes read and the size of the file, after every block.

    Raises:
        TraceError: if the source cannot be opened or recognised; the rest is found while reading.
    """
    if limit is not None and limit < 1:
        raise TraceError(f"a limit of {limit} records leaves nothing to load", fix="give 1 or more")
    if workers is not None and workers < 0:
        raise TraceError(f"{workers} workers cannot read anything", fix="give 0 or more")
    where = str(source)
    length = FieldPath.parse(length_field, "length_field") if length_field is not None else None
    samples = FieldPath.parse(sample_field, "sample_field") if sample_field is not None else None
    file, rows = _opened(source, limit, shown=progress is not None)
    looked = list(islice(rows, _LOOK))
    first = [r.row if isinstance(r, MendedRow) else r for r in looked if not isinstance(r, BadRow)]
    if not first:
        raise TraceError("the trace is empty", where=where, fix="it was read to its end, and there is no row in it")
    form = detect(first, where) if format == "auto" else get_format(format)
    wanted = Wanted(form, length, samples, model)
    origin: FileSource | RowSource
    if file is not None:
        # It is read from its beginning again.
        rows.close()
        origin = FileSource(file, wanted, workers)
    else:
        origin = RowSource(chain(looked, rows), wanted)
    return TraceStream(where, origin, wanted, first, tokenizer=tokenizer, limit=limit, progress=progress)


def _opened(
    source: str | Path, limit: int | None, *, shown: bool
) -> tuple[FileRows | None, Generator[object, None, None]]:
    """The rows of ``source``, and the file where it is one."""
    if is_workload(source):
        return None, _each(workload_rows(source, limit, shown=shown))
    if is_hub_id(source):
        return None, _each(hub_rows(str(source)))
    file = FileRows(Path(source))
    return file, _each(file)


def _each(rows: Iterable[object]) -> Generator[object, None, None]:
    yield from rows


class TraceStream:
    """The records of a trace, once, in the order of the file (made by :func:`stream_trace`).

    Attributes:
        source: the path or hub id.
        format: the name of the format.
        report: what was kept and dropped so far; complete behind the last batch.
    """

    def __init__(
        self,
        where: str,
        origin: FileSource | RowSource,
        wanted: Wanted,
        first: list[object],
        *,
        tokenizer: str | None = None,
        limit: int | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.source = where
        self.format = wanted.form.name
        self.report = LoadReport()
        #: Bytes of the file that the records so far came from, and its size; 0 for the hub.
        self.bytes_read, self.bytes_total = 0, origin.size
        self._origin, self._wanted, self._first = origin, wanted, first
        self._tokenizer, self._limit, self._progress = tokenizer, limit, progress
        self._sources: Sources | None = None
        self._counter: TokenCounter | None = None
        self._seen, self._turns = SeenKeys(), TurnCounter()
        self._fingerprint, self._lengths = Fingerprint(), LengthHistogram()
        self._taken = self._cut_off = 0
        self._begun = self._ended = self._sampled = False

    def without_fingerprint(self) -> TraceStream:
        """This stream, to be read without :attr:`sha256`, whose making takes time."""
        self._origin.hashed = False
        return self

    def batches(self) -> Generator[list[Record], None, None]:
        """The records, up to 1,000 at a time.

        Raises:
            TraceError: if the trace is damaged, or holds no usable record.
            RunError: if a worker process is killed.
            RuntimeError: if the stream was read before.
        """
        if self._begun:
            raise RuntimeError("a trace stream can be read once; open another with stream_trace")
        self._begun = True
        with closing(self._drafts()) as drafts:
            for some, done in drafts:
                for i in range(0, len(some), _BATCH):
                    if records := self._finished(some[i : i + _BATCH], done):
                        yield records
        self.report.note(CUT_OFF, self._cut_off)
        if self._origin.encoding != "utf-8":
            self.report.note(f"read as {self._origin.encoding}", self.report.kept)
        if not self.report.kept:
            raise self._nothing_usable()
        if self._wanted.samples is not None and not self._sampled:
            raise self._no_field(self._wanted.samples)
        self._ended = True

    @property
    def length_source(self) -> str:
        """Where ``response_tokens`` come from (:attr:`Trace.length_source`); known from the first batch on."""
        return self._stated("length_source", self._decided().response)

    @property
    def prompt_length_source(self) -> str:
        """The same for ``prompt_tokens``."""
        return self._stated("prompt_length_source", self._decided().prompt)

    @property
    def sha256(self) -> str:
        """Fingerprint of the records as they came; behind the last batch."""
        self._need_end()
        return self._fingerprint.hexdigest()

    def cap(self) -> int | None:
        """The limit at which answers seem to have been cut off, behind the last batch.

        ``None`` if there is none, or lengths are of a kind that cannot have one (estimates), or were marked before.
        :func:`~ecoserve.data.load_trace` marks records that reach it as ``censored``.
        """
        self._need_end()
        source = self._decided().response
        own = source == OWN and not self._wanted.form.own_ids
        return self._lengths.cap() if own or self._wanted.length is not None else None

    def _drafts(self) -> Generator[tuple[list[Draft], bool], None, None]:
        """New exchanges, and whether they have been measured; nothing until :meth:`_decide` could decide."""
        waiting: list[Draft] = []
        characters = 0
        with closing(self._origin.parsed()) as blocks:
            for block in blocks:
                some = self._sift(block.rows)
                self.bytes_read = block.position
                if self._progress is not None and self.bytes_total:
                    self._progress(block.position, self.bytes_total)
                if self._sources is not None:
                    yield some, block.measured
                else:
                    waiting += some
                    characters += sum(len(d.record.prompt or "") + len(d.record.response or "") for d in some)
                    if len(waiting) >= DECIDING or characters >= DECIDING_CHARACTERS:
                        self._decide(waiting)
                        yield waiting, False
                        waiting = []
                if self._limit is not None and self._taken >= self._limit:
                    break
        if self._sources is None:
            self._decide(waiting)
            yield waiting, False

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
                    item = item.with_turn(self._turns.next(item.record.conversation))
                if not next(fresh):
                    report.drop("duplicate")
                    continue
                kept.append(item)
                self._taken += 1
                if self._taken == self._limit:
                    return kept
        return kept

    def _decide(self, drafts: list[Draft]) -> None:
        """Decide where lengths come from, by the first exchanges however they came in blocks."""
        first: list[Record] = []
        characters = 0
        for draft in drafts:
            first.append(draft.record)
            characters += len(draft.record.prompt or "") + len(draft.record.response or "")
            if len(first) >= DECIDING or characters >= DECIDING_CHARACTERS:
                break
        length = self._wanted.length
        self._sources = decide(first, length.text if length else None, self._tokenizer)
        self._origin.sources = self._sources

    def _finished(self, drafts: list[Draft], done: bool) -> list[Record]:
        """The records of ``drafts`` that have a length."""
        sources, report = self._decided(), self.report
        items: Iterable[Any] = drafts if done else measured(list(drafts), sources)
        usable: list[Draft] = []
        for draft in items:
            if draft.problem is None:
                usable.append(draft)
            else:
                report.drop(draft.problem)
        records = [draft.record for draft in usable]
        if sources.tokenizer() and records:
            if self._counter is None:
                self._counter = TokenCounter(self._tokenizer or "")
            records = count_tokens(records, sources, self._counter)
            if any(absurd(r.response_tokens) for r in records):
                good = [not absurd(r.response_tokens) for r in records]
                report.drop("absurd length", len(good) - sum(good))
                records = [r for r, ok in zip(records, good, strict=True) if ok]
                usable = [d for d, ok in zip(usable, good, strict=True) if ok]
        for draft in usable:
            for note in draft.notes:
                report.note(note)
        report.kept += len(records)
        self._cut_off += sum(r.censored for r in records)
        self._sampled = self._sampled or any(r.sample_tokens for r in records)
        self._lengths.add(r.response_tokens or 0 for r in records)
        if self._origin.hashed:
            for draft, record in zip(usable, records, strict=True):
                self._fingerprint.add_line(draft.line or Fingerprint.line(record))
        return records

    def _decided(self) -> Sources:
        if self._sources is None:
            raise RuntimeError("where lengths come from is known from the first batch on")
        return self._sources

    def _need_end(self) -> None:
        if not self._ended:
            raise RuntimeError("that is known behind the last batch")

    def _stated(self, name: str, source: str) -> str:
        """What a saved trace says of its counts, else ``source``."""
        row = self._first[0]
        if source != OWN or not isinstance(row, dict) or row.get(HEADER) is None:
            return source
        return str(row.get(name) or OWN)

    def _nothing_usable(self) -> TraceError:
        form, length, where = self._wanted.form, self._wanted.length, self.source
        if length is not None and set(self.report.dropped) == {f"no {length.text}"}:
            return self._no_field(length)
        row = next((r for r in self._first if isinstance(r, dict)), {})
        fix = f"{form.name} needs {form.looks_like}; the first row has {shown(row)}"
        return TraceError(f"no usable record: {self.report}", where=where, fix=fix)

    def _no_field(self, path: FieldPath) -> TraceError:
        row = next((r for r in self._first if isinstance(r, dict)), {})
        fields = (i.fields for i in self._wanted.form.read(row, 0) if isinstance(i, Exchange))
        what = f"no row has the field {path.text}"
        return TraceError(what, where=self.source, fix=f"the first has {describe(next(fields, row))}")
