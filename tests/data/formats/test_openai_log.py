"""API logs: request and response of every kind, in every wrapping, make the same exchanges."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion
from openai.types.responses import Response

from ecoserve.data import Message, load_trace, save_trace
from ecoserve.data.formats import Exchange, Reject, detect
from ecoserve.data.formats.conversations import CALLS_TOOLS, TEXT_LEFT_OUT
from ecoserve.data.formats.openai import HIDDEN

Read = Callable[[dict[str, Any]], list[Exchange | Reject]]
Only = Callable[[dict[str, Any]], Exchange]


def asked(*more: dict[str, Any], **settings: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": "Q"}, *more], **settings}


def choice(index: int = 0, content: str | None = "A", reason: str = "stop", **more: Any) -> dict[str, Any]:
    return {"index": index, "message": {"role": "assistant", "content": content, **more}, "finish_reason": reason}


def usage(prompt: int, answer: int, reasoning: int = 0) -> dict[str, Any]:
    details = {"completion_tokens_details": {"reasoning_tokens": reasoning}} if reasoning else {}
    return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer, **details}


def completed(*choices: dict[str, Any], counts: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    """A chat completion just as the client's library types it, so that no field of ours is invented."""
    made = ChatCompletion.model_validate(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1_700_000_000,
            "model": "m-2024",
            "choices": list(choices or (choice(),)),
            "usage": counts or usage(5, 7),
            **more,
        }
    )
    row: dict[str, Any] = made.model_dump(mode="json")
    return row


def test_a_request_and_its_response_make_an_exchange(only: Only) -> None:
    system = {"role": "system", "content": "S"}
    request = {"model": "m", "messages": [system, {"role": "user", "content": "Q"}], "max_tokens": 7}
    response = completed(choice(content="A", reason="length"))
    item = only({"request": request, "response": response, "timestamp": "2024-05-01T12:00:00Z"})
    record = item.record
    assert (record.conversation, record.turn, record.prompt) == ("chatcmpl-1", 0, "Q")
    assert record.messages == (Message("system", "S"), Message("user", "Q"))
    assert (record.model, record.arrival_s) == ("m-2024", 1714564800.0)
    assert (record.prompt_tokens, record.response_tokens, record.max_tokens) == (5, 7, 7)
    assert (record.finish_reason, record.censored, record.sample) == ("length", True, 0)
    assert item.answer == "A"


@pytest.mark.parametrize(
    "row",
    [
        {"request": asked(), "response": completed()},
        {"request": json.dumps(asked()), "response": json.dumps(completed())},
        {"request_body": asked(), "response_body": completed()},
        {"input": asked(), "output": completed()},
        {
            "request": {"url": "/v1/chat/completions", "body": asked()},
            "response": {"status_code": 200, "body": completed()},
        },
        {**asked(), "response": completed()},
        {**asked(), **completed()},
    ],
)
def test_the_wrapping_does_not_matter(only: Only, row: dict[str, Any]) -> None:
    item = only(row)
    assert (item.record.prompt, item.answer, item.record.response_tokens) == ("Q", "A", 7)
    assert item.record.arrival_s == 1_700_000_000.0


def test_the_batch_apis_output_has_answers_without_prompts(only: Only) -> None:
    body = completed()
    row = {
        "id": "batch_1",
        "custom_id": "q-1",
        "response": {"status_code": 200, "request_id": "r", "body": body},
        "error": None,
    }
    item = only(row)
    assert (item.record.conversation, item.record.prompt, item.answer) == ("q-1", None, "A")
    assert (item.record.prompt_tokens, item.record.response_tokens) == (5, 7)


def test_the_batch_apis_input_has_no_answers(read: Read) -> None:
    row = {"custom_id": "q-1", "method": "POST", "url": "/v1/chat/completions", "body": asked()}
    assert detect([row], "f").name == "openai"
    assert read(row) == [Reject("a batch's request without its response: join its output file to it")]


