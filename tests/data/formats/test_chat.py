"""Chats: each answer to a question is an exchange, whatever the question and the answer are wrapped in."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from ecoserve.data import Message, load_trace
from ecoserve.data.formats import Exchange, Reject, detect
from ecoserve.data.formats.conversations import (
    ANSWER_TIME,
    CALLS_TOOLS,
    LATE_START,
    NOT_ALL_TEXT,
    TEXT_LEFT_OUT,
    WITH_REASONING,
)

Read = Callable[[dict[str, Any]], list[Exchange | Reject]]
Only = Callable[[dict[str, Any]], Exchange]


def say(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def chat(*turns: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"messages": list(turns), **more}


CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Bonn"}'}}


def test_each_answer_has_all_before_it_as_context(read: Read) -> None:
    first, second = read(
        chat(
            say("system", "Be kind."),
            say("user", "Q1"),
            say("assistant", "A1"),
            say("user", "Q2"),
            say("assistant", "A2"),
            model="m",
            split="dev",
            id=5,
        )
    )
    assert isinstance(first, Exchange)
    assert isinstance(second, Exchange)
    assert (first.record.conversation, first.record.turn, first.answer) == ("5", 0, "A1")
    assert (second.record.turn, second.record.prompt, second.answer) == (1, "Q2", "A2")
    assert [m.content for m in second.record.messages] == ["Be kind.", "Q1", "A1", "Q2"]
    assert (second.record.model, second.record.split) == ("m", "dev")


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ({"conversation_id": "c", "turn": 1}, "c"),
        ({"conversation_hash": "h", "turn": 1, "language": "English", "toxic": False}, "h"),
        ({}, "row-7"),
    ],
)
def test_published_chats_call_their_messages_a_conversation(only: Only, row: dict[str, Any], name: str) -> None:
    turns = [say("user", "Q", language="English"), say("assistant", "A")]
    item = only({**row, "conversation": turns, "model": "vicuna-13b"})
    assert (item.record.conversation, item.record.prompt, item.record.model) == (name, "Q", "vicuna-13b")


def test_the_time_of_a_question_is_its_arrival(read: Read) -> None:
    when = [datetime(2024, 5, 1, 12, m, tzinfo=UTC) for m in range(3)]
    turns = [
        say("user", "Q1", timestamp=when[0]),
        say("assistant", "A1", timestamp=when[1]),
        say("user", "Q2", timestamp=None),
        say("assistant", "A2", timestamp=when[2].isoformat()),
    ]
    first, second = read({"conversation": turns, "timestamp": when[2]})
    assert isinstance(first, Exchange)
    assert isinstance(second, Exchange)
    assert (first.record.arrival_s, first.notes) == (when[0].timestamp(), ())
    assert (second.record.arrival_s, second.notes) == (when[2].timestamp(), (ANSWER_TIME,))


def test_a_rows_own_time_is_that_of_its_only_answer(read: Read) -> None:
    turns = [say("user", "Q1"), say("assistant", "A1")]
    assert [i.record.arrival_s for i in read(chat(*turns, timestamp=9)) if isinstance(i, Exchange)] == [9.0]
    both = read(chat(*turns, *turns, timestamp=9))
    assert [i.record.arrival_s for i in both if isinstance(i, Exchange)] == [None, None]


def test_text_may_come_in_parts(only: Only) -> None:
    item = only(
        chat(
            say("user", [{"type": "text", "text": "One"}, {"type": "text", "text": "two"}]),
            say("assistant", [{"type": "text", "text": "Yes"}]),
        )
    )
    assert (item.record.prompt, item.answer, item.notes) == ("One\ntwo", "Yes", ())


def test_an_image_in_a_question_is_left_out_and_said(only: Only) -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:,"}}
    item = only(chat(say("user", [{"type": "text", "text": "What is it?"}, picture]), say("assistant", "A cat")))
    assert item.record.prompt == "What is it?"
    assert item.answer == "A cat"
    assert item.notes == (TEXT_LEFT_OUT,)


def test_a_question_without_any_text_is_no_prompt(read: Read) -> None:
    row = chat(say("user", [{"type": "image_url", "image_url": {}}]), say("assistant", "A cat"))
    assert read(row) == [Reject("prompt is not text")]


def test_an_answer_that_is_not_text_alone_needs_a_count(only: Only) -> None:
    spoken = [{"type": "text", "text": "Hear:"}, {"type": "audio", "audio": {}}]
    item = only(chat(say("user", "Sing"), say("assistant", spoken)))
    assert (item.answer, item.missing) == (None, NOT_ALL_TEXT)
    assert only(chat(say("user", "Sing"), say("assistant", spoken, output_tokens=70))).record.response_tokens == 70


def test_an_answer_to_a_tool_is_an_exchange(read: Read) -> None:
    called, answered = read(
        chat(
            say("user", "Weather in Bonn?"),
            say("assistant", None, tool_calls=[CALL]),
            say("tool", "rain, 9 degrees", tool_call_id="c1"),
            say("assistant", "It rains."),
        )
    )
    assert isinstance(called, Exchange)
    assert (called.answer, called.missing) == (None, CALLS_TOOLS)
    assert isinstance(answered, Exchange)
    assert (answered.record.turn, answered.record.prompt, answered.answer) == (1, "rain, 9 degrees", "It rains.")
    assert answered.record.messages == (
        Message("user", "Weather in Bonn?"),
        Message("assistant", 'weather({"city": "Bonn"})'),
        Message("tool", "rain, 9 degrees"),
    )


def test_calls_are_read_in_every_dialect(read: Read) -> None:
    dialects: list[dict[str, Any]] = [
        say("assistant", None, function_call={"name": "f", "arguments": {"x": 1}}),
        say("assistant", [{"type": "tool_use", "name": "f", "input": {"x": 1}}]),
        say("assistant", "", tool_calls=[{"name": "f", "arguments": '{"x": 1}'}]),
    ]
    for call in dialects:
        last = read(chat(say("user", "Q"), call, say("function", "2"), say("assistant", "Two")))[-1]
        assert isinstance(last, Exchange)
        assert last.record.messages[1] == Message("assistant", 'f({"x": 1})')


def test_a_tools_result_may_stand_in_the_users_message(read: Read) -> None:
    result = [{"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "text", "text": "rain"}]}]
    use = [{"type": "text", "text": "I look."}, {"type": "tool_use", "name": "f", "input": {}}]
    first, last = read(
        chat(say("user", "Q"), say("assistant", use), say("user", result), say("assistant", "It rains."))
    )
    assert isinstance(first, Exchange)
    assert first.missing == CALLS_TOOLS
    assert isinstance(last, Exchange)
    assert last.record.prompt == "rain"
    assert last.record.messages[1] == Message("assistant", "I look.\nf({})")


def test_a_call_of_known_length_is_kept_without_its_text(write: Any) -> None:
    rows = [
        chat(say("user", "Q"), say("assistant", "I look.", tool_calls=[CALL]), usage={"completion_tokens": 21}),
        chat(say("user", "R"), say("assistant", "Yes."), usage={"completion_tokens": 3}),
        chat(say("user", "S"), say("assistant", None, tool_calls=[CALL])),
    ]
    trace = load_trace(write(rows, "t.jsonl"))
    assert [(r.response, r.response_tokens) for r in trace.records] == [(None, 21), ("Yes.", 3)]
    assert trace.report.dropped == {CALLS_TOOLS: 1}
    assert trace.length_source == "trace"


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_reasoning_was_generated_and_is_not_context(read: Read, field: str) -> None:
    first, second = read(
        chat(
            say("user", "Q"),
            say("assistant", "Four", **{field: "2 + 2"}),
            say("user", "R"),
            say("assistant", [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "Five"}]),
        )
    )
    assert isinstance(first, Exchange)
    assert (first.answer, first.notes) == ("<think>\n2 + 2\n</think>\n\nFour", (WITH_REASONING,))
    assert isinstance(second, Exchange)
    assert second.record.messages[1] == Message("assistant", "Four")
    assert second.answer == "<think>\nhm\n</think>\n\nFive"


def test_a_conversation_that_starts_with_the_assistant_keeps_it_as_context(only: Only) -> None:
    item = only(chat(say("developer", "Greet."), say("assistant", "Hi"), say("user", "Q"), say("assistant", "A")))
    assert item.notes == (LATE_START,)
    assert [m.role for m in item.record.messages] == ["developer", "assistant", "user"]


@pytest.mark.parametrize("field", ["response", "completion"])
def test_the_last_answer_may_stand_beside_the_messages(read: Read, field: str) -> None:
    row = chat(say("user", "Q1"), say("assistant", "A1"), say("user", "Q2"), **{field: "A2"})
    assert [i.answer for i in read(row) if isinstance(i, Exchange)] == ["A1", "A2"]
    # Where the messages have it already, it is not said twice.
    done = chat(say("user", "Q1"), say("assistant", "A1"), **{field: "A1"})
    assert [i.answer for i in read(done) if isinstance(i, Exchange)] == ["A1"]


def test_counts_limits_and_endings_are_kept(only: Only) -> None:
    turns = [say("user", "Q"), say("assistant", "A", finish_reason="length", model="m2")]
    row = chat(*turns, usage={"prompt_tokens": 11, "completion_tokens": 5}, max_tokens=5, model="m1")
    record = only(row).record
    assert (record.prompt_tokens, record.response_tokens, record.max_tokens) == (11, 5, 5)
    assert (record.censored, record.finish_reason, record.model) == (True, "length", "m2")
    assert (
        only(chat(say("user", "Q"), say("assistant", "A", usage={"completion_tokens": 6}))).record.response_tokens == 6
    )


def test_a_count_of_the_row_is_not_that_of_one_of_several_answers(read: Read) -> None:
    turns = [say("user", "Q"), say("assistant", "A")]
    items = read(chat(*turns, *turns, output_tokens=9))
    assert [i.record.response_tokens for i in items if isinstance(i, Exchange)] == [None, None]


def test_an_empty_answer_counts_if_its_length_is_known(write: Any) -> None:
    rows = [
        chat(say("user", "Q"), say("assistant", ""), output_tokens=1),
        chat(say("user", "R"), say("assistant", "Yes"), output_tokens=2),
        chat(say("user", "S"), say("assistant", " ")),
        chat(say("user", "T"), say("assistant", None)),
    ]
    trace = load_trace(write(rows))
    assert [(r.response, r.response_tokens) for r in trace.records] == [(None, 1), ("Yes", 2)]
    assert trace.report.dropped == {"empty answer": 1, "no answer": 1}
    assert trace.report.noted == {"without a text, but with a length": 1}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"messages": []}, "no conversation"),
        (chat(say("user", "Q")), "no question with an answer"),
        (chat(say("assistant", "A")), "no question with an answer"),
        (chat(say("system", "S"), say("assistant", "A")), "no question with an answer"),
        (chat(say("user", ""), say("assistant", "A")), "empty prompt"),
        (chat(say("user", 5), say("assistant", "A")), "prompt is not text"),
        (chat(say("user", "\ud83d"), say("assistant", "A")), "prompt is not valid Unicode"),
        (chat(say("system", 5), say("user", "Q"), say("assistant", "A")), "context is not text"),
    ],
)
def test_a_row_without_an_exchange_is_rejected(read: Read, row: dict[str, Any], reason: str) -> None:
    assert read(row) == [Reject(reason)]


def test_what_is_no_list_is_no_conversation(write: Any) -> None:
    good = chat(say("user", "Q"), say("assistant", "A"))
    trace = load_trace(write([good, {"messages": "text"}, {"messages": None}, 5]), format="chat")
    assert trace.report.dropped == {"conversation is not a list": 1, "no conversation": 1, "row is not an object": 1}


def test_dirt_of_all_kinds_is_counted_in_chats_too(write: Any) -> None:
    good = [say("user", "Q"), say("assistant", "A")]
    cut = [say("user", "Wie geht es dir?"), say("assistant", "Es geht mir [truncated]")]
    late = [say("assistant", "你好"), say("user", "天气怎么样?"), say("assistant", "下雨。")]
    rows = [chat(*good), chat(*good), chat(*cut), chat(*late), chat(say("user", "Q2"), say("assistant", "\udce9"))]
    trace = load_trace(write(rows))
    assert trace.report.kept == 3
    assert trace.report.dropped == {"duplicate": 1, "answer is not valid Unicode": 1}
    assert trace.report.noted == {LATE_START: 1, "answers cut off": 1}
    assert [r.censored for r in trace.records] == [False, True, False]


def test_the_length_of_an_answer_may_stand_in_its_message_or_row(write: Any) -> None:
    rows = [chat(say("user", f"Q{i}"), say("assistant", "A"), stats={"out": [4, 5]}) for i in range(2)]
    assert [r.response_tokens for r in load_trace(write(rows), length_field="stats.out[1]").records] == [5, 5]


def test_parquet_and_jsonl_are_the_same_chats(write: Any, tmp_path: Path) -> None:
    rows = [
        {
            "conversation_hash": f"h{i}",
            "timestamp": datetime(2024, 5, 1, 12, i),
            "conversation": [say("user", f"Q{i}"), say("assistant", "A")],
            "model": "m",
            "turn": 1,
        }
        for i in range(3)
    ]
    packed = load_trace(write(rows, "t.parquet"))
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps(r, default=str) for r in rows))
    plain = load_trace(tmp_path / "t.jsonl")
    assert packed.format == plain.format == "chat"
    assert packed.records == plain.records
    assert [r.arrival_s for r in plain.records] == [1714564800.0 + 60 * i for i in range(3)]


def test_a_published_chat_is_not_taken_for_our_own_records() -> None:
    row = {"conversation_id": "c", "conversation": [say("user", "Q"), say("assistant", "A")], "turn": 1}
    assert detect([row], "f").name == "chat"
