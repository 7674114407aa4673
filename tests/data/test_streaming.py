"""A stream gives what loading gives, says at its end what only the end tells, and keeps nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ecoserve.data import Record, load_trace, stream_trace
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


def test_the_cap_is_known_at_the_end_and_loading_marks_by_it(write: Write) -> None:
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
    streamed(path, progress=lambda done, size: seen.append((done, size)))
    assert seen == sorted(seen)
    assert seen[-1] == (path.stat().st_size, path.stat().st_size)


def test_a_stream_that_is_left_reads_no_further(write: Write) -> None:
    path = write(rows(12_000), "t.jsonl")
    path.write_text(path.read_text() + '{"instruction": ')
    batches = stream_trace(path).batches()
    # The first 10,000 decide where lengths come from.
    assert len(next(batches)) == 1000
    batches.close()
    with pytest.raises(TraceError, match="cut off after 12,000 rows"):
        streamed(path)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
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
        "n = sum(len(b) for b in stream_trace(sys.argv[1]).batches())\n"
        "print(n, before, peak())"
    )
    out = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True).stdout
    count, before, after = map(int, out.split())
    assert count == 3000
    # The texts that decide where lengths come from (32 MiB), and a few blocks.
    assert (after - before) * 1024 < 1 << 26


@pytest.mark.parametrize(("how", "problem"), [({"limit": 0}, "limit of 0")])
def test_what_makes_no_sense_is_refused(write: Write, how: dict[str, Any], problem: str) -> None:
    with pytest.raises(TraceError, match=problem):
        stream_trace(write(rows(2)), **how)


def test_an_option_of_another_name_is_an_error(write: Write) -> None:
    with pytest.raises(TypeError, match="no option 'length_fields'; options are format, length_field"):
        load_trace(write(rows(2)), length_fields="n")  # type: ignore[call-arg]
