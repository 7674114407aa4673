"""A stream gives what loading gives, says at its end what only the end tells, and keeps nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ecoserve.data import Record, load_trace, loading, stream_trace
from ecoserve.errors import TraceError

Write = Callable[..., Path]


def rows(n: int) -> list[dict[str, Any]]:
    return [{"instruction": f"Say number {i}", "output": "ok " * (i % 40 + 1), "n": i % 500 + 1} for i in range(n)]


def streamed(path: Path, **how: Any) -> list[Record]:
    return [record for batch in stream_trace(path, **how).batches() for record in batch]


@pytest.mark.parametrize("name", ["t.json", "t.jsonl", "t.jsonl.gz", "t.parquet"])
def test_a_stream_gives_what_loading_gives(write: Write, name: str) -> None:
    path = write([*rows(2500), rows(1)[0]], name)
    trace = load_trace(path)
    stream = stream_trace(path)
    batches = list(stream.batches())
    assert [len(b) for b in batches] == [1000, 1000, 500]
    assert tuple(record for batch in batches for record in batch) == trace.records
    assert (stream.source, stream.format, stream.sha256) == (trace.source, trace.format, trace.sha256)
    assert (stream.length_source, stream.prompt_length_source) == (trace.length_source, trace.prompt_length_source)
    assert stream.report == trace.report
    assert stream.report.dropped == {"duplicate": 1}


def test_what_only_the_end_tells_is_known_at_the_end(write: Write) -> None:
    stream = stream_trace(write(rows(1500)))
    with pytest.raises(RuntimeError, match="first batch"):
        _ = stream.length_source
    batches = stream.batches()
    next(batches)
    assert stream.length_source == "characters/4.0"
    with pytest.raises(RuntimeError, match="last batch"):
        _ = stream.sha256
    with pytest.raises(RuntimeError, match="last batch"):
        stream.cap()
    assert [len(b) for b in batches] == [500]
    assert len(stream.sha256) == 64
    with pytest.raises(RuntimeError, match="read once"):
        next(stream.batches())


def test_the_cap_is_told_at_the_end_and_loading_marks_by_it(write: Write) -> None:
    path = write([{**r, "n": min(r["n"], 300)} for r in rows(1500)])
    stream = stream_trace(path, length_field="n")
    records = [record for batch in stream.batches() for record in batch]
    assert (stream.cap(), any(r.censored for r in records)) == (300, False)
    marked = load_trace(path, length_field="n")
    assert {r.response_tokens for r in marked.records if r.censored} == {300}
    assert marked.report.noted == {"answers cut off": sum(r.response_tokens == 300 for r in records)}


def test_progress_tells_the_bytes_of_the_file(write: Write) -> None:
    path = write(rows(3000), "t.jsonl")
    seen: list[tuple[int, int]] = []
    streamed(path, workers=0, progress=lambda done, size: seen.append((done, size)))
    assert seen == sorted(seen)
    assert seen[-1] == (path.stat().st_size, path.stat().st_size)


def test_a_stream_that_is_left_reads_no_further(write: Write) -> None:
    path = write(rows(12_000), "t.jsonl")
    path.write_text(path.read_text() + '{"instruction": ')
    batches = stream_trace(path, workers=0).batches()
    # The first 10,000 decide where lengths come from.
    assert len(next(batches)) == 1000
    batches.close()
    with pytest.raises(TraceError, match="cut off after 12,000 rows"):
        streamed(path, workers=0)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """In a process that reads and parses alone."""
    path = tmp_path / "t.jsonl"
    text = "y" * 32_000
    with path.open("w") as file:
        for i in range(3000):
            file.write(json.dumps({"instruction": f"{i}", "output": text}) + "\n")
    # Not getrusage's figure, which begins with the memory of the process that started this one.
    code = (
        "import sys; from pathlib import Path; from ecoserve.data import stream_trace\n"
        "def peak(): return int(Path('/proc/self/status').read_text().partition('VmHWM:')[2].split()[0])\n"
        "before = peak()\n"
        "n = sum(len(b) for b in stream_trace(sys.argv[1], workers=0).batches())\n"
        "print(n, before, peak())"
    )
    out = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True).stdout
    count, before, after = map(int, out.split())
    assert count == 3000
    # The texts that decide where lengths come from (32 MiB), and a few blocks.
    assert (after - before) * 1024 < 1 << 26


@pytest.mark.parametrize(("how", "problem"), [({"limit": 0}, "limit of 0"), ({"workers": -1}, "-1 workers")])
def test_what_makes_no_sense_is_refused(write: Write, how: dict[str, Any], problem: str) -> None:
    with pytest.raises(TraceError, match=problem):
        stream_trace(write(rows(2)), **how)


# -- samples -----------------------------------------------------------------------------------------------------------


def test_a_sample_is_of_all_records_and_says_so(write: Write) -> None:
    path = write([*rows(2000), rows(1)[0]])
    whole = load_trace(path)
    trace = load_trace(path, sample=300, seed=5)
    assert trace.records == tuple(r for r in whole.records if r in set(trace.records))
    assert (len(trace), trace.report.kept, trace.report.rows_in) == (300, 300, 2001)
    assert trace.report.dropped == {"not in the sample": 1700, "duplicate": 1}
    assert trace.records == load_trace(path, sample=300, seed=5).records
    assert trace.records != load_trace(path, sample=300, seed=6).records
    # Of a first part, if there is a limit.
    first = {r.prompt for r in load_trace(path, limit=400).records}
    assert {r.prompt for r in load_trace(path, sample=300, limit=400).records} < first
    assert load_trace(path, sample=5000).records == whole.records


def test_a_sample_is_marked_by_the_cap_of_all(write: Write) -> None:
    path = write([{**r, "n": min(r["n"], 300)} for r in rows(1500)])
    trace = load_trace(path, length_field="n", sample=50)
    assert [r.censored for r in trace.records] == [r.response_tokens == 300 for r in trace.records]
    assert trace.report.noted["answers cut off"] == sum(r.censored for r in trace.records) > 0


@pytest.mark.parametrize(("how", "problem"), [({"sample": 0}, "sample of 0"), ({"seed": -1}, "seed of -1")])
def test_a_sample_that_is_none_is_refused(write: Write, how: dict[str, Any], problem: str) -> None:
    with pytest.raises(TraceError, match=problem):
        load_trace(write(rows(2)), **how)


# -- records that do not fit -------------------------------------------------------------------------------------------


@pytest.fixture
def short_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "_CHECKED_FROM", 1)
    monkeypatch.setattr(loading, "_CHECKED_EVERY", 1 << 14)
    monkeypatch.setattr(loading, "available_memory", lambda: 100_000)


@pytest.mark.usefixtures("short_of_memory")
def test_a_trace_that_does_not_fit_is_refused_before_memory_is_full(write: Write) -> None:
    path = write(rows(30_000), "t.jsonl")
    with pytest.raises(TraceError, match=r"would take about 0 GiB of memory.*load a sample") as caught:
        load_trace(path)
    assert str(caught.value).startswith(str(path))
    assert len(load_trace(path, sample=100)) == 100
    assert len(load_trace(path, limit=100)) == 100
    assert len(streamed(path, limit=15_000)) == 15_000


@pytest.mark.usefixtures("short_of_memory")
def test_where_memory_is_not_known_nothing_is_refused(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "available_memory", lambda: None)
    assert len(load_trace(write(rows(12_000), "t.jsonl"))) == 12_000
