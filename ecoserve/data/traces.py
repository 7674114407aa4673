"""Opening and loading a trace of any kind: a file, a data set on the hub, or a workload file."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Unpack

from ecoserve.data.loading import ReadOptions, collect, open_trace, reading_bar
from ecoserve.data.reading import Progress, is_workload
from ecoserve.data.records import Trace
from ecoserve.data.streaming import TraceStream
from ecoserve.errors import TraceError


def stream_trace(
    source: str | Path, *, progress: Progress | None = None, **options: Unpack[ReadOptions]
) -> TraceStream:
    """Open a trace of any size as a stream of records.

    Args:
        source: a file (JSON list, JSON lines, CSV, Parquet; text also compressed with gzip, bzip2, xz or zstd), a hub
            id (``owner/name``), or a workload file (YAML).
        progress: called after every batch of rows.
        options: see :class:`~ecoserve.data.loading.ReadOptions`.

    Raises TraceError if the source cannot be opened or recognised; the rest is found while reading.
    """
    rows = None
    if is_workload(source):
        # pydantic and YAML are imported for workload files alone.
        from ecoserve.data.workloads import workload_rows

        rows = workload_rows(source, options.get("limit"), shown=progress is not None)
    return open_trace(source, rows=rows, progress=progress, **options)


def load_trace(
    source: str | Path,
    *,
    sample: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    **options: Unpack[ReadOptions],
) -> Trace:
    """Load a trace of requests with their response lengths.

    Args:
        source, options: as in :func:`stream_trace`.
        sample: load this many records, drawn by ``seed`` from all (or from the first ``limit``).
        progress: as in :func:`stream_trace`. Default: a bar, on a terminal.

    Returns:
        The trace in the order of the file. Without ``length_field`` and ``tokenizer``, lengths are its own counts if
        most of the first 10,000 exchanges have one (others are then dropped and counted), else characters / 4.0.

    Raises TraceError if the source cannot be read or recognised, holds no usable record, or more than fit into memory.
    """
    if sample is not None and sample < 1:
        raise TraceError(f"a sample of {sample} records leaves nothing to load", fix="give 1 or more")
    if seed < 0:
        raise TraceError(f"a seed of {seed} cannot be used", fix="give 0 or more")
    bar: AbstractContextManager[Progress | None] = nullcontext(progress)
    if progress is None and sys.stderr.isatty():
        bar = reading_bar(f"reading {Path(source).name}")
    with bar as show:
        stream = stream_trace(source, progress=show, **options)
        return collect(stream, limit=options.get("limit"), sample=sample, seed=seed)
