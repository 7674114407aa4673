"""From a file or hub id to a :class:`Trace`: the stream of its records, collected.

Rule: nothing is dropped silently, each exchange that is left out is counted under one reason; one trace has its
response lengths from one source, which :attr:`Trace.length_source` names; and a file whose records do not fit into
memory ends in an error that says what to do, before memory is full.
"""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import AbstractContextManager, closing, nullcontext
from pathlib import Path
from typing import Final

from ecoserve.data.measuring import mark_cut_off
from ecoserve.data.memory import available_memory, bytes_of
from ecoserve.data.progress import Progress, reading_bar
from ecoserve.data.records import Record, Trace, fingerprint
from ecoserve.data.reservoir import Reservoir
from ecoserve.data.streaming import CUT_OFF, TraceStream, stream_trace
from ecoserve.errors import TraceError

#: A smaller file fits whatever it holds; and how much more of it is read before memory is looked at again.
_CHECKED_FROM: Final = 1 << 28
_CHECKED_EVERY: Final = 1 << 27
#: Records measured to know what one takes.
_WEIGHED: Final = 2000


def load_trace(
    source: str | Path,
    *,
    format: str = "auto",
    length_field: str | None = None,
    sample_field: str | None = None,
    tokenizer: str | None = None,
    model: str | None = None,
    limit: int | None = None,
    sample: int | None = None,
    seed: int = 0,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Trace:
    """Load a trace of requests with their response lengths.

    Args:
        source: a file (JSON list, JSON lines, CSV, Parquet; text also compressed with gzip, bzip2, xz or zstd) or a
            hub id (``owner/name``).
        format: ``"auto"``, or the name of a format (:data:`~ecoserve.data.formats.FORMATS`).
        length_field: where response length (tokens) is found, e.g. ``"vicuna_7b_tokens[3]"``: in the row; in a chat
        in the
            answer's own message. Rows without it are dropped and counted.
        sample_field: a field with a list of RLs of several answers to the prompt, e.g. ``"vicuna_7b_tokens"``. The
            one that ``length_field`` names is left out of :attr:`Record.sample_tokens`.
        tokenizer: path or hub id of the served model's tokenizer. Counts prompts, and answers where there is no
            ``length_field`` (plus one for EOS where the answer was not cut off).
        model: name of the model that gave the answers, where the trace does not say it.
        limit: stop after this many records.
        sample: load this many records, drawn from all (or from the first ``limit``), each as likely as any other.
        seed: seed of the draw.
        workers: processes that parse a large file; default: as many as are worth it (:func:`stream_trace`).
        progress: called with the bytes read and the size of the file. Default: a bar, on a terminal.

    Returns:
        The trace, its records in the order of the file. Without ``length_field`` and ``tokenizer``, lengths are the
        trace's own counts if most of the first 10,000 exchanges have one (others are then dropped and counted), else
        characters / 4.0.

    Raises:
        TraceError: if the source cannot be read or recognised, holds no usable record, or more than fit into memory.
        RunError: if a process that parses was killed.
    """
    if sample is not None and sample < 1:
        raise TraceError(f"a sample of {sample} records leaves nothing to load", fix="give 1 or more")
    if seed < 0:
        raise TraceError(f"a seed of {seed} cannot be used", fix="give 0 or more")
    with _bar(source, progress) as show:
        stream = stream_trace(
            source,
            format=format,
            length_field=length_field,
            sample_field=sample_field,
            tokenizer=tokenizer,
            model=model,
            limit=limit,
            workers=workers,
            progress=show,
            # The fingerprint is taken at the end, when all is known about the records.
        ).without_fingerprint()
        with closing(_guarded(stream, limit) if sample is None else stream.batches()) as batches:
            if sample is None:
                records = [record for batch in batches for record in batch]
            else:
                reservoir = Reservoir[Record](sample, seed)
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
    return Trace(tuple(records), stream.source, stream.format, fingerprint(records), *sources)


def _bar(source: str | Path, progress: Progress | None) -> AbstractContextManager[Progress | None]:
    if progress is not None or not sys.stderr.isatty():
        return nullcontext(progress)
    return reading_bar(f"reading {Path(source).name}")


def _guarded(stream: TraceStream, limit: int | None) -> Generator[list[Record], None, None]:
    """The batches of ``stream``, as long as those still to come will fit into memory beside those that came.

    ``limit``: records at most, if so many were asked for.

    Raises:
        TraceError: if they will not.
    """
    count, check = 0, 0
    weight: float | None = None
    for batch in stream.batches():
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
