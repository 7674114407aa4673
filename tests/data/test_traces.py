"""Loading keeps what is usable, counts what is not, and says where lengths come from."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecoserve.data import LoadReport, TraceStream, load_trace, save_trace
from ecoserve.data.cleaning import RowReader
from ecoserve.data.fields import FieldPath
from ecoserve.data.formats import Hints, get_format
from ecoserve.data.measuring import LengthHistogram
from ecoserve.errors import TraceError

Write = Callable[..., Path]


def rows(n: int, **more: Any) -> list[dict[str, Any]]:
    return [
        {"instruction": f"Say number {i}", "input": "", "output": f"This is number {i}, as you asked.", **more}
        for i in range(n)
    ]


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = (
        "import sys, ecoserve.data; "
        "print([m for m in ('datasets', 'transformers', 'torch', 'pyarrow', 'scipy', 'sklearn') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_json_needs_none_of_it_either(write: Write) -> None:
    code = (
        f"import sys, ecoserve.data as d; t = d.load_trace({str(write(rows(3)))!r}); d.split_trace(t); "
        "print([m for m in ('datasets', 'transformers', 'torch', 'pyarrow') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


# -- what is dropped -------------------------------------------------------------------------------------


def test_dirt_is_dropped_and_every_row_accounted_for(write: Write) -> None:
    dirty = [
        *rows(3),
        rows(1)[0],
        {"instruction": "", "output": "a"},
        {"instruction": "p", "output": ""},
        {"instruction": "p", "output": "  "},
        {"instruction": "p", "output": None},
        {"instruction": "p", "output": 7},
        {"instruction": 7, "output": "a"},
        {"instruction": "p", "output": "\udce9"},
        "not a row",
        None,
    ]
    report = load_trace(write(dirty)).report
    assert report.dropped == {
        "duplicate": 1,
        "empty prompt": 1,
        "empty answer": 2,
        "no answer": 1,
        "answer is not text": 1,
        "prompt is not text": 1,
        "answer is not valid Unicode": 1,
        "row is not an object": 2,
    }
    assert (report.rows_in, report.kept) == (13, 3)
    assert report.exchanges == 13


@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "instruction": st.sampled_from(["a", "b", "", None, 3]),
                "output": st.sampled_from(["x", "y", "", None, 3]),
                "tokens": st.sampled_from([1, 5, 0, -1, 2.5, None, "7", True, 2**21, float("inf")]),
            }
        ),
        min_size=1,
        max_size=30,
    ),
    st.booleans(),
)
def test_kept_and_dropped_add_up(lines: list[dict[str, Any]], by_field: bool) -> None:
    form = get_format("alpaca")
    reader = RowReader(form, form.opened([], Hints()), FieldPath.parse("tokens") if by_field else None)
    stream = TraceStream("memory", [], iter(lines), reader, [*lines])
    kept = []
    try:
        kept = [record for batch in stream.batches() for record in batch]
    except TraceError:
        assert stream.report.kept == 0
    assert stream.report.kept == len(kept)
    assert stream.report.rows_in == len(lines) == stream.report.exchanges
    if by_field:
        assert {r.response_tokens for r in kept} <= {1, 5, 7}
    else:
        assert all(r.response in ("x", "y") for r in kept)


def test_chat_rows_are_counted_by_exchange(write: Write) -> None:
    turns = [{"from": who, "value": f"{who} {i}"} for i in range(3) for who in ("human", "gpt")]
    late = [{"from": "gpt", "value": "go on"}, *turns]
    trace = load_trace(
        write(
            [
                {"id": "a", "conversations": turns},
                {"id": "b", "conversations": []},
                {"id": "c", "conversations": turns},
                {"id": "d", "conversations": late},
            ]
        )
    )
    assert trace.report.rows_in == 4
    assert trace.report.kept == 6
    assert trace.report.dropped == {"no conversation": 1, "duplicate": 3}
    assert trace.report.noted == {"conversation starts with an answer": 1}
    assert [(r.conversation, r.turn) for r in trace.records] == [(c, t) for c in "ad" for t in range(3)]


def test_the_report_reads_as_a_sentence() -> None:
    report = LoadReport(rows_in=1200, kept=1190)
    report.drop("empty answer", 8)
    report.drop("duplicate", 2)
    report.note("answers cut off", 4)
    report.note("nothing", 0)
    assert str(report) == (
        "1,200 rows in, 1,190 records kept, 10 dropped (8 empty answer, 2 duplicate); of those kept: 4 answers cut off"
    )
    assert str(LoadReport(3, 3)) == "3 rows in, 3 records kept, 0 dropped"


def test_a_limit_stops_reading(write: Write) -> None:
    path = write(rows(50), "t.jsonl")
    path.write_text(path.read_text() + "this is not JSON")
    trace = load_trace(path, limit=30)
    assert (len(trace), trace.report.rows_in) == (30, 30)
    assert load_trace(write(rows(5), "u.json"), limit=10).report.kept == 5


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_below_one_is_refused(write: Write, limit: int) -> None:
    with pytest.raises(TraceError, match="limit"):
        load_trace(write(rows(2)), limit=limit)


# -- where lengths come from -----------------------------------------------------------------------------


def test_without_anything_else_characters_are_counted(write: Write) -> None:
    trace = load_trace(write([{"instruction": "x" * 41, "output": "y" * 100}, {"instruction": "a", "output": "b"}]))
    assert (trace.length_source, trace.prompt_length_source) == ("characters/4.0", "characters/4.0")
    assert [(r.prompt_tokens, r.response_tokens) for r in trace.records] == [(10, 25), (1, 1)]


def test_an_answer_longer_than_any_is_dropped(write: Write) -> None:
    trace = load_trace(write([*rows(1), {"instruction": "p", "output": "y" * (4 * 2**20 + 4)}]))
    assert trace.report.dropped == {"absurd length": 1}


def test_the_context_counts_as_the_prompt(write: Write) -> None:
    turns = [("human", "x" * 40), ("gpt", "y" * 80), ("human", "z" * 20), ("gpt", "w" * 12)]
    trace = load_trace(write([{"id": "a", "conversations": [{"from": f, "value": v} for f, v in turns]}]))
    assert [(r.prompt_tokens, r.response_tokens) for r in trace.records] == [(10, 20), (35, 3)]


def test_the_traces_own_counts_come_before_characters(write: Write) -> None:
    own = [{**r, "output_tokens": 10 + i, "prompt_tokens": 5} for i, r in enumerate(rows(4))]
    trace = load_trace(write(own))
    assert (trace.length_source, trace.prompt_length_source) == ("trace", "trace")
    assert [r.response_tokens for r in trace.records] == [10, 11, 12, 13]
    mixed = load_trace(write([*own, *rows(6)[4:]], "mixed.json"))
    assert mixed.length_source == "trace"
    assert mixed.report.dropped == {"no length": 2}
    few = load_trace(write([*own, *rows(20)[4:]], "few.json"))
    assert (few.length_source, len(few)) == ("characters/4.0", 20)


def test_a_field_gives_lengths_and_others_of_it_samples(write: Write) -> None:
    data = [{**r, "runs": {"m": [7, 8.0, 9]}} for r in rows(3)] + rows(5)[3:]
    trace = load_trace(write(data), length_field="runs.m[1]", sample_field="runs.m", model="m-7b")
    assert trace.length_source == "field:runs.m[1]"
    assert [(r.response_tokens, r.sample_tokens, r.model) for r in trace.records] == [(8, (7, 9), "m-7b")] * 3
    assert trace.report.dropped == {"no runs.m[1]": 2}
    assert load_trace(write(data), length_field="runs.m[0]").records[0].sample_tokens == ()
    assert load_trace(write(data), sample_field="runs.m").records[0].sample_tokens == (7, 8, 9)


def test_the_model_a_row_names_is_kept(write: Write) -> None:
    data = rows(2)
    data[0]["generator"] = "its own"
    assert [r.model for r in load_trace(write(data), model="given").records] == ["its own", "given"]


def test_in_a_chat_the_field_is_the_answers_own(write: Write) -> None:
    turns = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a", "n": [3, 4]}]
    trace = load_trace(write([{"id": "a", "conversations": turns}]), length_field="n[1]")
    assert trace.records[0].response_tokens == 4


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("twelve", "n is not a whole number"),
        (2.5, "n is not a whole number"),
        (True, "n is not a whole number"),
        ([3], "n is not a whole number"),
        (0, "absurd length"),
        (-4, "absurd length"),
        (2**20 + 1, "absurd length"),
        (None, "no n"),
    ],
)
def test_a_length_that_is_none_is_dropped(write: Write, value: Any, reason: str) -> None:
    trace = load_trace(write([{**rows(1)[0], "n": 3}, {**rows(2)[1], "n": value}]), length_field="n")
    assert trace.report.dropped == {reason: 1}


@pytest.mark.parametrize("value", [[3, 0], [3, "four"], 5, "ab", [3, 2.5]])
def test_samples_that_are_none_are_dropped(write: Write, value: Any) -> None:
    data = [{**r, "n": v} for r, v in zip(rows(2), ([1, 2], value), strict=True)]
    assert load_trace(write(data), sample_field="n").report.dropped == {"n is not a list of lengths": 1}


def test_an_empty_answer_may_have_a_length_of_its_own(write: Write) -> None:
    data = [{"instruction": "p", "output": "", "n": 4}]
    (record,) = load_trace(write(data), length_field="n").records
    assert (record.response, record.response_tokens) == (None, 4)


def test_a_field_no_row_has_is_named_with_those_there_are(write: Write) -> None:
    path = write(rows(3, vicuna=[1, 2]))
    with pytest.raises(TraceError, match=r"no row has the field vicuna_tokens\[1\].*vicuna \(list of 2\)"):
        load_trace(path, length_field="vicuna_tokens[1]")
    with pytest.raises(TraceError, match="no row has the field vicuna"):
        load_trace(path, length_field="vicuna[2]")


@pytest.mark.parametrize("text", ["", "a[", "a]", "a[x]", "a[-1]", ".a", "a.", "a..b", "[0]", "a[0]b", "a b.[1]", " a"])
def test_what_is_no_field_path_is_refused(text: str) -> None:
    with pytest.raises(TraceError, match="not a field path"):
        FieldPath.parse(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a", {"b": [{"c": 5}, 6]}),
        ("a.b[0].c", 5),
        ("a.b[1]", 6),
        ("a.b[2]", None),
        ("a.b.c", None),
        ("x", "text"),
        ("x[0]", None),
        ("x.y", None),
        ("with space", 1),
        ("m[1][0]", 3),
    ],
)
def test_a_field_path_is_followed(text: str, value: Any) -> None:
    row = {"a": {"b": [{"c": 5}, 6]}, "x": "text", "with space": 1, "m": [[1], [3]]}
    assert FieldPath.parse(text).get(row) == value


# -- answers that were cut off -----------------------------------------------------------------------------


def lengths_with_cap(cap: int, at_cap: int, over: tuple[int, ...] = ()) -> list[int]:
    drawn = np.random.default_rng(0).lognormal(np.log(cap / 5), 0.6, 3000).astype(int) + 1
    return [*(int(n) for n in drawn if n < cap), *[cap] * at_cap, *over]


def find_cap(lengths: list[int]) -> int | None:
    histogram = LengthHistogram()
    histogram.add(lengths)
    return histogram.cap()


@pytest.mark.parametrize("cap", [64, 512, 4096])
def test_a_cap_is_where_lengths_pile_up_at_the_end(cap: int) -> None:
    assert find_cap(lengths_with_cap(cap, 60)) == cap
    assert find_cap(lengths_with_cap(512, 60, (513, 514, 514))) == 512


def test_lengths_without_a_cap_have_none() -> None:
    drawn = np.random.default_rng(1).lognormal(4, 0.8, 5000).astype(int) + 1
    assert find_cap([int(n) for n in drawn]) is None
    assert find_cap([int(n) for n in np.random.default_rng(1).integers(1, 400, 5000)]) is None
    assert find_cap([*range(1, 90), *[90] * 9]) is None
    # Piled up, but not at the end: a habit of the model, not a limit.
    assert find_cap([*lengths_with_cap(512, 60), *range(513, 700)]) is None


def test_answers_at_the_cap_are_marked(write: Write) -> None:
    lengths = lengths_with_cap(512, 60, (513,))
    data = [{**r, "n": n} for r, n in zip(rows(len(lengths)), lengths, strict=True)]
    trace = load_trace(write(data), length_field="n")
    assert [r.censored for r in trace.records] == [n >= 512 for n in lengths]
    assert trace.report.noted == {"answers cut off": 61}


def test_a_saved_trace_is_not_marked_anew(write: Write, tmp_path: Path) -> None:
    lengths = lengths_with_cap(512, 60)
    data = [{"conversation": str(i), "turn": 0, "response_tokens": n} for i, n in enumerate(lengths)]
    trace = load_trace(write(data, "t.jsonl"))
    assert not any(r.censored for r in trace.records)
    assert load_trace(save_trace(trace, tmp_path / "u.jsonl")).records == trace.records
