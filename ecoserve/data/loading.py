"""Opening a file or hub data set as a stream, and collecting a stream as a :class:`Trace`: all records, or a sample.

A trace whose records do not fit into memory ends in an error that says what to do, before memory is full. Workload
files are opened by :mod:`ecoserve.data.traces`.
"""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final, Generic, TypedDict, TypeVar, Unpack

import numpy as np

from ecoserve.data.cleaning import RowReader, unused_fields
from ecoserve.data.fields import FieldPath
from ecoserve.data.formats import Hints, detect, get_format
from ecoserve.data.hub import hub_rows, is_hub_id
from ecoserve.data.known_fields import UNITS
from ecoserve.data.measuring import mark_cut_off
from ecoserve.data.reading import FileRows, Progress
from ecoserve.data.records import Message, Record, Trace, fingerprint
from ecoserve.data.streaming import CUT_OFF, TraceStream
from ecoserve.data.text_rows import BadRow, MendedRow
from ecoserve.errors import TraceError

#: Rows looked at to recognise a format, to infer units from, and tried to see which fields are used; and bytes of the
#: file after which no more are looked at.
_LOOK: Final = 20
_EVIDENCE: Final = 1000
_TRIED: Final = 100
_LOOK_BYTES: Final = 1 << 23
#: An object with ``data`` and few other fields is a page of an API.
_PAGE_FIELDS: Final = 6
#: A smaller file fits in any case; and how much more of it is read before memory is looked at again.
_CHECKED_FROM: Final = 1 << 28
_CHECKED_EVERY: Final = 1 << 27
#: Records measured to know what one takes.
_WEIGHED: Final = 2000
#: A file of fewer bytes is read without a bar.
_WORTH_A_BAR: Final = 1 << 24
_MEMINFO: Final = Path("/proc/meminfo")
_CGROUP: Final = Path("/sys/fs/cgroup")

T = TypeVar("T")


class ReadOptions(TypedDict, total=False):
    """How a trace is read.

    Attributes:
        format: ``"auto"`` (default), or the name of a format (:data:`~ecoserve.data.formats.FORMATS`).
        length_field: where the row (in a chat: the answer's message) has the response length in tokens, e.g.
            ``"vicuna_7b_tokens[3]"``. Rows without it are dropped and counted.
        sample_field: a list of lengths of several answers to the prompt, e.g. ``"vicuna_7b_tokens"``; the one that
            ``length_field`` names is left out.
        tokenizer: path or hub id of the served model's tokenizer. Counts prompts, and answers where there is no
            ``length_field`` (plus one for EOS where the answer was not cut off).
        model: name of the model that gave the answers, where the trace does not state it.
        limit: stop after this many records.
        time_unit: unit of arrivals that the file does not state: ``"s"``, ``"ms"``, ``"us"`` or ``"ns"``.
        strict: what would be a warning of the report is an error: a unit that was guessed, tokens estimated from
            characters, a field that looks like a count, a time or a session and is not used.
    """

    format: str
    length_field: str | None
    sample_field: str | None
    tokenizer: str | None
    model: str | None
    limit: int | None
    time_unit: str | None
    strict: bool


