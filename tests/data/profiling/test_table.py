"""The table: what is kept of a record, in how much memory, and the same from a stream as from a loaded trace."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from profiled import skewed, table_of, trace_of

from ecoserve.data import LoadReport, Record, load_trace, stream_trace
from ecoserve.data.profiling import compare_traces, profile_trace, read_table
from ecoserve.data.profiling.summaries import conversations_of
from ecoserve.data.profiling.table import BYTES_PER_RECORD, TraceTable, cap_of, prompt_hash
from ecoserve.data.records import Message
from ecoserve.errors import TraceError


class Endless:
    """A stream whose records are made when they are asked for, and that counts how many were held on to."""

    length_source = prompt_length_source = "trace"
    sha256 = "0" * 64
    source, format = "endless", "records"

    def __init__(self, batches: int, size: int) -> None:
        self.report = LoadReport()
        self._batches, self._size = batches, size

    def batches(self) -> Iterator[list[Record]]:
        for b in range(self._batches):
            yield [
                Record(
                    f"c{b}-{i}", prompt=f"{b} {i} " + "x" * 400, response="y" * 400, response_tokens=i % 500 + 1,
                    prompt_tokens=7, arrival_s=float(b),
                )
                for i in range(self._size)
            ]  # fmt: skip

    def cap(self) -> int | None:
        return None


def test_a_record_costs_what_is_said() -> None:
    table = table_of(skewed(1000))
    assert table.nbytes == 1000 * BYTES_PER_RECORD
    with_samples = table_of(skewed(1000), sample_tokens=[(1, 2, 3)] * 1000)
    assert with_samples.nbytes == 1000 * (BYTES_PER_RECORD + 12)


def test_memory_grows_by_the_table_and_not_by_the_texts() -> None:
    """30,000 records with 800 characters each are 25 MB of text; what is held is the table, at most twice."""

    def peak(batches: int) -> int:
        tracemalloc.start()
        table = read_table(Endless(batches, 1000), language_sample=50)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len(table) == batches * 1000
        return most

    small, large = peak(10), peak(30)
    assert (large - small) / 20_000 < 2.2 * BYTES_PER_RECORD


def same_tables(a: TraceTable, b: TraceTable) -> bool:
    return all(
        np.array_equal(getattr(a, f.name), getattr(b, f.name), equal_nan=f.name == "arrival")
        for f in fields(TraceTable)
        if f.name not in ("origin", "languages", "models", "splits")
    )


def test_a_stream_gives_the_table_of_the_loaded_trace(tmp_path: Path) -> None:
    """Also the cap, which a stream only knows at its end."""
    path = tmp_path / "trace.jsonl"
    path.write_text("".join(
        json.dumps({"id": f"c{i}", "prompt": f"q {i // 2}", "response_tokens": int(n), "model": f"m{i % 3}"}) + "\n"
        for i, n in enumerate(np.minimum(skewed(3000), 300))
    ))  # fmt: skip
    loaded, streamed = read_table(load_trace(path)), read_table(stream_trace(path))
    assert loaded.censored.sum() > 100
    assert same_tables(loaded, streamed)
    assert loaded.models == streamed.models == ("m0", "m1", "m2")
    # The fingerprint of a stream is of the records before the cap was known.
    profiles = [
        p.model_copy(update={"trace": p.trace.model_copy(update={"sha256": ""})})
        for p in (profile_trace(loaded), profile_trace(streamed))
    ]
    assert profiles[0] == profiles[1]


def test_prompts_differ_by_their_whole_context() -> None:
    def asked(*said: str) -> int:
        return prompt_hash(Record("c", prompt=said[-1], messages=tuple(Message("user", s) for s in said)))

    assert asked("a", "b") != asked("b")
    assert asked("ab") != asked("a", "b")
    assert prompt_hash(Record("x", prompt="b")) == asked("b")
    assert prompt_hash(Record("c")) == 0
    pieces = Record("c", prompt_tokens=9, prefix_hashes=(1, 2))
    assert prompt_hash(pieces) == prompt_hash(Record("d", prompt_tokens=9, prefix_hashes=(1, 2))) != 0


def test_lengths_that_no_answer_can_have_are_left_out() -> None:
    table = table_of([0, 5, -3, 7, 2**21], sample_tokens=[(), (0, 6), (), (8,), ()])
    assert table.response.tolist() == [5, 7]
    assert (table.sample_count.tolist(), table.samples.tolist()) == ([1, 1], [6, 8])
    with pytest.raises(TraceError, match=r"made\.jsonl: no record has a response length"):
        table_of([0, 0])


def test_a_cap_is_where_most_of_the_cut_off_are() -> None:
    assert cap_of(table_of([10, 20, 20, 20], censored=[True, True, True, False])) == 20
    assert cap_of(table_of([10, 20, 30], censored=[True, True, True])) is None
    assert cap_of(table_of([10, 20, 30])) is None


@pytest.mark.parametrize("limit", [0, -5])
def test_a_limit_below_one_is_refused(limit: int) -> None:
    with pytest.raises(TraceError, match="leaves no room"):
        profile_trace(trace_of([1, 2]), max_tokens=limit)


def test_a_long_trace_is_thinned_by_prompt_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    lengths = (np.repeat(skewed(3000), 3) * rng.lognormal(0, 0.2, 9000)).astype(int) + 1
    table = table_of(
        lengths,
        prompt=[f"question {i // 3}" for i in range(9000)],
        sample_tokens=[(i + 1,) for i in range(9000)],
        arrival_s=[float(i) for i in range(9000)],
    )
    part = table.thinned(3000)
    assert 2700 < len(part) < 3300
    # All answers to a prompt or none, each with its own samples and language.
    assert set(np.unique(part.prompt_hash, return_counts=True)[1]) == {3}
    rows = part.arrival.astype(int)
    assert part.response.tolist() == lengths[rows].tolist()
    assert part.samples.tolist() == (rows + 1).tolist()
    assert len(part.languages.rows) == len(part)
    assert table.thinned(9000) is table
    whole = profile_trace(table)
    monkeypatch.setattr("ecoserve.data.profiling.profile.MOST_ROWS", 3000)
    found = profile_trace(table)
    # What hangs on counts is of all records, the rest of some, and nearly the same.
    assert (found.response, found.tail, found.arrivals) == (whole.response, whole.tail, whole.arrivals)
    assert any(f"the rest is of {len(part):,}" in note for note in found.notes)
    assert found.same_prompt is not None
    assert whole.same_prompt is not None
    assert found.same_prompt.prompts == len(part) // 3
    assert found.same_prompt.icc == pytest.approx(whole.same_prompt.icc, abs=0.03)
    assert found.drift is not None
    assert sum(w.n for w in found.drift.windows) == len(part)


def test_long_traces_keep_the_same_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ecoserve.data.profiling.compare.MOST_ROWS", 1000)
    prompts = [f"question {i}" for i in range(4000)]
    a, b = trace_of(skewed(4000), prompt=prompts), trace_of(skewed(4000) * 2, prompt=prompts)
    c = compare_traces(a, b)
    assert c.a.records == 4000
    assert 850 < c.shared_prompts[0].prompts < 1150
    assert c.shared_prompts[0].ratio == pytest.approx(2.0)


def test_the_design_effect_of_a_long_trace_is_that_of_whole_conversations(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = np.repeat(skewed(2000), 5)
    table = table_of(lengths, conversation=[f"c{i // 5}" for i in range(10_000)])
    monkeypatch.setattr("ecoserve.data.profiling.summaries.MOST_ROWS", 2000)
    number, effect = conversations_of(table)
    assert number == 2000
    assert effect == pytest.approx(5.0, rel=0.05)
