"""Traces of production systems and of benchmarks: lengths and arrivals, each in its own units."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ecoserve.data import load_trace, save_trace
from ecoserve.data.formats import Exchange, Hints, Reject, detect, get_format
from ecoserve.data.formats.base import FAILED, NO_TIME
from ecoserve.errors import TraceError

Read = Callable[[dict[str, Any]], list[Exchange | Reject]]
Only = Callable[[dict[str, Any]], Exchange]


@pytest.fixture
def table(tmp_path: Path) -> Callable[..., Path]:
    """Write lines of a table to a file."""

    def to_file(*lines: str, name: str = "t.csv") -> Path:
        path = tmp_path / name
        path.write_text("".join(f"{line}\n" for line in lines))
        return path

    return to_file


# -- Azure ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "times",
    [
        ("2023-11-16 18:15:46.6805900", "2023-11-16 18:15:50.9951690"),
        ("2023-11-16 18:15:46.680590+00:00", "2023-11-16 18:15:50.995169+00:00"),
    ],
)
def test_azure_of_either_year(table: Callable[..., Path], times: tuple[str, str]) -> None:
    path = table("TIMESTAMP,ContextTokens,GeneratedTokens", f"{times[0]},374,44", f"{times[1]},396,109")
    trace = load_trace(path)
    assert (trace.format, trace.length_source, trace.prompt_length_source) == ("azure", "trace", "trace")
    assert [(r.prompt_tokens, r.response_tokens) for r in trace.records] == [(374, 44), (396, 109)]
    assert trace.records[0].arrival_s == pytest.approx(1_700_158_546.68059)
    first, last = (r.arrival_s or 0.0 for r in trace.records)
    assert last - first == pytest.approx(4.314579, abs=1e-6)


def test_equal_rows_of_an_arrival_trace_are_two_requests(table: Callable[..., Path], tmp_path: Path) -> None:
    row = "2024-05-10 00:00:00.009930+00:00,2162,5"
    trace = load_trace(table("TIMESTAMP,ContextTokens,GeneratedTokens", row, row))
    assert len(trace) == 2
    assert load_trace(save_trace(trace, tmp_path / "s.jsonl")).records == trace.records


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("2024-05-10,5,0", FAILED),
        ("2024-05-10,5,", "no answer length"),
        ("2024-05-10,5,many", "answer length is not a whole number"),
        ("2024-05-10,5,-7", "absurd length"),
        ("2024-05-10,5,7.5", "answer length is not a whole number"),
        ("2024-05-10,5,nan", "no answer length"),
        ("2024-05-10,5,99999999", "absurd length"),
        ("2024-05-10,0,5", "absurd prompt length"),
        ("2024-05-10,-1,5", "absurd prompt length"),
        ("2024-05-10,999999999,5", "absurd prompt length"),
        ("2024-05-10,x,5", "prompt length is not a whole number"),
        ("yesterday,5,5", NO_TIME),
        ("-5,5,5", NO_TIME),
    ],
)
def test_a_row_of_lengths_that_are_none_is_dropped(table: Callable[..., Path], row: str, reason: str) -> None:
    trace = load_trace(table("TIMESTAMP,ContextTokens,GeneratedTokens", "2024-05-10,5,5", row))
    assert len(trace) == 1
    assert trace.report.dropped == {reason: 1}


# -- Mooncake ------------------------------------------------------------------------------------------


def test_mooncake_counts_milliseconds_and_names_prefixes(only: Only) -> None:
    item = only({"timestamp": 27482, "input_length": 6955, "output_length": 52, "hash_ids": [46, 47, 2353.0]})
    record = item.record
    assert (record.arrival_s, record.prompt_tokens, record.response_tokens) == (27.482, 6955, 52)
    assert record.prefix_hashes == (46, 47, 2353)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"hash_ids": "46"}, "hash_ids are not a list of numbers"),
        ({"hash_ids": [1, None]}, "hash_ids are not a list of numbers"),
        ({"timestamp": "noon"}, NO_TIME),
        ({"timestamp": -1}, NO_TIME),
        ({"input_length": 0}, "absurd prompt length"),
    ],
)
def test_a_mooncake_row_that_is_none_is_rejected(read: Read, change: dict[str, Any], reason: str) -> None:
    row = {"timestamp": 0, "input_length": 5, "output_length": 5, "hash_ids": [1], **change}
    assert read(row) == [Reject(reason)]


# -- BurstGPT ------------------------------------------------------------------------------------------


def test_burstgpt_drops_what_failed(table: Callable[..., Path]) -> None:
    trace = load_trace(
        table(
            "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type",
            "5,ChatGPT,472,18,490,Conversation log",
            "45,GPT-4,1087,230,1317,API log",
            "118,GPT-4,417,0,417,Conversation log",
        )
    )
    assert trace.format == "burstgpt"
    assert [(r.arrival_s, r.model, r.prompt_tokens, r.response_tokens) for r in trace.records] == [
        (5.0, "ChatGPT", 472, 18),
        (45.0, "GPT-4", 1087, 230),
    ]
    assert trace.report.dropped == {FAILED: 1}


def test_burstgpts_sessions_are_conversations(table: Callable[..., Path], tmp_path: Path) -> None:
    trace = load_trace(
        table(
            "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type",
            "5,s-1,3,ChatGPT,10,20,30,Conversation log",
            "5,s-1,3,ChatGPT,10,20,30,Conversation log",
            "6,s-2,3,ChatGPT,10,20,30,Conversation log",
            "7,s-1,3,ChatGPT,10,0,10,Conversation log",
            "8,,3,ChatGPT,10,20,30,API log",
            "9,s-1,3,ChatGPT,10,20,30,Conversation log",
        )
    )
    # What was dropped keeps its turn.
    assert [(r.conversation, r.turn) for r in trace.records] == [
        ("s-1", 0),
        ("s-1", 1),
        ("s-2", 0),
        ("row-4", 0),
        ("s-1", 3),
    ]
    assert load_trace(save_trace(trace, tmp_path / "s.jsonl")).records == trace.records


# -- vLLM ----------------------------------------------------------------------------------------------


def test_a_load_of_vllm_counts_nanoseconds(only: Only) -> None:
    row = {"input_toks": 3, "output_toks": 2, "arrival_time_ns": 46926808}
    record = only({**row, "input_tok_ids": [5, 6, 7], "output_tok_ids": [8, 9]}).record
    assert (record.prompt_tokens, record.response_tokens, record.arrival_s) == (3, 2, 0.046926808)


def test_a_request_log_of_vllm_has_wall_clock_times(only: Only) -> None:
    row = {"request_id": "bench-0", "input_toks": 3, "output_toks": 2, "arrival_time": 1777142838.338653}
    record = only({**row, "queued_ts": 479748.3, "finish_reason": "length", "max_tokens": 2}).record
    assert (record.conversation, record.arrival_s) == ("bench-0", 1777142838.338653)
    assert (record.finish_reason, record.censored, record.max_tokens) == ("length", True, 2)


def test_token_ids_that_contradict_their_count_are_dirt(read: Read) -> None:
    row = {"input_toks": 3, "output_toks": 2, "arrival_time_ns": 0}
    assert read({**row, "output_tok_ids": [8]}) == [Reject("token ids and counts disagree")]
    assert read({**row, "arrival_time_ns": "soon"}) == [Reject(NO_TIME)]


def bench(**change: Any) -> dict[str, Any]:
    return {
        "date": "20260101-000000",
        "model_id": "m",
        "request_throughput": 1.0,
        "total_input_tokens": 30,
        "input_lens": [10, 11, 12],
        "output_lens": [4, 0, 6],
        "start_times": [100.0, 100.5, 101.0],
        "ttfts": [0.1, 0.0, 0.1],
        "itls": [[0.1] * 3, [], [0.1] * 5],
        "generated_texts": ["A", "", "B"],
        "errors": ["", "timed out", ""],
        **change,
    }


def test_a_saved_benchmark_is_as_many_requests_as_it_made(table: Callable[..., Path]) -> None:
    trace = load_trace(table(json.dumps(bench()), json.dumps(bench()), name="result.json"))
    assert trace.format == "vllm-bench"
    assert [r.conversation for r in trace.records] == ["run-0-0", "run-0-2", "run-1-0", "run-1-2"]
    assert [(r.prompt_tokens, r.response_tokens, r.arrival_s, r.response, r.model) for r in trace.records[:2]] == [
        (10, 4, 100.0, "A", "m"),
        (12, 6, 101.0, "B", "m"),
    ]
    assert trace.report.dropped == {FAILED: 2}


def test_without_texts_and_times_the_lengths_are_there(read: Read) -> None:
    items = read(bench(generated_texts=["A"], start_times=None, errors=None))
    assert [i.record.response_tokens for i in items if isinstance(i, Exchange)] == [4, None, 6]
    assert [i.missing for i in items if isinstance(i, Exchange)][1] == FAILED
    assert {i.record.arrival_s for i in items if isinstance(i, Exchange)} == {None}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"input_lens": None}, "no single requests (saved without --save-detailed)"),
        ({"input_lens": [1]}, "input_lens and output_lens are not equally many"),
        ({"input_lens": [], "output_lens": []}, "no requests"),
    ],
)
def test_a_benchmark_without_its_requests_says_what_was_missing(read: Read, change: Any, reason: str) -> None:
    assert read(bench(**change)) == [Reject(reason)]


def test_vllm_still_calls_them_so() -> None:
    found = importlib.util.find_spec("vllm")
    assert found is not None
    (root,) = found.submodule_search_locations or []
    source = (Path(root) / "benchmarks" / "serve.py").read_text()
    for name in ("total_input_tokens", "request_throughput", "model_id", "input_lens", "output_lens"):
        assert f'"{name}"' in source
    for name in ("start_times", "generated_texts", "errors", "--save-detailed"):
        assert f'"{name}"' in source


# -- plain tables --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "lengths"),
    [
        ({"num_prefill_tokens": "74", "num_decode_tokens": "918"}, (74, 918)),
        ({"Prompt Tokens": "74", "Response-Tokens": "918"}, (74, 918)),
        ({"input_length": 74, "output_length": 918}, (74, 918)),
        ({"prompt_len": "74", "output_len": "918"}, (74, 918)),
        ({"output_token_length": "918"}, (None, 918)),
        ({"ContextTokens": "74", "GeneratedTokens": "918"}, (74, 918)),
    ],
)
def test_lengths_go_by_many_names(only: Only, row: dict[str, Any], lengths: tuple[int | None, int]) -> None:
    assert detect([row], "f").name == "plain"
    record = only(row).record
    assert (record.prompt_tokens, record.response_tokens) == lengths


@pytest.mark.parametrize(
    ("column", "value", "time"),
    [
        ("arrival_s", "1.5", 1.5),
        ("timestamp_ms", "1500", 1.5),
        ("arrival_time_ns", 1_500_000_000, 1.5),
        ("Timestamp us", "1500000", 1.5),
        ("start_time", "1970-01-01 00:00:01.5", 1.5),
        ("created", "1700158546680", 1_700_158_546.68),
        ("arrived_at", "", None),
        ("arrival_s", "1970-01-01T00:00:01.5Z", 1.5),
    ],
)
def test_an_arrival_is_in_the_unit_of_its_name(only: Only, column: str, value: Any, time: float | None) -> None:
    assert only({"response_tokens": "5", column: value}).record.arrival_s == time


def test_what_has_no_unit_is_seconds_and_said(only: Only) -> None:
    item = only({"response_tokens": "5", "timestamp": "1.5"})
    assert item.record.arrival_s == 1.5
    (guess,) = get_format("plain").opened([{"response_tokens": "5", "timestamp": "1.5"}], Hints()).guesses
    assert guess.startswith("timestamp in seconds, taken so, there is no evidence: no unit is stated")


@pytest.mark.parametrize("column", ["arrival_s", "timestamp", "timestamp_ms"])
def test_an_arrival_that_is_none_is_dirt(read: Read, column: str) -> None:
    assert read({"response_tokens": "5", column: "noon"}) == [Reject(NO_TIME)]


def test_columns_of_no_meaning_are_named(table: Callable[..., Path]) -> None:
    trace = load_trace(
        table(
            ",output_token_length,predicted_length,latency,model",
            "0,40,1,0.024,vicuna-13b",
            "1,72,1,0.010,vicuna-13b",
        )
    )
    assert [(r.response_tokens, r.model) for r in trace.records] == [(40, "vicuna-13b"), (72, "vicuna-13b")]
    assert trace.report.noted == {"with unused columns (predicted_length, latency)": 2}


def test_texts_make_a_trace_too(table: Callable[..., Path]) -> None:
    trace = load_trace(
        table(
            "id,prompt,response,finish_reason,max_tokens,split",
            '7,"What, now?","Nothing.\nReally",stop,20,train',
            "8,Again?,No,length,1,dev",
            "9,,No,stop,20,dev",
            "10,So?,,stop,20,dev",
        )
    )
    assert [(r.conversation, r.prompt, r.response, r.split) for r in trace.records] == [
        ("7", "What, now?", "Nothing.\nReally", "train"),
        ("8", "Again?", "No", "dev"),
    ]
    assert [(r.censored, r.max_tokens, r.finish_reason) for r in trace.records] == [
        (False, 20, "stop"),
        (True, 1, "length"),
    ]
    assert trace.report.dropped == {"no prompt": 1, "no answer": 1}


def test_a_prompt_with_its_length_is_vllms_custom_data_set(table: Callable[..., Path]) -> None:
    lines = [json.dumps({"prompt": f"Q{i}", "output_tokens": 10 + i}) for i in range(3)]
    trace = load_trace(table(*lines, name="t.jsonl"))
    assert trace.length_source == "trace"
    assert [(r.prompt, r.response_tokens) for r in trace.records] == [("Q0", 10), ("Q1", 11), ("Q2", 12)]


def test_conversations_and_turns_of_a_table(table: Callable[..., Path]) -> None:
    counted = load_trace(table("session_id,output_tokens", "a,5", "b,6", "a,7"))
    assert [(r.conversation, r.turn) for r in counted.records] == [("a", 0), ("b", 0), ("a", 1)]
    stated = load_trace(table("session_id,turn,sample,output_tokens", "a,3,0,5", "a,3,1,6", name="u.csv"))
    assert [(r.turn, r.sample) for r in stated.records] == [(3, 0), (3, 1)]


def test_a_column_of_another_name_can_be_given(table: Callable[..., Path]) -> None:
    path = table("rl,prompt_tokens", "5,9", "6,8", "x,7")
    with pytest.raises(TraceError, match=r"unknown trace format.*--format plain --length-field NAME"):
        load_trace(path)
    trace = load_trace(path, format="plain", length_field="rl")
    assert [(r.prompt_tokens, r.response_tokens) for r in trace.records] == [(9, 5), (8, 6)]
    assert trace.report.dropped == {"rl is not a whole number": 1}


def test_a_table_whose_lengths_are_not_there_says_so(table: Callable[..., Path]) -> None:
    with pytest.raises(TraceError, match=r"2 dropped \(1 answer length is not a whole number, 1 no answer length\)"):
        load_trace(table("prompt_tokens,response_tokens", "5,many", "6,"))


def test_of_equally_many_rows_the_format_that_asks_for_more_wins() -> None:
    burst = {"timestamp": 5, "input_length": 5, "output_length": 5, "hash_ids": [1]}
    plain = {"timestamp": 5, "input_length": 5, "output_length": 5}
    assert detect([plain, burst], "f").name == "mooncake"
    assert detect([plain, burst, plain], "f").name == "plain"