def open_trace(
    source: str | Path,
    *,
    rows: Iterable[object] | None = None,
    progress: Progress | None = None,
    **options: Unpack[ReadOptions],
) -> TraceStream:
    """Open the trace in a file, on the hub, or in ``rows`` (then ``source`` is its name), as a stream of records.

    ``progress`` is called after every batch of rows. Raises TraceError if the source cannot be opened or recognised;
    the rest is found while reading.
    """
    if unknown := options.keys() - ReadOptions.__annotations__.keys():
        known = ", ".join(ReadOptions.__annotations__)
        raise TypeError(f"there is no option {min(unknown)!r}; options are {known}")
    limit = options.get("limit")
    if limit is not None and limit < 1:
        raise TraceError(f"a limit of {limit} records leaves nothing to load", fix="give 1 or more")
    where = str(source)
    length = _path(options.get("length_field"), "length_field")
    samples = _path(options.get("sample_field"), "sample_field")
    file = None
    if rows is None:
        rows = file = hub_rows(where) if is_hub_id(source) else FileRows(Path(source))
    walk = unwrapped(iter(rows))
    looked, walk = _look(walk, file)
    first = [r.row if isinstance(r, MendedRow) else r for r in looked if not isinstance(r, BadRow)]
    if not first:
        raise TraceError("the trace is empty", where=where, fix="it was read to its end, and there is no row in it")
    name = options.get("format", "auto")
    form = detect(first[:_LOOK], where) if name == "auto" else get_format(name)
    unit = options.get("time_unit")
    if unit is not None and unit not in UNITS:
        raise TraceError(f"{unit!r} is not a unit of time", where="time_unit", fix=f"use one of: {', '.join(UNITS)}")
    hints = Hints(UNITS[unit] if unit else 0.0, expands=length is None and samples is None)
    objects = [row for row in first if isinstance(row, dict)]
    model = options.get("model")
    # The second reader is used up by trying the first rows.
    tried = RowReader(form, form.opened(objects[:_TRIED], hints), length, samples, model)
    return TraceStream(
        where,
        looked,
        walk,
        RowReader(form, form.opened(objects, hints), length, samples, model),
        first,
        unused=unused_fields(objects[:_TRIED], tried),
        strict=options.get("strict", False),
        file=file if isinstance(file, FileRows) else None,
        tokenizer=options.get("tokenizer"),
        limit=limit,
        progress=progress,
    )


def unwrapped(rows: Iterator[object]) -> Iterator[object]:
    """The rows, those of an API's pages (``{"data": [...]}``) one by one."""
    for row in rows:
        inner = row.get("data") if isinstance(row, dict) and len(row) <= _PAGE_FIELDS else None
        if isinstance(inner, list) and inner and all(isinstance(r, dict) for r in inner):
            yield from inner
        else:
            yield inner if isinstance(inner, dict) and row == {"data": inner} else row


def _look(walk: Iterator[object], file: object) -> tuple[list[object], Iterator[object]]:
    """The first rows, which tell the format and how times and blocks are to be read, and the rest.

    What is wrong with a row is raised when the rest is read, for a limit may stop before it.
    """
    looked: list[object] = []
    try:
        for row in walk:
            looked.append(row)
            far = len(looked) >= _LOOK and isinstance(file, FileRows) and file.position() > _LOOK_BYTES
            if far or len(looked) >= _EVIDENCE:
                break
    except TraceError as error:
        if len(looked) < _LOOK:
            raise
        return looked, map(_raise, (error,))
    return looked, walk


def _raise(error: TraceError) -> object:
    raise error


def _path(text: str | None, option: str) -> FieldPath | None:
    return None if text is None else FieldPath.parse(text, option)


def collect(stream: TraceStream, *, limit: int | None = None, sample: int | None = None, seed: int = 0) -> Trace:
    """All records of ``stream``, those that reach its cap marked as cut off.

    ``limit``: how many it has at most, where that is known; ``sample``: keep only so many, drawn by ``seed``. Raises
    TraceError if the trace is damaged, holds no usable record, or more than fit into memory.
    """
    if sample is None:
        with closing(_guarded(stream, limit)) as batches:
            records = [record for batch in batches for record in batch]
    else:
        reservoir = Reservoir[Record](sample, seed)
        with closing(stream.batches(fingerprint=False)) as batches:
            for batch in batches:
                reservoir.add(batch)
        records = reservoir.items()
    report = stream.report
    if report.kept > len(records):
        report.drop("not in the sample", report.kept - len(records))
        report.kept = len(records)
    records = mark_cut_off(records, stream.cap())
    report.noted.pop(CUT_OFF, None)
    report.note(CUT_OFF, sum(r.censored for r in records))
    sources = (stream.length_source, report, stream.prompt_length_source)
    # The fingerprint is taken when all is known about the records.
    return Trace(tuple(records), stream.source, stream.format, fingerprint(records), *sources)


