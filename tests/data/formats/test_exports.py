"""What people's tools write: every value of small files worked out by hand, and what is said of what is not stated."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from ecoserve.data import Record, Trace, load_trace, save_trace, split_trace
from ecoserve.errors import TraceError

Row = dict[str, Any]


def load(tmp_path: Path, rows: list[Row], **options: Any) -> Trace:
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    trace = load_trace(path, **options)
    assert load_trace(save_trace(trace, tmp_path / "again.jsonl")).records == trace.records
    return trace


def seen(r: Record) -> tuple[Any, ...]:
    return (r.conversation, r.turn, r.arrival_s, r.prompt_tokens, r.response_tokens)


# -- traces of production systems ------------------------------------------------------------------------


def bailian(n: int = 8) -> list[Row]:
    """Chats of two turns, two requests a second, blocks of 16 tokens."""
    return [
        {"chat_id": i, "parent_chat_id": i - 1 if i % 2 else -1, "timestamp": 61.5 + i / 2, "input_length": 33 + i,
         "output_length": 10 + i, "type": "image" if i == 2 else "text", "turn": i % 2 + 1, "hash_ids": [100 * i, 1, 2]}
        for i in range(n)
    ]  # fmt: skip


def test_bailians_chats_are_chains_of_parents(tmp_path: Path) -> None:
    trace = load(tmp_path, bailian())
    assert (trace.format, len(trace), trace.report.warnings) == ("bailian", 8, [])
    assert [seen(r) for r in trace.records[:4]] == [
        ("0", 0, 61.5, 33, 10),
        ("0", 1, 62.0, 34, 11),
        ("2", 0, 62.5, 35, 12),
        ("2", 1, 63.0, 36, 13),
    ]
    assert {(r.prefix_hashes[1:], r.prefix_block_tokens) for r in trace.records} == {((1, 2), 16)}
    for seed in range(5):
        parts = split_trace(trace, dev=0.5, seed=seed)
        assert {r.conversation for r in parts["train"].records}.isdisjoint(r.conversation for r in parts["dev"].records)


def test_chains_go_on_and_may_begin_before_the_file(tmp_path: Path) -> None:
    rows = [
        {"chat_id": c, "parent_chat_id": p, "timestamp": 1.5 * k, "input_length": 20, "output_length": 5, "turn": t}
        for k, (c, p, t) in enumerate([(7, 3, 4), (1, -1, 1), (2, 1, 2), (3, 2, 3), (8, 7, 5), (9, 1, 2)])
    ]
    records = load(tmp_path, rows).records
    assert [(r.conversation, r.turn) for r in records] == [("3", 3), ("1", 0), ("1", 1), ("1", 2), ("3", 4), ("1", 1)]


def mooncake(time: str = "timestamp", unit: float = 1.0, n: int = 8) -> list[Row]:
    """Sessions of four turns, ten requests a second (or waits of half a second), in ms, blocks of 512 tokens."""
    times = [i * 100 if time == "timestamp" else 500 for i in range(n)]
    return [
        {"session_id": f"s{i // 4}", time: int(t * unit) if unit >= 1 else t * unit, "input_length": 1200 + i,
         "output_length": 50 + i, "hash_ids": [i, i + 1, i + 2]}
        for i, t in enumerate(times)
    ]  # fmt: skip


def test_mooncakes_sessions_keep_their_turns_and_waits(tmp_path: Path) -> None:
    timed = load(tmp_path, mooncake())
    assert [seen(r) for r in timed.records[3:6]] == [
        ("s0", 3, 0.3, 1203, 53),
        ("s1", 0, 0.4, 1204, 54),
        ("s1", 1, 0.5, 1205, 55),
    ]
    waiting = load(tmp_path, mooncake("delay"))
    assert {(r.arrival_s, r.think_s, r.prefix_block_tokens) for r in waiting.records} == {(None, 0.5, 512)}
    assert [(r.conversation, r.turn) for r in waiting.records[2:5]] == [("s0", 2), ("s0", 3), ("s1", 0)]
    assert timed.report.warnings == waiting.report.warnings == []
    assert waiting.report.stated[0] == "waits between turns: delay in milliseconds, as this format has it"


@pytest.mark.parametrize(
    ("rows", "span", "warned"),
    [
        (bailian(), 3.5, None),
        ([{**r, "timestamp": int(r["timestamp"] * 1000)} for r in bailian()], 3.5, "milliseconds, by its values"),
        ([{k: v for k, v in r.items() if k != "parent_chat_id"} for r in bailian()], 3.5, "seconds, by its values"),
        ([{**r, "server_time": 5 + i} for i, r in enumerate(bailian())], 3.5, None),
        ([{**r, "think_toks": 4} for r in bailian()], 3.5, "think_toks looks like a count and is not used"),
        (mooncake(), 0.7, None),
        (mooncake(unit=1e-3), 0.7, "seconds, by its values"),
        (mooncake(unit=1e3), 0.7, "microseconds, by its values"),
        ([{**r, "timestamp": r["timestamp"] // 10} for r in mooncake()], 0.07, "milliseconds, by its values (100 req"),
        ([{k: v for k, v in r.items() if k != "hash_ids"} for r in mooncake()], 0.7, None),
        ([{**r, "time_unit": "ms"} for r in mooncake()], 0.7, None),
        ([{"timestamp_us" if k == "timestamp" else k: v for k, v in r.items()} for r in mooncake(unit=1e3)], 0.7, None),
        ([{**r, "timestamp": 1_790_848_800_000 + r["timestamp"]} for r in mooncake()], 0.7, None),
    ],
)
def test_a_unit_is_the_formats_unless_evidence_is_against_it(
    tmp_path: Path, rows: list[Row], span: float, warned: str | None
) -> None:
    trace = load(tmp_path, rows)
    times = [r.arrival_s or 0.0 for r in trace.records]
    assert max(times) - min(times) == pytest.approx(span, abs=1e-6)
    assert [warned in w for w in trace.report.warnings[:1]] == ([] if warned is None else [True])
    if warned is not None:
        with pytest.raises(TraceError, match="--strict"):
            load(tmp_path, rows, strict=True)
    assert len(load(tmp_path, rows, time_unit="s")) == len(rows)


@pytest.mark.parametrize(("unit", "warned"), [(1.0, False), (1e-3, True), (1e3, True)])
def test_a_wait_is_in_the_unit_that_makes_it_one(tmp_path: Path, unit: float, warned: bool) -> None:
    trace = load(tmp_path, mooncake("delay", unit))
    assert {r.think_s for r in trace.records} == {0.5}
    assert bool(trace.report.warnings) == warned


def test_blocks_that_lengths_contradict_are_said(tmp_path: Path) -> None:
    rows = [{**r, "hash_ids": list(range(7 + 5 * i))} for i, r in enumerate(mooncake())]
    assert "prompts' lengths contradict" in load(tmp_path, rows).report.warnings[0]
    stated = load(tmp_path, [{**r, "block_size": 100} for r in rows])
    assert {r.prefix_block_tokens for r in stated.records} == {100}


def test_hashes_may_be_texts_and_turns_without_sessions_are_said(tmp_path: Path) -> None:
    rows = [{**r, "hash_ids": [f"{h:x}" for h in (70, 80, i)], "turn": i} for i, r in enumerate(mooncake())]
    rows = [{k: v for k, v in r.items() if k != "session_id"} for r in rows]
    trace = load(tmp_path, rows)
    assert len({h for r in trace.records for h in r.prefix_hashes}) == 2 + 8
    assert trace.report.warnings == ["turns are numbered, and no field says which session they belong to"]


# -- gateways and tracing --------------------------------------------------------------------------------

LANGFUSE = {
    "id": "o0", "trace_id": "t0", "type": "GENERATION", "start_time": "2026-10-01 10:00:00.000000",
    "end_time": "2026-10-01 10:01:00.0", "completion_start_time": "2026-10-01 10:00:20.0",
    "provided_model_name": "m", "model_parameters": {"max_tokens": "512"}, "level": "DEFAULT",
    "usage_details": {"input": 100, "output": 50, "total": 150}, "cost_details": {"total": 0.1, "output": 7},
    "input": '[{"role": "system", "content": "Be kind."}, {"role": "user", "content": "hi"}]',
    "output": '{"role": "assistant", "content": "hello there"}', "session_id": "s1",
}  # fmt: skip
GENERATIONS = {
    "id": "0", "traceId": "s1", "startTime": "2026-10-01T10:00:00.000Z", "endTime": None, "timeToFirstToken": "0.3",
    "latency": "1.2", "name": "chat", "model": "m", "promptTokens": "100", "completionTokens": "50",
    "totalTokens": "150", "input": "hi 0", "output": "hello 0", "level": "DEFAULT",
}  # fmt: skip
LITELLM = {
    "request_id": "c-0", "call_type": "acompletion", "spend": "0.001", "total_tokens": "150", "prompt_tokens": "100",
    "completion_tokens": "50", "startTime": "2026-10-01 10:00:00.0", "endTime": "2026-10-01 10:00:59.1",
    "completionStartTime": "2026-10-01 10:00:30.1", "model": "openai/m", "metadata": '{"a": "b"}', "cache_hit": "False",
    "messages": "{}", "response": "{}", "session_id": "s1", "status": "success",
}  # fmt: skip
OPENROUTER = {
    "generation_id": "gen-1", "created_at": "2026-10-01 10:00:00 UTC", "cost_total": 0.01, "tokens_prompt": 100,
    "tokens_completion": 50, "tokens_reasoning": 20, "tokens_cached": 7, "model_permaslug": "m",
    "generation_time_ms": 900, "time_to_first_token_ms": 90, "finish_reason_normalized": "length", "cancelled": False,
    "session_id": "s1",
}  # fmt: skip
#: The same request everywhere: 100 tokens asked, 50 answered, on 2026-10-01 at 10:00 UTC.
AT = 1_790_848_800.0


@pytest.mark.parametrize(
    ("row", "change", "expected"),
    [
        (LANGFUSE, {}, {}),
        (LANGFUSE, {"start_time": 1_790_848_800_000}, {}),
        (LANGFUSE, {"start_time": "2026-10-01T12:00:00+02:00", "name": "chat"}, {}),
        (LANGFUSE, {"session_id": None}, {"conversation": "t0"}),
        (LANGFUSE, {"usage_details": '{"input": 100, "output": 50}'}, {}),
        (LANGFUSE, {"usage_details": {"input": 60, "input_cached_tokens": 40, "output": 30,
                                      "output_reasoning_tokens": 20, "total": 150}}, {"thinking_tokens": 20}),
        (LANGFUSE, {"usage_details": {"input": 100, "total": 150}}, {}),
        (LANGFUSE, {"usage_details": None, "inputUsage": 100, "outputUsage": 50, "totalUsage": 150}, {}),
        (LANGFUSE, {"usage_details": None, "usage": {"input": 400, "output": 200, "unit": "CHARACTERS"}}, {}),
        (LITELLM, {}, {}),
        (LITELLM, {"startTime": "1790848800"}, {}),
        (LITELLM, {"startTime": "1790848800000.0", "queue_time_seconds": "0.1"}, {}),
        (LITELLM, {"completion_tokens": None}, {}),
        (LITELLM, {"session_id": ""}, {"conversation": "c-0"}),
        (LITELLM, {"messages": '[{"role": "user", "content": "hi"}]', "response": json.dumps(
            {"choices": [{"message": {"content": "hello"}, "finish_reason": "stop"}],
             "usage": {"prompt_tokens": 100, "completion_tokens": 50}})}, {"prompt": "hi", "response": "hello"}),
        (OPENROUTER, {}, {"thinking_tokens": 20, "censored": True}),
        (OPENROUTER, {"tokens_prompt": 90, "tokens_completion": 40, "native_tokens_prompt": 100,
                      "native_tokens_completion": 50, "native_tokens_reasoning": 20}, {"thinking_tokens": 20}),
        (OPENROUTER, {"cancelled": "true", "finish_reason_normalized": None}, {"censored": True}),
        ({"model": "m", "input_tokens": 10, "cache_read_input_tokens": 80, "cache_creation_input_tokens": 10,
          "output_tokens": 50, "session_id": "s1", "ts": AT}, {}, {}),
        ({"llm.token_count.prompt": 100, "llm.token_count.completion": 50, "session.id": "s1", "start_time": AT},
         {}, {}),
        ({"attributes": {"gen_ai.usage.input_tokens": 100, "gen_ai.usage.output_tokens": 50,
                         "gen_ai.conversation.id": "s1"}, "start_time_unix_nano": int(AT) * 10**9}, {}, {}),
        ({"run_type": "llm", "session_id": "s1", "prompt_tokens": 100, "completion_tokens": 50,
          "start_time": "2026-10-01T10:00:00", "end_time": "2026-10-01T10:00:02"}, {}, {}),
        ({"done_reason": "length", "prompt_eval_count": 100, "eval_count": 50, "total_duration": 9, "session_id": "s1",
          "created_at": "2026-10-01T10:00:00Z"}, {}, {"censored": True}),
        ({"request_created_at": "2026-10-01 10:00:00", "response_created_at": "2026-10-01 10:00:01", "status": 200,
          "prompt_tokens": 100, "completion_tokens": 50, "session_id": "s1"}, {}, {}),
        ({"prompt_tokens": 100, "answer_tokens": 30, "thinking_tokens": 20, "session_id": "s1", "ts": AT}, {},
         {"thinking_tokens": 20}),
        (GENERATIONS, {}, {}),
        (GENERATIONS, {"startTime": "1790848800000"}, {}),
        (GENERATIONS, {"completionTokens": None}, {}),
        (GENERATIONS, {"traceId": None, "sessionId": "s1", "release": "2.1"}, {}),
        ({"usageMetadata": {"promptTokenCount": 100, "candidatesTokenCount": 30, "thoughtsTokenCount": 20,
                            "totalTokenCount": 150}, "session_id": "s1", "createTime": AT}, {},
         {"thinking_tokens": 20}),
        ({"input": 100, "output": 50, "sessionId": "s1", "Start Time (ms)": AT * 1000}, {}, {}),
        # Columns of older versions stand at 0 beside the counts.
        (LANGFUSE, {"inputUsage": 0, "outputUsage": 0, "totalUsage": 0}, {}),
        # Without a total: the parts of Langfuse's output, Gemini's candidates, Bedrock's cache writes.
        (LANGFUSE, {"usage_details": {"input": 60, "input_cached_tokens": 40, "output": 30,
                                      "output_reasoning_tokens": 20}}, {"thinking_tokens": 20}),
        ({"usageMetadata": {"promptTokenCount": 100, "candidatesTokenCount": 30, "thoughtsTokenCount": 20},
          "session_id": "s1", "createTime": AT}, {}, {"thinking_tokens": 20}),
        ({"usage": {"inputTokens": 20, "cacheReadInputTokens": 70, "cacheWriteInputTokens": 10, "outputTokens": 50,
                    "totalTokens": 150}, "session_id": "s1", "ts": AT}, {}, {}),
        ({"input_tokens": 20, "cache_read_tokens": 70, "cache_creation_tokens": 10, "output_tokens": 50,
          "usage_object": {"cache_read_input_tokens": 70, "cache_creation_input_tokens": 10}, "session_id": "s1",
          "ts": AT}, {}, {}),
        ({"attributes.llm.token_count.prompt": 100, "attributes.llm.token_count.completion": 50, "start_time": AT,
          "attributes.llm.token_count.completion_details.reasoning": 20, "attributes.session.id": "s1"}, {},
         {"thinking_tokens": 20}),
        # Counts, times and sessions beside a whole request and response.
        (LANGFUSE, {"output": {"choices": [{"message": {"content": "hello there"}}]}},
         {"prompt": "hi", "response": "hello there", "model": "m", "max_tokens": 512}),
        (LITELLM, {"messages": [{"role": "user", "content": "hi"}], "model_parameters": {"max_tokens": 9},
                   "response": {"choices": [{"message": {"content": "hello"}, "finish_reason": "stop"}]},
                   "metadata": {"usage_object": {"completion_tokens_details": {"reasoning_tokens": 20}}}},
         {"prompt": "hi", "response": None, "thinking_tokens": 20, "max_tokens": 9}),
        ({"request_body": {"messages": [{"role": "user", "content": "hi"}]}, "request_created_at": AT,
          "response_body": {"choices": [{"message": {"content": "hello"}, "finish_reason": "stop"}]},
          "prompt_tokens": 100, "completion_tokens": 50, "session_id": "s1"}, {}, {"prompt": "hi"}),
        ({"messages": [{"role": "user", "content": "hi"}], "response": "hello", "input_tokens": 100,
          "output_tokens": 50, "session_id": "s1", "time_ms": AT * 1000}, {}, {"prompt": "hi", "response": "hello"}),
        ({"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": {"answer": "hello"}}],
          "metadata": {"token_len": 50, "prompt_tokens": 100}, "session_id": "s1", "tstamp": AT}, {},
         {"prompt": "hi", "response": "hello"}),
    ],
)  # fmt: skip
def test_counts_and_times_are_the_exports_own(tmp_path: Path, row: Row, change: Row, expected: Row) -> None:
    trace = load(tmp_path, [{**row, **change}])
    (record,) = trace.records
    fields = {"conversation": "s1", "arrival_s": AT, "prompt_tokens": 100, "response_tokens": 50, **expected}
    assert {name: getattr(record, name) for name in fields} == fields
    guessed = isinstance(row.get("input"), int) or "CHARACTERS" in str(change)
    assert bool(trace.report.warnings) == guessed


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({**LANGFUSE, "type": "SPAN"}, "not a generation of text (span)"),
        ({**LANGFUSE, "level": "ERROR"}, "failed request"),
        ({**LITELLM, "status": "failure"}, "failed request"),
        ({**LITELLM, "call_type": "aembedding"}, "not a generation of text (aembedding)"),
        ({**LITELLM, "completion_tokens": "0", "total_tokens": "100"}, "failed request (no answer tokens)"),
        ({**LITELLM, "startTime": "today"}, "arrival is not a time"),
        ({**OPENROUTER, "error": {"code": 429}}, "failed request"),
        ({**OPENROUTER, "num_requests": 12}, "a sum over several requests"),
    ],
)
def test_a_row_that_is_no_answered_request_is_counted(tmp_path: Path, row: Row, reason: str) -> None:
    good = LANGFUSE if "usage_details" in row else LITELLM if "call_type" in row else OPENROUTER
    trace = load(tmp_path, [{**good, "id": "good"}, row])
    assert (len(trace), trace.report.dropped) == (1, {reason: 1})


def test_without_its_counts_an_export_is_estimated_and_said(tmp_path: Path) -> None:
    rows = [{**LANGFUSE, "usage_details": None}]
    trace = load(tmp_path, rows)
    assert (trace.length_source, trace.records[0].prompt, trace.records[0].response_tokens) == (
        "characters/4.0",
        "hi",
        3,
    )
    assert [m.role for m in trace.records[0].messages] == ["system", "user"]
    with pytest.raises(TraceError, match=r"tokens of answers are estimated as characters/4\.0: give --tokenizer"):
        load(tmp_path, rows, strict=True)


@pytest.mark.parametrize(
    "row",
    [
        {"request": {"messages": [{"role": "user", "content": "hi"}]},
         "response": {"choices": [{"message": {"content": "yo"}, "finish_reason": "stop"}],
                      "usage": {"prompt_tokens": 9, "completion_tokens": 5}}},
        {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}],
         "usage": {"prompt_tokens": 9, "completion_tokens": 5}},
        {"instruction": "hi", "output": "yo", "prompt_tokens": 9, "response_tokens": 5},
    ],
)  # fmt: skip
def test_texts_with_a_time_and_a_session_beside_them(tmp_path: Path, row: Row) -> None:
    rows = [{**row, "timestamp": 500 * i, "session_id": f"s{i % 2}", "seed": i} for i in range(4)]
    if "instruction" in row:  # equal texts would be duplicates
        rows = [{**r, "input": str(i)} for i, r in enumerate(rows)]
    elif "messages" in row:
        rows = [{**r, "messages": [{"role": "user", "content": f"hi {i}"}, row["messages"][1]]} for i, r in
                enumerate(rows)]  # fmt: skip
    trace = load(tmp_path, rows)
    assert [seen(r) for r in trace.records] == [
        ("s0", 0, 0.0, 9, 5),
        ("s1", 0, 0.5, 9, 5),
        ("s0", 1, 1.0, 9, 5),
        ("s1", 1, 1.5, 9, 5),
    ]
    assert ["milliseconds, by its values" in w for w in trace.report.warnings] == [True]


@pytest.mark.parametrize(
    ("rows", "warning"),
    [
        ([{k: v for k, v in r.items() if k != "parent_chat_id"} for r in bailian()], "turns are numbered, and no"),
        ([{k: v for k, v in r.items() if k != "chat_id"} for r in bailian()], "no field names the requests"),
        ([{k: v for k, v in r.items() if k != "input_length"} for r in bailian()], "blocks of 512 tokens, no prompt's"),
        (bailian()[::-1], "requests come after those that follow them: sort the file by time"),
        ([{k: v for k, v in r.items() if k != "sessionId"} for r in [
            {"type": "user", "uuid": "u", "parentUuid": None, "sessionId": "S",
             "message": {"role": "user", "content": "hi"}},
            {"type": "assistant", "uuid": "a", "parentUuid": "u", "sessionId": "S",
             "message": {"id": "m", "role": "assistant", "content": "yo", "usage": {"input_tokens": 9,
                                                                                   "output_tokens": 5}}}]],
         "no row names its session"),
    ],
)  # fmt: skip
def test_a_missing_field_that_loses_sessions_or_blocks_is_said(tmp_path: Path, rows: list[Row], warning: str) -> None:
    trace = load(tmp_path, rows)
    assert [w for w in trace.report.warnings if warning in w]


def test_pages_of_an_api_are_its_rows(tmp_path: Path) -> None:
    rows = [{"data": [LANGFUSE, {**LANGFUSE, "id": "o1"}], "meta": {"page": 1}}, {"data": [LANGFUSE], "meta": {}}]
    assert len(load(tmp_path, rows)) == 3
    assert load(tmp_path, [{"data": OPENROUTER}]).records[0].response_tokens == 50


# -- benchmarks ------------------------------------------------------------------------------------------


def chunk(**delta: Any) -> Row:
    return {"response": f"data: {json.dumps({'choices': [{'delta': delta}]})}\n\n"}


def genai_perf(*outputs: list[Row], unit: int = 1) -> Row:
    requests = [
        {"timestamp": (10**18 + i * 10**9) * unit, "response_outputs": o, "response_timestamps": [1, 2],
         "request_inputs": {"payload": json.dumps({"messages": [{"role": "user", "content": f"hi {i}"}],
                                                   "max_tokens": 9, "model": "m"})}}
        for i, o in enumerate(outputs)
    ]  # fmt: skip
    return {"service_kind": "openai", "experiments": [{"experiment": {"mode": "concurrency"}, "requests": requests}]}


def test_genai_perf_counts_what_has_content(tmp_path: Path) -> None:
    usage = {"prompt_tokens": 12, "completion_tokens": 7, "completion_tokens_details": {"reasoning_tokens": 3}}
    done = {"response": "data: [DONE]"}
    row = genai_perf(
        [chunk(role="assistant", content=""), chunk(content="a"), chunk(content="b"), done],
        [chunk(role="assistant"), chunk(reasoning_content="x"), chunk(tool_calls=[{}]), chunk(content="y"), done],
        [chunk(content="a"), {"response": f"data: {json.dumps({'choices': [], 'usage': usage})}"}, done],
        [{"response": json.dumps({"choices": [{"message": {"content": "whole"}}], "usage": usage})}],
        [{"response": json.dumps({"choices": [{"message": {"content": "whole"}}]})}],
        [done],
    )
    trace = load(tmp_path, [row])
    assert [(r.response_tokens, r.thinking_tokens, r.prompt, r.model, r.max_tokens) for r in trace.records] == [
        (2, None, "hi 0", "m", 9),
        (3, 1, "hi 1", "m", 9),
        (7, 3, "hi 2", "m", 9),
        (7, 3, "hi 3", "m", 9),
    ]
    assert [r.arrival_s for r in trace.records] == [1e9, 1e9 + 1, 1e9 + 2, 1e9 + 3]
    assert trace.report.dropped == {
        "the answer's length is not known: there is neither usage nor a stream of chunks": 1,
        "failed request (no answer tokens)": 1,
    }
    assert "tokens of answers are their chunks" in trace.report.warnings[0]


@pytest.mark.parametrize(
    "times",
    [
        [1_790_848_800_250_000_000, 1_790_848_801_250_000_000],
        [1_790_848_800_250, 1_790_848_801_250],
        [1_790_848_800.25, 1_790_848_801.25],
        [250_000_000, 1_250_000_000],
    ],
)
def test_genai_perfs_nanoseconds_unless_they_cannot_be(tmp_path: Path, times: list[float]) -> None:
    row = genai_perf([chunk(content="a")], [chunk(content="b")])
    for request, time in zip(row["experiments"][0]["requests"], times, strict=True):
        request["timestamp"] = time
    arrivals = [r.arrival_s or 0.0 for r in load(tmp_path, [row]).records]
    expected = [0.25, 1.25] if times[0] < 1e9 else [AT + 0.25, AT + 1.25]
    assert arrivals == pytest.approx(expected, abs=1e-6)


AIPERF = {
    "metadata": {"session_num": 4, "x_request_id": "r1", "x_correlation_id": "u1", "conversation_id": "c9",
                 "turn_index": 1, "request_start_ns": 1_790_848_800_500_000_000, "request_ack_ns": 1, "worker_id": "w",
                 "request_end_ns": 1_790_848_801_000_000_000, "benchmark_phase": "profiling", "was_cancelled": False},
    "metrics": {"input_sequence_length": {"value": 550, "unit": "tokens"},
                "output_token_count": {"value": 9, "unit": "tokens"},
                "reasoning_token_count": {"value": 4, "unit": "tokens"},
                "output_sequence_length": {"value": 13, "unit": "tokens"},
                "request_latency": {"value": 297.5, "unit": "ms"}, "inter_chunk_latency": {"value": [4.9, 5.3]}},
    "error": None,
}  # fmt: skip
GUIDELLM = {
    "request_id": "q1", "request_args": json.dumps({"body": {"messages": [{"role": "user", "content": "hi"}]}}),
    "output": "hello", "reasoning_output": "hm", "prompt_tokens": 5, "output_tokens": 8,
    "request_start_time": 1_790_848_800.25, "request_latency": 1.5, "time_to_first_token_ms": 20.0,
    "info": {"conversation_id": "c1", "turn_index": 2, "status": "completed",
             "timings": {"queued": 1.0, "request_start": 1_790_848_800.25, "request_end": 1_790_848_801.75}},
}  # fmt: skip


def guidellm(**requests: list[Row]) -> Row:
    return {"metadata": {"version": 1}, "benchmarks": [{"requests": requests, "metrics": {"request_totals": {}}}]}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (AIPERF, ("u1", 1, 1_790_848_800.5, 550, 13, 4)),
        ({**AIPERF, "metrics": {"input_sequence_length": 550, "output_token_count": 9}},
         ("u1", 1, 1_790_848_800.5, 550, 9, None)),
        ({**AIPERF, "metrics": {"input_sequence_length": 550, "output_token_count": 9, "reasoning_token_count": 4}},
         ("u1", 1, 1_790_848_800.5, 550, 13, 4)),
        (guidellm(successful=[GUIDELLM]), ("c1", 2, 1_790_848_800.25, 5, 8, 2)),
        (guidellm(successful=[{**{k: v for k, v in GUIDELLM.items() if k not in ("info", "request_start_time")},
                               "start_time": 1_790_848_800.25}]), ("0-0-q1", 0, 1_790_848_800.25, 5, 8, 2)),
        (guidellm(successful=[{"request_id": "q1", "output": None, "info": GUIDELLM["info"],
                               "input_metrics": {"text_tokens": 5}, "output_metrics": {"text_tokens": 8}}]),
         ("c1", 2, 1_790_848_800.25, 5, 8, None)),
    ],
)  # fmt: skip
def test_single_requests_of_a_benchmark(tmp_path: Path, row: Row, expected: tuple[Any, ...]) -> None:
    (record,) = load(tmp_path, [row]).records
    assert (*seen(record), record.thinking_tokens) == expected


def test_requests_that_failed_or_ran_out_of_time(tmp_path: Path) -> None:
    trace = load(
        tmp_path, [guidellm(successful=[GUIDELLM], incomplete=[{**GUIDELLM, "output": "hell"}], errored=[GUIDELLM])]
    )
    assert [r.censored for r in trace.records] == [False, True]
    assert trace.report.dropped == {"failed request": 1}
    failed = {**AIPERF, "metrics": {"error_isl": {"value": 5}}, "error": {"code": 499, "message": "cancelled"}}
    assert load(tmp_path, [AIPERF, failed]).report.dropped == {"failed request": 1}


# -- agents, trees, judged answers -----------------------------------------------------------------------


def said(kind: str, second: float, content: Any, **message: Any) -> Row:
    at = f"2026-10-01T10:00:{second:06.3f}Z"
    return {
        "type": kind, "sessionId": "S", "uuid": f"u{second}", "isSidechain": False, "timestamp": at,
        "message": {"role": kind, "content": content, **message},
    }  # fmt: skip


def transcript() -> list[Row]:
    usage = {"input_tokens": 4, "cache_creation_input_tokens": 100, "cache_read_input_tokens": 900}
    one = {"id": "m1", "model": "claude", "stop_reason": None}
    thought = [{"type": "thinking", "thinking": "x" * 30}]
    call = [{"type": "tool_use", "name": "Read", "input": {"path": "a"}}]
    return [
        {"type": "summary", "summary": "A title", "leafUuid": "u"},
        said("user", 0, "Fix it."),
        said("assistant", 2, thought, **one, usage={**usage, "output_tokens": 3}),
        said("assistant", 5, call, **{**one, "stop_reason": "tool_use"}, usage={**usage, "output_tokens": 60}),
        said("user", 7.5, [{"type": "tool_result", "content": "text of a", "tool_use_id": "t"}]),
        said("assistant", 9, [{"type": "text", "text": "Done."}], id="m2", model="claude", stop_reason="end_turn",
             usage={**usage, "cache_read_input_tokens": 1064, "output_tokens": 12}),
        {**said("assistant", 10, [{"type": "text", "text": "API error"}], id="m3", model="<synthetic>",
                usage={"input_tokens": 0, "output_tokens": 0}), "isApiErrorMessage": True},
        {**said("user", 11, "Look."), "isSidechain": True, "agentId": "a1"},
        {**said("assistant", 12, "Seen.", id="m4", model="claude", stop_reason="max_tokens",
                usage={"input_tokens": 20, "output_tokens": 5}), "isSidechain": True, "agentId": "a1"},
    ]  # fmt: skip


def test_a_transcripts_blocks_are_one_response(tmp_path: Path) -> None:
    trace = load(tmp_path, transcript())
    assert trace.format == "claude-code"
    assert [(*seen(r), r.think_s, r.prompt, r.finish_reason, r.censored) for r in trace.records] == [
        ("S", 0, AT, 1004, 60, None, "Fix it.", "tool_use", False),
        ("S", 1, AT + 7.5, 1168, 12, 2.5, "text of a", "end_turn", False),
        ("S/a1", 0, AT + 11, 20, 5, None, "Look.", "max_tokens", True),
    ]
    assert trace.report.dropped == {"failed request": 1}
    split = split_trace(trace, dev=0.5)
    assert {len({r.conversation for r in part.records}) for part in split.values()} == {1}


def session(**more: Any) -> Row:
    requests = [
        {"t": 0.0, "type": "n", "model": "m", "in": 130, "out": 20, "hash_ids": [1, 2], "stop": "tool_use",
         "api_time": 3.0, "think_time": 0.0},
        {"t": 60.0, "type": "s", "model": "m", "in": 200, "out": 8, "hash_ids": [1, 2, 3], "stop": "end_turn",
         "api_time": 2.0, "think_time": 57.0},
    ]  # fmt: skip
    return {"id": "trace_1", "block_size": 64, "hash_id_scope": "local", "requests": requests, **more}


def test_sessions_of_agents_are_closed_loops(tmp_path: Path) -> None:
    trace = load(tmp_path, [session(), session(id="trace_2"), session(id="trace_3", hash_id_scope="global")])
    assert [(*seen(r), r.think_s) for r in trace.records[:2]] == [
        ("trace_1", 0, 0.0, 130, 20, 0.0),
        ("trace_1", 1, 60.0, 200, 8, 57.0),
    ]
    assert "arrivals count from the start of their session" in trace.report.stated
    first, second, third = (r.prefix_hashes for r in trace.records[1::2])
    assert first[:2] == trace.records[0].prefix_hashes
    assert not set(first) & set(second)
    assert (third, trace.records[0].prefix_block_tokens) == ((1, 2, 3), 64)
    inner = session(requests=[*session()["requests"], {"agent_id": "a1", "requests": session()["requests"]}])
    assert [r.conversation for r in load(tmp_path, [inner]).records] == ["trace_1"] * 2 + ["trace_1/a1"] * 2


@pytest.mark.parametrize(("unit", "warned"), [(1, False), (1000, True)])
def test_the_times_of_sessions_are_in_the_unit_that_makes_them_waits(tmp_path: Path, unit: int, warned: bool) -> None:
    requests = [{**r, "t": r["t"] * unit, "think_time": r["think_time"] * unit} for r in session()["requests"]]
    trace = load(tmp_path, [session(requests=requests), session(id="trace_2", requests=requests)])
    assert [(r.arrival_s, r.think_s) for r in trace.records[:2]] == [(0.0, 0.0), (60.0, 57.0)]
    assert bool(trace.report.warnings) == warned


def tree() -> Row:
    def reply(name: str, role: str, second: int, *replies: Row, **more: Any) -> Row:
        return {"message_id": name, "role": role, "text": f"text {name}", "created_date":
                f"2026-10-01T10:00:0{second}+00:00", "synthetic": False, "replies": list(replies), **more}  # fmt: skip

    last = reply("e", "assistant", 4, synthetic=True, model_name="m")
    first = reply("b", "assistant", 1, reply("d", "prompter", 3, last), rank=0)
    prompt = reply("a", "prompter", 0, first, reply("c", "assistant", 2, rank=1))
    return {"message_tree_id": "a", "tree_state": "ready_for_export", "prompt": prompt}


def rows_of_tree() -> list[Row]:
    rows = []

    def walk(message: Row, parent: str | None) -> None:
        rows.append(
            {**{k: v for k, v in message.items() if k != "replies"}, "parent_id": parent, "message_tree_id": "a"}
        )
        for reply in message["replies"]:
            walk(reply, message["message_id"])

    walk(tree()["prompt"], None)
    return rows


@pytest.mark.parametrize("rows", [[tree()], rows_of_tree()], ids=["trees", "messages"])
def test_each_answer_of_a_tree_has_its_path(tmp_path: Path, rows: list[Row]) -> None:
    trace = load(tmp_path, rows)
    assert trace.format == "openassistant"
    assert sorted((r.turn, r.sample, r.prompt, r.response, r.arrival_s, r.model) for r in trace.records) == sorted(
        [
            (0, 0, "text a", "text b", AT, None),
            (1, 0, "text d", "text e", AT + 3, "m"),
            (0, 1, "text a", "text c", AT, None),
        ],
        key=str,
    )
    assert {r.conversation for r in trace.records} == {"a"}
    assert {len(r.messages) for r in trace.records} == {0, 3}
    assert "answers written by people, whose lengths are no model's" in trace.report.warnings


def test_arenas_answers_have_their_token_len(tmp_path: Path) -> None:
    turns = [{"content": "First.", "token_len": 21}, {"content": "Second.", "token_len": 13}]
    row = {"question_id": "q1", "answer_id": "x", "model_id": "m", "choices": [{"index": 0, "turns": turns}]}
    trace = load(tmp_path, [{**row, "tstamp": AT}, {**row, "model_id": "n", "choices": [{"turns": turns[:1]}]}])
    assert trace.format == "arena"
    assert [(*seen(r), r.model) for r in trace.records] == [
        ("q1", 0, AT, None, 21, "m"),
        ("q1", 1, AT, None, 13, "m"),
        ("q1", 0, None, None, 21, "n"),
    ]
    plain = copy.deepcopy(row)
    plain["choices"][0]["turns"] = ["Only text.", "More."]
    assert load(tmp_path, [plain]).length_source == "characters/4.0"


# -- the batch API ---------------------------------------------------------------------------------------


def test_a_batchs_responses_find_their_requests(tmp_path: Path) -> None:
    asked = [
        {"custom_id": f"q{i}", "method": "POST", "url": "/v1/chat/completions",
         "body": {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": f"hi {i}"}]}}
        for i in range(3)
    ]  # fmt: skip
    body = {"choices": [{"message": {"content": "ok"}, "finish_reason": "length"}], "created": int(AT),
            "usage": {"prompt_tokens": 5, "completion_tokens": 9}}  # fmt: skip
    answered = [{"id": f"b{i}", "custom_id": f"q{i}", "response": {"status_code": 200, "body": body}} for i in (1, 0)]
    trace = load(tmp_path, [*asked, *answered])
    assert [(*seen(r), r.prompt, r.max_tokens, r.censored) for r in trace.records] == [
        ("q1", 0, AT, 5, 9, "hi 1", 9, True),
        ("q0", 0, AT, 5, 9, "hi 0", 9, True),
    ]
    assert trace.report.dropped == {"a batch's request without its response: join its output file to it": 1}


# -- thinking --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "reason", "counts", "expected"),
    [
        ({"content": "four", "reasoning_content": "x" * 67}, "stop", None, (None, False)),
        ({"content": "<think>\nabc\n</think>\n\nfour"}, "stop", (30, 20), (20, False)),
        ({"content": "", "reasoning": "so much to think"}, "length", (50, None), (50, True)),
        ({"content": None, "reasoning_content": "so much to think"}, "length", (50, None), (50, True)),
        ({"content": "<think>so much to think"}, "length", (50, None), (50, True)),
        ({"content": "", "reasoning_content": "thought, and said nothing"}, "stop", (9, 9), (9, False)),
        ({"content": ""}, "length", (50, 50), (50, True)),
        ({"content": "4"}, "stop", (50, 48), (48, False)),
    ],
)
def test_thinking_is_counted_apart_and_cut_off_is_not_empty(
    tmp_path: Path, message: Row, reason: str, counts: tuple[int, int | None] | None, expected: tuple[Any, bool]
) -> None:
    response: Row = {"choices": [{"message": message, "finish_reason": reason}]}
    if counts is not None:
        details = {"reasoning_tokens": counts[1]}
        response["usage"] = {"completion_tokens": counts[0], "completion_tokens_details": details}
    row = {"request": {"messages": [{"role": "user", "content": "2+2"}]}, "response": response}
    trace = load(tmp_path, [row])
    (record,) = trace.records
    assert record.censored == expected[1]
    if counts is None:
        # 67 characters and what stands around them, of 92: 23 tokens in all.
        assert (record.response_tokens, record.thinking_tokens) == (22, 21)
    else:
        assert (record.response_tokens, record.thinking_tokens) == (counts[0], expected[0])


def test_characters_of_thinking_and_of_several_answers(tmp_path: Path) -> None:
    rows = [
        {"prompt_id": "p", "prompt": "Why?", "model": "m", "answer_chars": [400, 40], "thinking_chars": [100, 0]},
        {"prompt_id": "p", "prompt": "Why?", "model": "n", "answer_chars": [0, 8], "thinking_chars": [4000, 0]},
    ]
    trace = load(tmp_path, rows)
    assert [(r.model, r.sample, r.response_tokens, r.thinking_tokens) for r in trace.records] == [
        ("m", 0, 125, 25),
        ("m", 1, 10, None),
        ("n", 0, 1000, 1000),
        ("n", 1, 2, None),
    ]
    assert trace.length_source == "characters/4.0 of answer_chars"
    assert "tokens of answers are estimated" in trace.report.warnings[0]