@pytest.mark.parametrize(
    "row",
    [
        {"request": asked(), "response": None, "error": {"message": "overloaded"}},
        {"request": asked(), "response": {"error": {"message": "bad"}}},
        {"request": asked(), "response": {"status_code": 500, "body": {}}},
        {"request": asked(), "response": completed(), "status_code": "429"},
        {"custom_id": "q", "response": {"status_code": 400, "body": {"error": {"message": "bad"}}}, "error": None},
        {"request": {"input": "Q"}, "response": {"object": "response", "status": "failed", "output": []}},
    ],
)
def test_a_failed_request_has_no_length(read: Read, row: dict[str, Any]) -> None:
    assert read(row) == [Reject("failed request")]


def test_each_choice_is_a_sample_and_usage_is_of_all_of_them(read: Read) -> None:
    response = completed(choice(0, "A"), choice(1, "A"), choice(2, "B", "length"), counts=usage(5, 30))
    items = read({"request": asked(n=3), "response": response})
    records = [i.record for i in items if isinstance(i, Exchange)]
    assert [r.sample for r in records] == [0, 1, 2]
    assert [r.response_tokens for r in records] == [None, None, None]
    assert {r.prompt_tokens for r in records} == {5}
    assert [r.censored for r in records] == [False, False, True]
    assert {r.conversation for r in records} == {"chatcmpl-1"}


def test_equal_samples_are_no_duplicates(write: Any, tmp_path: Any) -> None:
    row = {"request": asked(n=2), "response": completed(choice(0), choice(1))}
    trace = load_trace(write([row, row]))
    assert [r.sample for r in trace.records] == [0, 1]
    assert trace.report.dropped == {"duplicate": 2}
    assert load_trace(save_trace(trace, tmp_path / "s.jsonl")).records == trace.records


def test_token_ids_count_each_choice(read: Read) -> None:
    response = {"choices": [{**choice(i), "token_ids": [1] * (i + 2)} for i in range(2)], "usage": usage(5, 5)}
    items = read({"request": asked(n=2), "response": response})
    assert [i.record.response_tokens for i in items if isinstance(i, Exchange)] == [2, 3]


def test_a_completion_has_a_text(only: Only) -> None:
    response = Completion.model_validate(
        {
            "id": "cmpl-1",
            "object": "text_completion",
            "created": 5,
            "model": "m",
            "choices": [{"index": 0, "text": "A", "finish_reason": "stop", "logprobs": None}],
            "usage": usage(2, 3),
        }
    ).model_dump(mode="json")
    item = only({"request": {"model": "m", "prompt": "Q", "max_tokens": 9}, "response": response})
    assert (item.record.prompt, item.record.messages, item.answer) == ("Q", (), "A")
    assert (item.record.response_tokens, item.record.max_tokens) == (3, 9)


def test_several_prompts_have_their_choices_one_after_the_other(read: Read) -> None:
    choices = [{"index": i, "text": f"A{i}", "finish_reason": "stop"} for i in range(4)]
    row = {"request": {"prompt": ["P", "Q"], "n": 2}, "response": {"id": "c", "choices": choices, "usage": usage(4, 9)}}
    items = [i for i in read(row) if isinstance(i, Exchange)]
    assert [(i.record.conversation, i.record.prompt, i.record.sample, i.answer) for i in items] == [
        ("c/0", "P", 0, "A0"),
        ("c/0", "P", 1, "A1"),
        ("c/1", "Q", 0, "A2"),
        ("c/1", "Q", 1, "A3"),
    ]
    assert {i.record.prompt_tokens for i in items} == {i.record.response_tokens for i in items} == {None}


def test_a_prompt_of_token_ids_has_a_length(only: Only) -> None:
    response = {"choices": [{"text": "A", "finish_reason": "stop"}], "usage": usage(4, 2)}
    record = only({"request": {"prompt": [5, 6, 7, 8]}, "response": response}).record
    assert (record.prompt, record.prompt_tokens, record.response_tokens) == (None, 4, 2)