def _guarded(stream: TraceStream, limit: int | None) -> Generator[list[Record], None, None]:
    """The batches of ``stream``, as long as those still to come (``limit`` records at most) will fit into memory."""
    count, check = 0, 0
    weight: float | None = None
    for batch in stream.batches(fingerprint=False):
        yield batch
        count += len(batch)
        read, total = stream.bytes_read, stream.bytes_total
        if total < _CHECKED_FROM or read < check:
            continue
        check = read + _CHECKED_EVERY
        weight = weight or bytes_of(batch[:_WEIGHED]) / len(batch[:_WEIGHED])
        to_come = count * (total - read) / max(1, read)
        if limit is not None:
            to_come = min(to_come, limit - count)
        free = available_memory()
        if free is not None and to_come * weight > free:
            whole = (count + to_come) * weight
            raise TraceError(
                f"its records would take about {whole / 2**30:.0f} GiB of memory, and {free / 2**30:.0f} GiB are free",
                where=stream.source,
                fix="load a sample or the first part of it (sample, limit), or profile it, which streams",
            )


class Reservoir(Generic[T]):
    """At most ``size`` >= 1 items of all that were added, each as likely as any other, however they came in batches.

    Source: Vitter, Random Sampling with a Reservoir, ACM TOMS 1985, algorithm R.
    """

    def __init__(self, size: int, seed: int) -> None:
        self._size = size
        self._draws = np.random.default_rng(seed)
        self._kept: list[tuple[int, T]] = []
        #: How many were added.
        self.seen = 0

    def add(self, items: Sequence[T]) -> None:
        # One draw an item, needed or not: so batches make no difference.
        for item, draw in zip(items, self._draws.random(len(items)), strict=True):
            if self.seen < self._size:
                self._kept.append((self.seen, item))
            elif (place := int(draw * (self.seen + 1))) < self._size:
                self._kept[place] = (self.seen, item)
            self.seen += 1

    def items(self) -> list[T]:
        """What is kept, in the order in which it came."""
        return [item for _, item in sorted(self._kept, key=lambda kept: kept[0])]


def available_memory() -> int | None:
    """Bytes usable without swapping, by the machine's and the container's account; ``None`` where neither tells."""
    known: list[int] = []
    for account in (_of_machine, _of_container):
        try:
            known.append(account())
        except (OSError, ValueError, IndexError):
            continue
    return min(known) if known else None


def _of_machine() -> int:
    return int(_MEMINFO.read_text().partition("MemAvailable:")[2].split()[0]) * 1024


def _of_container() -> int:
    limit, used = (int((_CGROUP / name).read_text()) for name in ("memory.max", "memory.current"))
    stat = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
    # Pages of files are given back when memory gets short.
    return limit - used + int(stat.get("inactive_file", 0))


def bytes_of(records: Iterable[Record]) -> int:
    """Bytes that ``records`` take, texts and messages that several of them share counted once."""
    seen: set[int] = set()

    def size(value: object) -> int:
        if value is None or id(value) in seen:
            return 0
        seen.add(id(value))
        inner: Iterable[object] = value if isinstance(value, tuple) else ()
        if isinstance(value, Record | Message):
            inner = (getattr(value, name) for name in value.__slots__)
        return sys.getsizeof(value) + sum(map(size, inner))

    return sum(map(size, records))


@contextmanager
def reading_bar(what: str) -> Iterator[Progress]:
    """A bar on stderr, if that is a terminal, while a file is read (``what``: "reading trace.jsonl")."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=None, visible=False)

        def show(read: int, size: int) -> None:
            bar.update(task, completed=read, total=size, visible=size >= _WORTH_A_BAR)

        yield show
