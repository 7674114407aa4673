"""Loading a stream: all records or a sample, as long as they fit into memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecoserve.data import Message, Record, load_trace, loading, stream_trace
from ecoserve.data.loading import Reservoir, available_memory, bytes_of
from ecoserve.errors import TraceError

Write = Callable[..., Path]


def rows(n: int) -> list[dict[str, Any]]:
    return [{"instruction": f"Say number {i}", "output": "ok " * (i % 40 + 1), "n": i % 500 + 1} for i in range(n)]


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
    assert len([r for b in stream_trace(path, limit=15_000).batches() for r in b]) == 15_000


@pytest.mark.usefixtures("short_of_memory")
def test_where_memory_is_not_known_nothing_is_refused(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "available_memory", lambda: None)
    assert len(load_trace(write(rows(12_000), "t.jsonl"))) == 12_000


# -- the reservoir -----------------------------------------------------------------------------------------------------


def drawn(n: int, size: int, seed: int, cuts: list[int]) -> list[int]:
    reservoir = Reservoir[int](size, seed)
    ends = [*sorted(c % (n + 1) for c in cuts), n]
    start = 0
    for end in ends:
        reservoir.add(range(start, end))
        start = end
    assert reservoir.seen == n
    return reservoir.items()


@given(st.integers(0, 200), st.integers(1, 50), st.integers(0, 5), st.lists(st.integers(0, 1000), max_size=6))
def test_it_has_the_size_keeps_the_order_and_does_not_see_batches(
    n: int, size: int, seed: int, cuts: list[int]
) -> None:
    sample = drawn(n, size, seed, [])
    assert len(sample) == min(n, size)
    assert sample == sorted(set(sample))
    assert set(sample) <= set(range(n))
    assert drawn(n, size, seed, cuts) == sample


def test_each_item_is_as_likely_as_any_other() -> None:
    n, size, runs = 40, 10, 4000
    counts = Counter(item for seed in range(runs) for item in drawn(n, size, seed, []))
    share = np.array([counts[i] for i in range(n)]) / runs
    # 40 shares of 0.25, each with a standard error of 0.0068.
    assert abs(share - size / n).max() < 0.03
    assert abs(share[:10].mean() - share[-10:].mean()) < 0.02


def test_another_seed_draws_others() -> None:
    assert len({tuple(drawn(1000, 10, seed, [])) for seed in range(20)}) == 20


# -- memory ------------------------------------------------------------------------------------------------------------


def test_shared_texts_are_counted_once() -> None:
    text = "x" * 100_000
    alone = bytes_of([Record("a", prompt=text)])
    message = Message("user", text)
    chats = [Record(str(i), prompt=text, messages=(message,)) for i in range(10)]
    assert 100_000 < alone < 101_000
    assert 100_000 < bytes_of(chats) < 105_000
    assert bytes_of([Record("a", prompt="y" * 100_000), Record("b", prompt=text)]) > 200_000


def test_this_machine_has_memory() -> None:
    assert (available_memory() or 0) > 1 << 20


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(loading, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(loading, "_CGROUP", tmp_path)
    (tmp_path / "meminfo").write_text("MemTotal: 100 kB\nMemAvailable:   64 kB\n")
    return tmp_path


def limit(folder: Path, limit: str, used: int, files: int) -> None:
    (folder / "memory.max").write_text(limit)
    (folder / "memory.current").write_text(str(used))
    (folder / "memory.stat").write_text(f"anon 5\ninactive_file {files}\n")


def test_a_containers_limit_counts(machine: Path) -> None:
    assert available_memory() == 64 * 1024
    limit(machine, "20000\n", 12000, 3000)
    assert available_memory() == 11000
    limit(machine, "2000000\n", 0, 0)
    assert available_memory() == 64 * 1024


@pytest.mark.parametrize("text", ["", "MemAvailable:\n", "MemAvailable: much\n"])
def test_what_is_not_known_is_not_guessed(machine: Path, text: str) -> None:
    limit(machine, "max\n", 12000, 3000)
    (machine / "meminfo").write_text(text)
    assert available_memory() is None
    (machine / "meminfo").unlink()
    assert available_memory() is None
