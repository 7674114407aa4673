"""Our own file format gives back what was saved, and never leaves half a file."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ecoserve.data import LoadReport, Message, Record, Trace, fingerprint, load_trace, poisson_arrivals, save_trace
from ecoserve.errors import TraceError

TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=30).filter(lambda s: bool(s.strip()))
NAME = st.none() | TEXT
LENGTH = st.integers(1, 2**20)

RECORDS = st.builds(
    Record,
    conversation=TEXT,
    turn=st.integers(0, 50),
    prompt=NAME,
    messages=st.lists(st.builds(Message, role=TEXT, content=st.text(st.characters(codec="utf-8"))), max_size=3).map(
        tuple
    ),
    response=NAME,
    response_tokens=LENGTH,
    prompt_tokens=LENGTH,
    sample_tokens=st.lists(LENGTH, max_size=4).map(tuple),
    model=NAME,
    arrival_s=st.none() | st.floats(0, 1e9),
    split=NAME,
    censored=st.booleans(),
    sample=st.integers(0, 9),
    finish_reason=NAME,
    max_tokens=st.none() | LENGTH,
    prefix_hashes=st.lists(st.integers(0, 2**53), max_size=4).map(tuple),
)


def trace_of(records: list[Record], **more: Any) -> Trace:
    report = LoadReport(rows_in=len(records), kept=len(records))
    return Trace(tuple(records), "here", "alpaca", fingerprint(records), "tokenizer:t", report, "tokenizer:p", **more)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(RECORDS, min_size=1, max_size=8, unique_by=lambda r: (r.conversation, r.turn)), st.booleans())
def test_a_saved_trace_comes_back_equal(tmp_path: Path, records: list[Record], packed: bool) -> None:
    trace = trace_of(records)
    path = save_trace(trace, tmp_path / ("t.jsonl.gz" if packed else "t.jsonl"))
    again = load_trace(path)
    assert again.records == trace.records
    assert again.sha256 == trace.sha256
    assert (again.format, again.source) == ("records", str(path))
    assert (again.length_source, again.prompt_length_source) == ("tokenizer:t", "tokenizer:p")
    assert (again.report.rows_in, again.report.kept, again.report.dropped) == (len(records), len(records), {})


def test_lengths_and_arrivals_alone_make_a_trace(tmp_path: Path) -> None:
    times = poisson_arrivals(5, 2.0, seed=1).tolist()
    records = [Record(str(i), response_tokens=5 + i, prompt_tokens=7, arrival_s=t) for i, t in enumerate(times)]
    trace = trace_of(records)
    again = load_trace(save_trace(trace, tmp_path / "t.jsonl"))
    assert again.records == trace.records


def test_the_same_trace_gives_the_same_bytes(tmp_path: Path) -> None:
    trace = trace_of([Record("a", response_tokens=3, prompt="x")])
    one, two = save_trace(trace, tmp_path / "one.jsonl.gz"), save_trace(trace, tmp_path / "two.jsonl.gz")
    assert one.read_bytes() == two.read_bytes()


def test_lines_picked_by_hand_load_without_the_first_line(tmp_path: Path) -> None:
    trace = trace_of([Record(str(i), response_tokens=3 + i, prompt=f"p{i}") for i in range(3)])
    path = save_trace(trace, tmp_path / "t.jsonl")
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[3], lines[1], lines[0], lines[2]]))
    again = load_trace(path)
    assert [r.conversation for r in again.records] == ["2", "0", "1"]
    assert again.length_source == "trace"
    assert again.prompt_length_source == "characters/4.0"


def test_equal_answers_of_two_requests_are_kept_and_the_same_line_twice_is_not(tmp_path: Path) -> None:
    trace = trace_of([Record(c, prompt="p", response="a", response_tokens=2) for c in ("x", "y")])
    path = save_trace(trace, tmp_path / "t.jsonl")
    path.write_text(path.read_text() + path.read_text().splitlines()[1])
    again = load_trace(path)
    assert len(again) == 2
    assert again.report.dropped == {"duplicate": 1}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"conversation": None}, "no conversation id"),
        ({"prompt": 5}, "prompt is not text"),
        ({"prompt": " "}, "empty prompt"),
        ({"messages": "hello"}, "messages are not role and content"),
        ({"messages": [{"role": "user"}]}, "messages are not role and content"),
        ({"arrival_s": "noon"}, "arrival is not a number"),
        ({"arrival_s": -1.0}, "arrival is not a number"),
        ({"arrival_s": float("nan")}, "arrival is not a number"),
        ({"arrival_s": True}, "arrival is not a number"),
        ({"sample_tokens": [0]}, "sample_tokens are not lengths"),
        ({"sample_tokens": 5}, "sample_tokens are not lengths"),
        ({"prefix_hashes": 5}, "prefix_hashes are not numbers"),
        ({"prefix_hashes": ["a"]}, "prefix_hashes are not numbers"),
        ({"turn": -1}, "turn is not a number from 0"),
        ({"turn": "first"}, "turn is not a number from 0"),
        ({"sample": 0.5}, "sample is not a number from 0"),
        ({"conversation": {}}, "no conversation id"),
        ({"arrival_s": 10**400}, "arrival is not a number"),
        ({"response_tokens": 0}, "absurd length"),
        ({"response_tokens": 2**20 + 1}, "absurd length"),
        ({"response_tokens": "many"}, "no answer"),
        ({"response": 5}, "answer is not text"),
    ],
)
def test_a_line_that_is_no_record_is_dropped_and_counted(tmp_path: Path, row: dict[str, Any], reason: str) -> None:
    good = {"conversation": "a", "turn": 0, "response_tokens": 5}
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps(good) + "\n" + json.dumps({**good, "conversation": "b", **row}))
    trace = load_trace(path)
    assert [r.conversation for r in trace.records] == ["a"]
    assert trace.report.dropped == {reason: 1}


def test_a_later_layout_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"ecoserve_trace": 99}\n')
    with pytest.raises(TraceError, match="layout 99"):
        load_trace(path)


@pytest.mark.parametrize("name", ["t.json", "t.gz", "t", "t.parquet"])
def test_a_trace_is_saved_under_a_name_that_says_what_it_is(tmp_path: Path, name: str) -> None:
    with pytest.raises(TraceError, match=r"\.jsonl"):
        save_trace(trace_of([Record("a")]), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_save_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save_trace(trace_of([Record("a", response_tokens=1)]), tmp_path / "t.jsonl")
    before = path.read_bytes()

    def full(record: Record) -> dict[str, Any]:
        raise OSError(28, "No space left on device")

    trace = trace_of([Record("b")])
    monkeypatch.setattr(Record, "as_row", full)
    with pytest.raises(TraceError, match="No space left on device"):
        save_trace(trace, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_made_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(TraceError, match="cannot be written"):
        save_trace(trace_of([Record("a")]), tmp_path / "file" / "t.jsonl")


def test_the_fingerprint_is_of_the_records_not_of_the_file(tmp_path: Path) -> None:
    trace = trace_of([Record(c, response_tokens=3, prompt_tokens=1, prompt=c) for c in ("a", "b")])
    packed = save_trace(trace, tmp_path / "t.jsonl.gz")
    plain = tmp_path / "u.jsonl"
    with gzip.open(packed) as f, plain.open("wb") as g:
        shutil.copyfileobj(f, g)
    assert load_trace(packed).sha256 == load_trace(plain).sha256 == trace.sha256
    assert trace.with_records(trace.records[:1]).sha256 != trace.sha256
    assert trace.with_records(trace.records[::-1]).sha256 != trace.sha256