def test_the_responses_api_is_understood(only: Only) -> None:
    response = Response.model_validate(
        {
            "id": "resp_1",
            "object": "response",
            "created_at": 1_700_000_000,
            "model": "m",
            "status": "incomplete",
            "incomplete_details": {"reason": "max_output_tokens"},
            "output": [
                {"type": "reasoning", "id": "r", "summary": []},
                {
                    "type": "message",
                    "id": "m",
                    "role": "assistant",
                    "status": "incomplete",
                    "content": [{"type": "output_text", "text": "A", "annotations": []}],
                },
            ],
            "max_output_tokens": 40,
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": [],
            "usage": {
                "input_tokens": 6,
                "output_tokens": 40,
                "total_tokens": 46,
                "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
                "output_tokens_details": {"reasoning_tokens": 33},
            },
        }
    ).model_dump(mode="json")
    item = only({"request": {"input": "Q", "instructions": "S"}, "response": response})
    record = item.record
    assert record.messages == (Message("system", "S"), Message("user", "Q"))
    assert (record.prompt_tokens, record.response_tokens, record.max_tokens) == (6, 40, 40)
    assert (record.finish_reason, record.censored) == ("max_output_tokens", True)
    # 33 of the 40 tokens are reasoning that the text does not show.
    assert item.answer is None


def test_items_of_the_responses_api_are_a_context(only: Only) -> None:
    asks = [
        {"role": "user", "content": [{"type": "input_text", "text": "Weather?"}]},
        {"type": "reasoning", "summary": []},
        {"type": "function_call", "name": "weather", "arguments": "{}", "call_id": "c"},
        {"type": "function_call_output", "call_id": "c", "output": "rain"},
    ]
    message = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Rain."}]}
    item = only(
        {"request": {"input": asks}, "response": {"object": "response", "status": "completed", "output": [message]}}
    )
    assert [(m.role, m.content) for m in item.record.messages] == [
        ("user", "Weather?"),
        ("assistant", "weather({})"),
        ("tool", "rain"),
    ]
    assert (item.answer, item.record.finish_reason, item.record.censored) == ("Rain.", "completed", False)


def test_anthropics_messages_are_understood(only: Only) -> None:
    response = {
        "id": "msg_1",
        "role": "assistant",
        "content": [{"type": "text", "text": "A"}],
        "stop_reason": "max_tokens",
        "usage": {"input_tokens": 3, "output_tokens": 4},
    }
    item = only({"request": {**asked(), "system": "S"}, "response": response})
    assert [m.content for m in item.record.messages] == ["S", "Q"]
    assert (item.answer, item.record.response_tokens, item.record.censored) == ("A", 4, True)


def test_anthropics_batches_join_requests_to_results(write: Any) -> None:
    message = {"type": "message", "role": "assistant", "model": "c", "content": [{"type": "text", "text": "A"}]}
    message |= {"stop_reason": "max_tokens", "usage": {"input_tokens": 9, "output_tokens": 4}}
    rows = [
        {"custom_id": "q", "params": {"model": "c", "max_tokens": 4, "messages": [{"role": "user", "content": "Q"}]}},
        {"custom_id": "q", "result": {"type": "succeeded", "message": message}},
        {"custom_id": "r", "result": {"type": "errored", "error": {"type": "invalid_request"}}},
        {"custom_id": "s", "result": {"type": "expired"}},
    ]
    trace = load_trace(write(rows))
    (record,) = trace.records
    assert (record.prompt, record.response, record.max_tokens) == ("Q", "A", 4)
    assert (record.prompt_tokens, record.response_tokens, record.censored) == (9, 4, True)
    assert trace.report.dropped == {"failed request": 2}


def test_the_turn_is_how_often_was_answered_before(only: Only) -> None:
    more = [{"role": r, "content": c} for r, c in (("assistant", "A1"), ("user", "Q2"))]
    record = only({"request": asked(*more), "response": completed(), "session_id": "s"}).record
    assert (record.conversation, record.turn, record.prompt) == ("s", 1, "Q2")
    request = asked(metadata={"conversation_id": "t"})
    assert only({"request": request, "response": completed()}).record.conversation == "t"


def test_tool_calls_have_the_length_that_usage_says(read: Read, only: Only) -> None:
    calls = [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    called = completed(choice(content=None, reason="tool_calls", tool_calls=calls))
    item = only({"request": asked(), "response": called})
    assert (item.answer, item.record.response_tokens, item.record.finish_reason) == (None, 7, "tool_calls")
    two = completed(choice(0), choice(1, None, "tool_calls", tool_calls=calls))
    plain, call = read({"request": asked(n=2), "response": two})
    assert isinstance(plain, Exchange)
    assert isinstance(call, Exchange)
    assert (plain.missing, call.missing) == (None, CALLS_TOOLS)


def test_hidden_reasoning_is_in_usage_only(write: Any) -> None:
    hidden = completed(counts=usage(5, 70, reasoning=60))
    shown = completed(choice(reasoning_content="hm"), counts=usage(5, 71, reasoning=60))
    two = completed(choice(0), choice(1), counts=usage(5, 140, reasoning=120))
    rows = [{"custom_id": str(i), "request": asked(), "response": r} for i, r in enumerate((hidden, shown, two))]
    trace = load_trace(write(rows))
    assert [r.response_tokens for r in trace.records] == [70, 71]
    assert [r.response for r in trace.records] == [None, "<think>\nhm\n</think>\n\nA"]
    assert trace.report.dropped == {HIDDEN: 2}


def test_an_answer_of_one_token_may_be_empty(write: Any) -> None:
    rows = [
        {"request": asked(), "response": completed(choice(content=""), counts=usage(5, 1), id="x")},
        {"request": asked(), "response": completed(id="y")},
    ]
    trace = load_trace(write(rows, "t.jsonl"))
    assert [(r.response, r.response_tokens) for r in trace.records] == [(None, 1), ("A", 7)]


def test_a_log_keeps_what_was_asked_twice(write: Any) -> None:
    rows = [{"request": asked(), "response": completed(id=f"c{i % 2}")} for i in range(3)]
    trace = load_trace(write(rows))
    assert [r.conversation for r in trace.records] == ["c0", "c1"]
    assert trace.report.dropped == {"duplicate": 1}


def test_a_response_as_plain_text(only: Only) -> None:
    item = only({"request": asked(), "response": "A", "id": 3})
    assert (item.record.conversation, item.answer, item.record.response_tokens) == ("3", "A", None)


def test_an_image_in_a_request_is_left_out_and_said(only: Only) -> None:
    parts = [{"type": "text", "text": "Q"}, {"type": "image_url", "image_url": {"url": "data:,"}}]
    item = only({"request": {"messages": [{"role": "user", "content": parts}]}, "response": completed()})
    assert (item.record.prompt, item.notes) == ("Q", (TEXT_LEFT_OUT,))


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        ({"messages": []}, "no prompt"),
        ({"messages": [{"role": "user", "content": " "}]}, "empty prompt"),
        ({"messages": [5]}, "no prompt"),
        ({"prompt": ""}, "empty prompt"),
        ({"prompt": ["a", ""]}, "empty prompt"),
        ({"prompt": []}, "no prompt"),
        ({"prompt": [[1, 2], ["a"]]}, "no prompt"),
    ],
)
def test_a_request_without_a_prompt_is_rejected(read: Read, request_: dict[str, Any], reason: str) -> None:
    assert read({"request": request_, "response": completed()}) == [Reject(reason)]


@pytest.mark.parametrize("response", [{"choices": []}, {"choices": [5]}, "{not json"])
def test_a_response_that_says_nothing_is_no_answer(write: Any, response: Any) -> None:
    rows = [{"request": asked(), "response": completed()}, {"request": asked(), "response": response}]
    report = load_trace(write(rows)).report
    # A text that is no JSON is an answer like any other.
    assert report.dropped == ({} if isinstance(response, str) else {"no answer": 1})
